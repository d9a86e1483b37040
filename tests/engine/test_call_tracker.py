"""follow: step and branch of loops that are not ours, in the call patterns of real ones."""

import pytest
import torch

from profiling_core.engine.delta_cache import DeltaCache
from toys import ToyHunyuan, ToyWan, both, intervals, prediction, run_clip, toy_plan


class Recorder(DeltaCache):
    """Notes the positions that were given."""

    def __init__(self, plan):
        super().__init__(plan)
        self.positions = []

    def begin(self, step, branch="cond"):
        self.positions.append((step, branch))
        super().begin(step, branch)


def positions(steps, *branches):
    return [(step, branch) for step in range(steps) for branch in branches]


def wan_loop(model, timesteps, calls=2):
    """Wan's: a new int64 tensor per step, the same object for both guidance calls, keyword t."""
    x = [torch.ones(5, 8)]
    for t in timesteps:
        timestep = torch.stack([torch.tensor(t)])
        for context in (0.1, -0.1)[:calls]:
            with torch.no_grad():
                model(x, t=timestep, context=context)


def hunyuan_loop(model, timesteps):
    """HunyuanVideo's: one call per step, the timestep second and positional."""
    for t in timesteps:
        with torch.no_grad():
            model(torch.ones(1, 7, 8), torch.tensor([float(t)]), torch.ones(1, 3, 8))


PLAN = toy_plan([intervals(both(0, 1, 5), [[1, 4]])])
FALLING = list(range(999, 999 - 12 * 80, -80))


def followed(model, plan=PLAN, **options):
    return Recorder(plan).attach(model).follow(**options)


def test_wan_loop_is_followed():
    cache = followed(ToyWan())
    wan_loop(cache._model, FALLING)
    assert cache.positions == positions(12, "cond", "uncond")


def test_repeated_timestep_values_are_different_steps():
    cache = followed(ToyWan())
    wan_loop(cache._model, [999, 999, 998, 998, 998, 500, 500, 100, 100, 3, 3, 3])
    assert cache.positions == positions(12, "cond", "uncond")


def test_loop_without_guidance_makes_one_call_per_step():
    cache = followed(ToyWan())
    wan_loop(cache._model, FALLING, calls=1)
    assert cache.positions == positions(12, "cond")


@pytest.mark.parametrize("timesteps", [FALLING, FALLING[::-1]])
def test_hunyuan_loop_is_followed_in_both_directions_of_time(timesteps):
    model = ToyHunyuan()
    lists = {"double_blocks": 4, "single_blocks": 5}
    plan = toy_plan([prediction({"cond": [0, 1, 5]})], lists=lists)
    cache = Recorder(plan).attach(model).follow()
    for _ in range(2):
        hunyuan_loop(model, timesteps)
    assert cache.positions == positions(12, "cond") * 2


def test_second_video_and_one_after_an_abort_start_at_step_0():
    cache = followed(ToyWan())
    wan_loop(cache._model, FALLING)
    wan_loop(cache._model, FALLING[:6])
    wan_loop(cache._model, FALLING)
    whole, part = positions(12, "cond", "uncond"), positions(6, "cond", "uncond")
    assert cache.positions == whole + part + whole


def test_followed_clip_equals_the_told_one():
    torch.manual_seed(0)
    model = ToyWan()
    positioned = DeltaCache(PLAN)
    with positioned.attached(model):
        expected = run_clip(
            model,
            PLAN,
            lambda step, branch, x, t, c: positioned.begin(step, branch) or model(x, t, c),
        )
    with DeltaCache(PLAN).attached(model) as cache:
        cache.follow()
        outputs = run_clip(model, PLAN, lambda step, branch, x, t, c: model(x, t, c))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


class Pipeline:
    def __init__(self, model, loop=wan_loop):
        self.model, self.loop, self.decoded = model, loop, None

    def generate(self, prompt, sampling_steps=12, fail=None):
        self.loop(self.model, FALLING[: fail or sampling_steps])
        if fail:
            raise RuntimeError("decoder")
        return prompt


def test_wrapped_generate_starts_clean_and_frees_everything():
    pipeline = Pipeline(ToyWan())
    cache = followed(pipeline.model, owner=pipeline, call="generate")
    with pytest.raises(RuntimeError, match="decoder"):
        pipeline.generate("a", fail=1)
    assert cache.bytes_held == 0
    assert pipeline.generate("b") == "b"
    assert cache.positions == [*positions(1, "cond", "uncond"), *positions(12, "cond", "uncond")]
    cache.detach()
    assert "generate" not in vars(pipeline) and type(pipeline.model) is ToyWan


def test_wrong_step_count_of_the_wrapped_call_is_refused_with_both_numbers():
    pipeline = Pipeline(ToyWan())
    followed(pipeline.model, owner=pipeline, call="generate")
    with pytest.raises(ValueError, match="sampling_steps is 9, plan 'toy' is made for 12 steps"):
        pipeline.generate("a", sampling_steps=9)


def test_loop_that_makes_a_tensor_per_call_is_refused_instead_of_miscounted():
    def loop(model, timesteps):
        for t in timesteps:
            for context in (0.1, -0.1):
                model([torch.ones(5, 8)], t=torch.tensor([t]), context=context)

    pipeline = Pipeline(ToyWan(), loop)
    plan = toy_plan([prediction(both(*range(12)))])
    Recorder(plan).attach(pipeline.model).follow(pipeline, "generate")
    with torch.no_grad(), pytest.raises(ValueError, match="different timestep tensors of value"):
        pipeline.generate("a")


def test_call_too_many_under_a_wrapped_run_is_refused():
    pipeline = Pipeline(ToyWan(), lambda model, _: wan_loop(model, range(13)))
    followed(pipeline.model, owner=pipeline, call="generate")
    with pytest.raises(ValueError, match="call number 13 with a new timestep"):
        pipeline.generate("a")


def test_wrapped_run_may_turn_its_time_around():
    turning = [999, 900, 950, *FALLING[3:]]
    pipeline = Pipeline(ToyWan(), lambda model, _: wan_loop(model, turning))
    cache = followed(pipeline.model, owner=pipeline, call="generate")
    pipeline.generate("a")
    assert cache.positions == positions(12, "cond", "uncond")


class Generators:
    def generate(self):
        yield 1

    async def later(self):
        return 1


@pytest.mark.parametrize("call", ["generate", "later"])
def test_owner_that_runs_on_after_it_returns_is_refused(call):
    with pytest.raises(ValueError, match=f"{call} runs on after it returns"):
        followed(ToyWan(), owner=Generators(), call=call)
    with pytest.raises(ValueError, match="takes the object that runs the loop, not its class"):
        followed(ToyWan(), owner=Generators, call=call)


def test_detach_leaves_a_call_that_was_replaced_meanwhile():
    pipeline = Pipeline(ToyWan())
    first = followed(pipeline.model, owner=pipeline, call="generate")
    pipeline.generate = other = lambda: None
    first.detach()
    assert pipeline.generate is other and type(pipeline.model) is ToyWan


def test_third_call_with_one_timestep_is_refused():
    cache = followed(ToyWan())
    t, x = torch.tensor([5]), [torch.ones(5, 8)]
    with torch.no_grad():
        cache._model(x, t=t, context=0.0)
        cache._model(x, t=t, context=0.0)
        with pytest.raises(ValueError, match="3 model calls with one timestep, but plan"):
            cache._model(x, t=t, context=0.0)


def test_call_without_a_timestep_tensor_is_refused():
    cache = followed(ToyWan())
    with pytest.raises(ValueError, match="found no timestep tensor in the model call"):
        cache._model([torch.ones(5, 8)], t=5, context=0.0)


def test_timestep_can_be_named():
    cache = followed(ToyWan(), timestep="t")
    wan_loop(cache._model, FALLING)
    assert cache.positions == positions(12, "cond", "uncond")

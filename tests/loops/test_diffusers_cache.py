"""cache_pipeline on diffusers' real pipeline classes: exactness, state, what it leaves behind."""

import inspect
from contextlib import ExitStack

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

import tiny_pipelines
from diffusers_plans import RELEASE_LIKE, intervals, made_plan, prediction
from naive_walk import naive, weighing
from profiling_core import DeltaCache, cache_pipeline
from profiling_core.errors import PlanError
from profiling_core.loops.diffusers_models import loop_models
from profiling_core.loops.scheduler_grid import when_set
from profiling_core.plan import CachePlan
from profiling_core.plan.describe import format_bytes
from tiny_pipelines import STEPS, Tiny, build

TWO_CALLS = ("wan", "wan22", "wan_i2v", "hunyuan_cfg", "hunyuan_i2v", "hunyuan15")
SKIPS = [*((name, "linear") for name in tiny_pipelines.ALL), ("wan", "hold"), ("hunyuan", "hold")]
pytestmark = pytest.mark.filterwarnings("ignore:CPU Autocast", "ignore:In CPU autocast")


def naively(tiny: Tiny, name: str, plan: CachePlan) -> torch.Tensor:
    """The latents of a second implementation."""
    found, calls = loop_models(tiny.pipe), 2 if name in TWO_CALLS else 1
    firsts = (0,)
    if len(found.models) > 1:
        shares = []
        with when_set(tiny.pipe.scheduler, lambda s, given: shares.append(found.steps_of(s))):
            tiny.latents()
        firsts = (0, shares[0][0])
    with ExitStack() as stack:
        for model, first in zip(found.models, firsts, strict=True):
            stack.enter_context(naive(plan, model, found.lists, calls, first))
        return tiny.latents()


@pytest.mark.parametrize("name", tiny_pipelines.ALL)
def test_a_plan_that_computes_everything_gives_the_pipelines_own_bits(name: str) -> None:
    tiny = build(name)
    expected, every = tiny.video(), tuple(range(STEPS))
    plan = made_plan(tiny, [*prediction("hold", every), *intervals(tiny, computed=every)])
    with cache_pipeline(tiny.pipe, plan) as cache:
        assert torch.equal(tiny.video(), expected)
    assert cache.stats.block_runs == cache.stats.block_runs_full > 0
    assert cache.stats.reused_calls == cache.stats.reused_intervals == 0


@pytest.mark.parametrize(("name", "skip"), SKIPS)
def test_interval_plans_equal_a_naive_walk_bit_for_bit(name: str, skip: str) -> None:
    tiny = build(name)
    full = tiny.latents()
    plan = made_plan(tiny, intervals(tiny, skip))
    with cache_pipeline(tiny.pipe, plan) as cache:
        found = tiny.latents()
    assert torch.equal(found, naively(tiny, name, plan)) and not torch.equal(found, full)
    assert torch.equal(tiny.latents(), full)
    calls = (2 if name in TWO_CALLS else 1) * len(loop_models(tiny.pipe).lists)
    reused = STEPS - len(RELEASE_LIKE) - (name == "wan22")  # its second model begins with a run
    assert cache.stats.reused_intervals == calls * reused
    assert cache.stats.bytes_held == 0 < cache.stats.peak_bytes


@pytest.mark.parametrize(("name", "skip"), SKIPS)
def test_plans_of_the_prediction_equal_a_naive_forecast_bit_for_bit(name: str, skip: str) -> None:
    tiny = build(name)
    plan = made_plan(tiny, prediction(skip))
    with cache_pipeline(tiny.pipe, plan) as cache:
        found = tiny.latents()
    assert torch.equal(found, naively(tiny, name, plan))
    calls = 2 if name in TWO_CALLS else 1
    assert cache.stats.reused_calls == calls * (STEPS - len(RELEASE_LIKE) - (name == "wan22"))


def test_the_last_step_of_the_first_of_two_models_is_corrected_as_in_one_run() -> None:
    tiny = build("wan22")
    tiny.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    full, models = tiny.latents(), loop_models(tiny.pipe)
    change = models.steps_of(tiny.pipe.scheduler)[0]
    assert 3 < change < STEPS - 2
    plan = made_plan(tiny, prediction("corrected", (0, 1, change - 1, change, STEPS - 1)))
    with cache_pipeline(tiny.pipe, plan):
        found = tiny.latents()
    assert not torch.equal(found, full)
    torch.testing.assert_close(found, naively(tiny, "wan22", plan))


class OnlyVisited:
    """Sets the levels that a jump leaves, written apart from the library."""

    visited = RELEASE_LIKE

    def set_timesteps(self, num_inference_steps=None, device=None, **more):
        super().set_timesteps(num_inference_steps, device, **more)
        kept = torch.tensor([s in self.visited for s in range(len(self.timesteps))] + [True])
        self.sigmas, self.timesteps = self.sigmas[kept], self.timesteps[kept[:-1]]
        self.num_inference_steps = len(self.timesteps)


def only_visited(scheduler):
    kind = type("OnlyVisited", (OnlyVisited, type(scheduler)), {})
    return kind.from_config(scheduler.config)


@pytest.mark.parametrize(("name", "change"), [("wan", ()), ("wan22", (6,))])
def test_a_jump_gives_the_scheduler_the_visited_levels_alone(name, change, monkeypatch) -> None:
    tiny = build(name)
    plan = made_plan(tiny, prediction("jump"))
    with cache_pipeline(tiny.pipe, plan) as cache:
        found = tiny.latents()
        assert torch.equal(tiny.latents(), found)
    monkeypatch.setattr(OnlyVisited, "visited", (*RELEASE_LIKE, *change))
    tiny.pipe.scheduler = only_visited(tiny.pipe.scheduler)
    assert torch.equal(tiny.latents(), found)
    assert cache.stats.model_calls == 2 * len(OnlyVisited.visited)
    assert cache.stats.block_runs_full == 2 * 6 * STEPS


@pytest.mark.parametrize("skip", ["jump", "hold", "linear"])
@pytest.mark.parametrize("computed", [(0, 1, 12), (0, 1, 2)])
def test_each_of_two_models_computes_its_first_step_whatever_the_plan(skip, computed) -> None:
    tiny, lines = build("wan22"), []
    plan = made_plan(tiny, prediction(skip, computed), steps=16)
    calls = [0, 0]
    for number, model in enumerate((tiny.pipe.transformer, tiny.pipe.transformer_2)):
        model.blocks[0].register_forward_hook(
            lambda *_, n=number: calls.__setitem__(n, calls[n] + 1)
        )
    tiny.latents(num_inference_steps=16)
    first = calls[0] // 2  # of the low-noise model
    assert 2 < first < 12
    calls[:] = [0, 0]
    with cache_pipeline(tiny.pipe, plan, log=lines.append) as cache:
        tiny.latents(num_inference_steps=16)
    assert cache.plan.prediction.compute_steps["cond"] == tuple(sorted({*computed, first}))
    assert calls == [
        2 * sum(c < first for c in computed),
        2 * (1 + sum(c > first for c in computed)),
    ]
    assert f"step {first} is computed as well: another model begins there" in lines


WEIGHTS = {step: (0.1 * (step + 1), 0.02 * step, -0.03 * step) for step in RELEASE_LIKE}


def fitted_plan(tiny: Tiny) -> CachePlan:
    return made_plan(tiny, [prediction("jump")[0] | {"solver_weights": WEIGHTS}])


def test_a_fitted_jump_in_a_pipeline_equals_a_naive_solver_bit_for_bit() -> None:
    tiny, lines = build("wan"), []
    own = tiny.pipe.scheduler
    with cache_pipeline(tiny.pipe, made_plan(tiny, prediction("jump"))):
        plain = tiny.latents()
    kept = set(vars(own))
    with cache_pipeline(tiny.pipe, fitted_plan(tiny), log=lines.append) as cache:
        found = tiny.latents()
        assert torch.equal(tiny.latents(), found)  # a second clip begins anew
    assert type(own) is UniPCMultistepScheduler and set(vars(own)) == kept
    assert cache.plan.solver_weights and not any("plain jumps" in line for line in lines)
    assert cache.stats.peak_bytes == 0
    naive_solver = tiny.pipe.scheduler = only_visited(own)
    with weighing(type(naive_solver), cache.plan):
        assert torch.equal(tiny.latents(), found)
    assert (found - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "kind", "change"),
    [
        ("wan", UniPCMultistepScheduler, {}),
        ("wan", UniPCMultistepScheduler, {"solver_order": 3}),
        ("wan", UniPCMultistepScheduler, {"disable_corrector": [3]}),
        ("wan", DPMSolverMultistepScheduler, {}),
        ("wan22", UniPCMultistepScheduler, {}),
    ],
)
def test_a_fitted_plan_runs_as_plain_jumps_where_its_weights_are_not_for_and_says_so(
    name: str, kind: type, change: dict
) -> None:
    tiny, lines, found = build(name), [], []
    fitted = fitted_plan(tiny)
    tiny.pipe.scheduler = kind.from_config(tiny.pipe.scheduler.config, **change)
    for plan in (made_plan(tiny, prediction("jump")), fitted):
        with cache_pipeline(tiny.pipe, plan, log=lines.append) as cache:
            found.append(tiny.latents())
    weighs = name == "wan" and kind is UniPCMultistepScheduler and not change
    assert bool(cache.plan.solver_weights) == weighs != torch.equal(*found)
    assert sum("are plain jumps here" in line for line in lines) == (not weighs)


def test_a_loop_of_your_own_has_to_say_that_it_weights_its_solver() -> None:
    with pytest.raises(PlanError, match=r"your loop has to apply \(weighted=True says so\)"):
        DeltaCache(fitted_plan(build("wan")))


def test_a_jump_is_refused_where_the_scheduler_steps_by_number() -> None:
    tiny = build("cogvideox")
    plan = made_plan(tiny, prediction("jump"))
    with cache_pipeline(tiny.pipe, plan), pytest.raises(PlanError, match="steps by the number"):
        tiny.latents()


@pytest.mark.parametrize(
    ("name", "preset"),
    [*((name, "balanced") for name in tiny_pipelines.ALL), ("wan", "quality"), ("hunyuan", "fast")],
)
def test_presets_named_by_speed_keep_it_on_every_pipeline(name: str, preset: str) -> None:
    tiny, lines = build(name), []
    speedup = {"quality": 1.5, "balanced": 2.0, "fast": 3.0}[preset]
    with cache_pipeline(tiny.pipe, preset, log=lines.append) as cache:
        tiny.latents(num_inference_steps=24)
    share = cache.stats.block_runs / cache.stats.block_runs_full
    assert 1 / share == pytest.approx(speedup, rel=0.12)
    assert any("the steps of" in line for line in lines)  # not searched for this model


@pytest.mark.parametrize("preset", ["paper", "release"])
@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_the_papers_presets_reuse_blocks_of_the_families_they_are_for(name, preset) -> None:
    tiny = build(name)
    with cache_pipeline(tiny.pipe, preset) as cache:
        tiny.latents(num_inference_steps=50)
    assert cache.stats.reused_intervals > 0 == cache.stats.reused_calls


def test_a_second_video_and_other_step_counts_and_an_error_in_between() -> None:
    tiny = build("wan")
    plan = made_plan(tiny, [*intervals(tiny, "linear")])
    with cache_pipeline(tiny.pipe, plan) as cache:
        first = tiny.latents()
        other = tiny.latents(num_inference_steps=6)
        assert cache.plan.steps == 6 and not torch.equal(other, first)
        with pytest.raises(RuntimeError, match="stop here"):
            tiny.latents(callback_on_step_end=stopping_at(4))
        assert type(tiny.pipe.transformer).__mro__[1].__name__ != "WanTransformer3DModel"
        assert torch.equal(tiny.latents(), first)


def stopping_at(last: int):
    def callback(pipe, step, t, kwargs):
        if step == last:
            raise RuntimeError("stop here")
        return kwargs

    return callback


def test_an_interrupted_run_frees_everything_and_the_next_is_right() -> None:
    tiny = build("wan")
    plan = made_plan(tiny, intervals(tiny))

    def interrupt(pipe, step, t, kwargs):
        pipe._interrupt = step == 3
        return kwargs

    with cache_pipeline(tiny.pipe, plan) as cache:
        first = tiny.latents()
        tiny.latents(callback_on_step_end=interrupt)
        assert cache.stats.model_calls == 2 * 4 and cache.stats.bytes_held == 0
        assert torch.equal(tiny.latents(), first)


def test_detach_gives_back_what_was_there() -> None:
    tiny = build("wan")
    pipe, scheduler = tiny.pipe, tiny.pipe.scheduler
    expected = tiny.latents()
    before = (type(pipe), set(vars(pipe)), type(pipe.transformer), set(vars(scheduler)))
    cache = cache_pipeline(pipe, made_plan(tiny, intervals(tiny)))
    assert not torch.equal(tiny.latents(), expected)
    assert isinstance(pipe, before[0]) and type(pipe).__name__ == before[0].__name__
    assert type(pipe.transformer) is before[2]  # between calls the model is the bare one
    cache.detach()
    after = (type(pipe), set(vars(pipe)), type(pipe.transformer), set(vars(scheduler)))
    assert after == before
    assert torch.equal(tiny.latents(), expected)
    cache.detach()  # twice does no harm


def test_the_calls_signature_and_the_pipelines_parts_stay() -> None:
    tiny = build("ltx")
    own = inspect.signature(tiny.pipe.__call__)
    with cache_pipeline(tiny.pipe, "fast"):
        assert inspect.signature(tiny.pipe.__call__) == own
        assert tiny.pipe.components["transformer"] is tiny.pipe.transformer


def test_nothing_is_held_when_the_vae_decodes() -> None:
    tiny, held = build("wan"), []
    plan = made_plan(tiny, intervals(tiny))
    decode = tiny.pipe.vae.decode

    def watched(*args, **kwargs):
        held.append(sum(c.bytes_held for c in cache._loop._caches))
        return decode(*args, **kwargs)

    tiny.pipe.vae.decode = watched
    with cache_pipeline(tiny.pipe, plan) as cache:
        tiny.video()
    assert held == [0]


def test_what_is_told_before_the_run_is_what_is_counted_after_it() -> None:
    tiny, lines = build("hunyuan"), []
    plan = made_plan(tiny, intervals(tiny))
    with cache_pipeline(tiny.pipe, plan, log=lines.append) as cache:
        tiny.latents()
    assert cache.plan.expected.block_runs == 2 * cache.stats.block_runs  # of both branches
    assert any(line.startswith("ran ") for line in lines)


@pytest.mark.parametrize("name", ["wan", "hunyuan", "ltx"])
@pytest.mark.parametrize("sites", [intervals, lambda tiny: prediction("linear")])
def test_the_bytes_told_in_the_first_call_are_those_that_are_held(name, sites) -> None:
    tiny, lines = build(name), []
    plan = made_plan(tiny, sites(tiny))
    with cache_pipeline(tiny.pipe, plan, log=lines.append) as cache:
        tiny.latents()
    given = next(line for line in lines if line.endswith("for every model call of a step"))
    calls = 2 if name in TWO_CALLS else 1
    assert f"at most {format_bytes(cache.stats.peak_bytes // calls)} of" in given

"""What the engine refuses, and that a refusal leaves the model as it was."""

import copy
import types

import pytest
import torch
from torch import nn

from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.describe import summary_lines
from toys import (
    PLANS,
    ToyHunyuan,
    ToyWan,
    both,
    cached,
    cached_call,
    equal,
    intervals,
    naively,
    prediction,
    run_clip,
    toy_plan,
)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return ToyWan()


def start(model, plan):
    return DeltaCache(plan).attach(model)


def test_wrong_depth_width_and_missing_list_are_refused(model):
    with pytest.raises(PlanError, match="has 7 blocks, this model 6"):
        start(model, toy_plan([], lists={"blocks": 7}))
    with pytest.raises(PlanError, match="has 4 double_blocks, this model none"):
        start(model, toy_plan([], lists={"double_blocks": 4, "single_blocks": 5}))
    model.dim = 16
    with pytest.raises(PlanError, match="hidden width 8, this model 16"):
        start(model, toy_plan([]))
    assert type(model) is ToyWan


def test_attaching_twice_is_refused(model):
    cache = start(model, toy_plan([]))
    for other in (cache, DeltaCache(toy_plan([]))):
        with pytest.raises(ValueError, match="attached already: detach it first"):
            other.attach(model)


def test_call_without_a_position_is_refused(model):
    cache = start(model, toy_plan([]))
    x, t = [torch.ones(5, 8)], torch.ones(1)
    cache.begin(0, "cond")
    model(x, t, 0.0)
    with pytest.raises(ValueError, match="called without a position"):
        model(x, t, 0.0)


def test_unknown_branch_and_negative_step_are_refused(model):
    cache = start(model, toy_plan([prediction({"cond": [0]})]))
    with pytest.raises(ValueError, match="no branch 'uncond': it has cond"):
        cache.begin(0, "uncond")
    with pytest.raises(ValueError, match="step -1 is negative"):
        cache.begin(-1, "cond")


@pytest.mark.parametrize("site", [intervals(both(0, 4), [[1, 2]]), prediction(both(0, 4))])
def test_reuse_without_its_anchor_is_refused(model, site):
    cache = start(model, toy_plan([site]))
    cache.begin(2, "cond")
    with pytest.raises(ValueError, match="step 2 reuses step 0, which was not computed"):
        model([torch.ones(5, 8)], torch.ones(1), 0.0)


@pytest.mark.parametrize("tokens", [9, 1])
def test_changed_size_between_compute_and_reuse_is_refused(model, tokens):
    cache = start(model, toy_plan([intervals(both(0), [[1, 2]])]))
    with torch.no_grad():
        cache.begin(0, "cond")
        model([torch.ones(5, 8)], torch.ones(1), 0.0)
        cache.begin(1, "cond")
        text = rf"blocks 1-2: the hidden state is \(1, {tokens}, 8\), its anchor \(1, 5, 8\)"
        with pytest.raises(ValueError, match=text):
            model([torch.ones(tokens, 8)], torch.ones(1), 0.0)


@pytest.mark.parametrize("clips", [[(9, 8)], [(5, 8), (5, 8)]])
def test_changed_latents_between_compute_and_prediction_reuse_are_refused(model, clips):
    cache = start(model, toy_plan([prediction(both(0))]))
    with torch.no_grad():
        cache.begin(0, "cond")
        model([torch.ones(5, 8)], torch.ones(1), 0.0)
        cache.begin(1, "cond")
        with pytest.raises(ValueError, match=r"the latents are .*, at the compute step .*\(5, 8\)"):
            model([torch.ones(shape) for shape in clips], torch.ones(1), 0.0)


@pytest.mark.parametrize("result", ["the input itself", "a new tensor"])
def test_blocks_that_change_their_input_in_place_are_refused(model, result):
    def in_place(x, e):
        x += 1.0
        return x if result == "the input itself" else x.clone()

    model.blocks[2].forward = in_place
    cache = start(model, toy_plan([intervals(both(0), [[2, 3] if "new" in result else [2, 2]])]))
    cache.begin(0, "cond")
    with torch.no_grad(), pytest.raises(ValueError, match="change their input in place"):
        model([torch.ones(5, 8)], torch.ones(1), 0.0)


@pytest.mark.parametrize("where", ["model", "list"])
def test_attach_that_fails_half_way_leaves_the_model_as_it_was(where):
    model = ToyWan()
    plan = toy_plan(PLANS["release shape"])

    def refuse(cls, **kwargs):
        raise TypeError("no subclasses")

    base = ToyWan if where == "model" else nn.ModuleList
    members = {"__init_subclass__": classmethod(refuse)}
    final = types.new_class("Final", (base,), exec_body=lambda body: body.update(members))
    target = model if where == "model" else model.blocks
    target.__class__ = final
    kept = (type(model), type(model.blocks))
    with pytest.raises(TypeError, match="no subclasses"):
        DeltaCache(plan).attach(model)
    assert (type(model), type(model.blocks)) == kept
    assert not {"_delta_cache", "_delta_walk"} & {*vars(model), *vars(model.blocks)}
    target.__class__ = base
    assert equal(cached(model, plan)[0], naively(model, plan))


def test_second_cache_on_the_same_block_list_is_refused(model):
    wrapper = nn.Module()
    wrapper.inner = model
    plan = toy_plan(PLANS["release shape"])
    DeltaCache(plan).attach(model)
    with pytest.raises(ValueError, match="another cache walks blocks already"):
        DeltaCache(plan, lists={"blocks": "inner.blocks"}).attach(wrapper)


def test_two_lists_of_the_plan_on_one_of_the_model_are_refused(model):
    plan = toy_plan([], lists={"blocks": 6, "others": 6})
    with pytest.raises(PlanError, match="blocks, others of the plan are one list"):
        DeltaCache(plan, lists={"others": "blocks"}).attach(model)


def test_report_counts_the_last_video_alone(model):
    plan = toy_plan(PLANS["release shape"])
    cache = DeltaCache(plan).attach(model)
    for seed in range(3):
        run_clip(model, plan, cached_call(cache, model), seed)
        assert cache.stats.block_runs == plan.expected.block_runs


def test_position_of_a_refused_begin_is_not_used(model):
    cache = start(model, toy_plan([]))
    cache.begin(0, "cond")
    with pytest.raises(ValueError, match="step -1"):
        cache.begin(-1, "cond")
    with pytest.raises(ValueError, match="called without a position"):
        model([torch.ones(5, 8)], torch.ones(1), 0.0)


def test_class_put_on_top_of_the_attached_one_does_not_ask_twice(model):
    plan = toy_plan(PLANS["release shape"])
    expected = naively(model, plan)
    cache = DeltaCache(plan).attach(model)
    model.__class__ = type("Sharded", (type(model),), {})  # as fully_shard does
    assert equal(run_clip(model, plan, cached_call(cache, model)), expected)
    cache.detach()
    assert equal(cached(model, plan)[0], expected)


def test_copy_of_an_attached_compiled_model_is_plain(model):
    compiled = torch.compile(model, backend="eager")
    cache = DeltaCache(toy_plan(PLANS["release shape"])).attach(compiled)
    twin = copy.deepcopy(compiled)
    cache.detach()
    assert type(twin) is type(compiled) and type(twin._orig_mod.blocks) is nn.ModuleList


def test_model_that_does_not_walk_its_list_is_refused(model):
    def by_index(x, t, context):
        hidden = torch.stack(x)
        for index in range(len(model.blocks)):
            hidden = model.blocks[index](hidden, e=t)
        return list(hidden)

    model.forward = by_index
    cache = start(model, toy_plan([intervals(both(0), [[1, 2]])]))
    cache.begin(0, "cond")
    with pytest.raises(ValueError, match="walked over its blocks 0 times in one call"):
        model([torch.ones(5, 8)], torch.ones(1), 0.0)


def test_a_block_that_is_given_less_than_it_returns_is_refused(model):
    class Pair(nn.Module):
        def forward(self, x, e):
            return x, x + 1.0, x + 2.0

    model.blocks = nn.ModuleList(Pair() for _ in range(6))
    model.forward = lambda x, t, context: (
        [model.blocks[0](torch.stack(x), e=t)[0]]
        + [block(torch.stack(x), e=t) for block in model.blocks]
    )
    cache = start(model, toy_plan([intervals(both(0), [[1, 2]])]))
    cache.begin(0, "cond")
    with pytest.raises(ValueError, match="must be its leading arguments"):
        model([torch.ones(5, 8)], torch.ones(1), 0.0)


class TextFirst(ToyHunyuan):
    """Its double blocks return text first, as Flux's do; `between` is done to what they hand on."""

    def __init__(self, between=lambda img, number: img):
        super().__init__()
        for block in self.double_blocks:
            own = block.forward
            block.forward = lambda img, txt, vec, own=own: own(img, txt, vec)[::-1]
        self.between = between

    def forward(self, x, t, txt):
        img = x
        for number, block in enumerate(self.double_blocks):
            txt, img = block(self.between(img, number), txt, t.float().cos())
        return {"x": img}


@pytest.mark.parametrize("tokens", [3, 7])  # of the text; the image has 7
@pytest.mark.parametrize("run", [[0, 0], [3, 3], [1, 2], [0, 3]])
def test_blocks_that_return_text_first_are_refused_at_the_first_compute_step(tokens, run):
    plan = toy_plan(
        [intervals(both(0, 4), [run], block_list="double_blocks")], lists={"double_blocks": 4}
    )
    model = TextFirst()
    cache = start(model, plan)
    cache.begin(0, "cond")
    said = "DoubleBlock returns its tensors in another order|blocks return .* for an argument of"
    with torch.no_grad(), pytest.raises(PlanError, match=said):
        model(torch.ones(1, 7, 8), torch.ones(1), torch.ones(1, tokens, 8))


@pytest.mark.parametrize("add", [torch.Tensor.add, torch.Tensor.add_])
def test_what_the_model_adds_between_the_blocks_of_an_interval_is_refused(model, add):
    def hinted(x, t, context):
        hidden = torch.stack(x)
        for number, block in enumerate(model.blocks):
            hidden = block(add(hidden, 1.0) if number == 3 else hidden, e=t)
        return list(hidden)

    model.forward = hinted
    for run, refused in ([[2, 4], True], [[1, 3], True], [[3, 5], False], [[0, 2], False]):
        cache = start(model, toy_plan([intervals(both(0), [run])]))
        cache.begin(0, "cond")
        with torch.no_grad():
            if refused:
                with pytest.raises(PlanError, match="changes what block 2 returned before block 3"):
                    model([torch.ones(5, 8)], torch.ones(1), 0.0)
            else:
                model([torch.ones(5, 8)], torch.ones(1), 0.0)
        cache.detach()


def test_a_block_that_returns_another_shape_is_refused(model):
    for block in model.blocks:
        block.forward = lambda x, e: x[:, :1]
    cache = start(model, toy_plan([intervals(both(0), [[0, 2]])]))
    cache.begin(0, "cond")
    with pytest.raises(PlanError, match=r"return \(1, 1, 8\) for an argument of \(1, 5, 8\)"):
        model([torch.ones(5, 8)], torch.ones(1), 0.0)


def test_block_list_under_another_name_is_found_by_the_lists_argument():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ToyWan()

        def forward(self, x, t, context):
            return self.inner(x, t, context)

    plan, model = toy_plan(PLANS["release shape"]), Renamed()
    with pytest.raises(PlanError, match="this model none"):
        DeltaCache(plan).attach(model)
    cache = DeltaCache(plan, lists={"blocks": "inner.blocks"}).attach(model)
    run_clip(model, plan, cached_call(cache, model))
    assert cache.stats.block_runs == plan.expected.block_runs


def test_summary_names_cost_and_bytes_before_the_run():
    plan = CachePlan.loads(toy_plan(PLANS["release shape"]).dumps())
    text = "\n".join(summary_lines(plan, tokens=5, stream_itemsize=4, latent_numel=40))
    assert "blocks 0 2-4 (4 blocks): computed at 5 of 12 steps" in text
    assert f"holds at most {4 * 5 * 8 * 4} B" in text


def test_jump_plan_names_the_steps_of_the_solver_and_refuses_others(model):
    plan = toy_plan([prediction(both(0, 1, 4, 8), "jump")])
    assert plan.solver_steps == (0, 1, 4, 8)
    cache = DeltaCache(plan).attach(model)
    with pytest.raises(ValueError, match="jumps over step 2: give the solver only"):
        cache.begin(2, "cond")
    with pytest.raises(PlanError, match="lets the solver jump, but this loop's solver visits all"):
        cache.follow()

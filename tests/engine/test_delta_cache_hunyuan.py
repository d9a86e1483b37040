"""The engine on the HunyuanVideo transformer itself: both block lists, fp32 and bf16 autocast."""

import pytest
import torch

from devices import DEVICES
from hunyuan_clips import GRID, LISTS, WIDTH, Inputs, clip, planned, tiny_model
from hyvideo.model import HYVideoDiffusionTransformer
from naive_walk import naive
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.presets import build_preset, load_preset
from toys import equal, intervals, prediction, toy_plan

PRESETS = ("release", "paper", "foreground", "balanced")
CASES = {
    "one prompt": Inputs((5,)),
    "two prompts of different length": Inputs((9, 2)),
}


@pytest.fixture(scope="module", params=DEVICES)
def model(request):
    return tiny_model().to(request.param)


def tiny_plan(sites: list[dict], steps: int = 20) -> CachePlan:
    plan = toy_plan(sites, steps, LISTS)
    return plan.model_copy(update={"model": plan.model.model_copy(update={"width": WIDTH})})


def linear_plan() -> CachePlan:
    """Deltas of both lists forecast linearly, each list in its own rhythm."""
    double = intervals({"cond": [0, 1, 2, 7, 12]}, [[0, 1], [3, 3]], "linear", "double_blocks")
    single = intervals({"cond": [0, 2, 5, 9, 15]}, [[0, 0], [2, 5]], "linear", "single_blocks")
    return tiny_plan([double, single])


def plan_named(name: str) -> CachePlan:
    return linear_plan() if name == "linear" else build_preset(planned(), name)


def bare(model, plan, inputs, bf16=True):
    return clip(model, plan, inputs, lambda step, *args: model(*args)["x"], bf16)


def naively(model, plan, inputs, bf16=True):
    with naive(plan, model, {name: name for name in LISTS}, branches=1):
        return bare(model, plan, inputs, bf16)


def begun(cache, model):
    """The model's call at the position that the cache is given."""

    def call(step, *args):
        cache.begin(step)
        return model(*args)["x"]

    return call


def cached(model, plan, inputs, bf16=True):
    cache = DeltaCache(plan)

    with cache.attached(model):
        return clip(model, plan, inputs, begun(cache, model), bf16), cache.stats


@pytest.mark.parametrize(
    ("name", "bf16"),
    [*((name, True) for name in (*PRESETS, "linear")), ("release", False), ("linear", False)],
)
def test_plan_equals_the_naive_walk_bit_for_bit(model, name, bf16):
    plan, inputs = plan_named(name), CASES["one prompt"]
    outputs, report = cached(model, plan, inputs, bf16)
    assert equal(outputs, naively(model, plan, inputs, bf16))
    assert report.block_runs == plan.expected.block_runs
    assert {output.dtype for output in outputs} == {torch.bfloat16 if bf16 else torch.float32}
    assert not equal(outputs, bare(model, plan, inputs, bf16))


@pytest.mark.parametrize("name", ["release", "balanced", "linear"])
def test_batches_equal_the_naive_walk_bit_for_bit(model, name):
    plan, inputs = plan_named(name), CASES["two prompts of different length"]
    outputs, _ = cached(model, plan, inputs)
    assert equal(outputs, naively(model, plan, inputs))


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_all_compute_and_detached_are_bit_identical(model, bf16):
    every = {"cond": list(range(20))}
    runs = ([[0, 3]], [[0, 5]])
    lists = [intervals(every, r, block_list=n) for r, n in zip(runs, LISTS, strict=True)]
    plan, inputs = tiny_plan([prediction(every), *lists]), CASES["one prompt"]
    before = bare(model, plan, inputs, bf16)
    outputs, report = cached(model, plan, inputs, bf16)
    assert equal(outputs, before) and equal(bare(model, plan, inputs, bf16), before)
    # one branch: a full run is steps x blocks
    assert plan.expected.block_runs == plan.expected.block_runs_full == 20 * 10
    assert (report.block_runs, report.block_runs_full, report.peak_bytes) == (200, 200, 0)


def test_second_video_equals_the_first_whatever_was_between(model):
    plan, inputs = plan_named("release"), CASES["one prompt"]
    cache = DeltaCache(plan)
    call = begun(cache, model)

    with cache.attached(model):
        first = clip(model, plan, inputs, call, bf16=True)
        other = Inputs((9, 2), seed=4, grid=(1, 2, 2))  # another prompt, batch and size
        clip(model, plan, other, call, bf16=True)
        assert equal(clip(model, plan, inputs, call, bf16=True), first)
        assert cache.bytes_held == 0


@pytest.mark.parametrize(
    ("name", "bf16"), [*((name, False) for name in PRESETS), ("linear", False), ("linear", True)]
)
def test_bytes_held_are_those_of_the_formula(model, name, bf16):
    plan, inputs = plan_named(name), CASES["two prompts of different length"]
    cache, held = DeltaCache(plan), []

    def positioned(step, *args):
        cache.begin(step)
        output = model(*args)["x"]
        held.append(sum(a.nbytes for store in cache._stores() for a in store.anchors.values()))
        assert held[-1] == cache.bytes_held == cache.stats.bytes_held
        return output

    with cache.attached(model):
        clip(model, plan, inputs, positioned, bf16)
    size = 2 if bf16 else 4
    expected = bytes_held(
        plan,
        tokens=inputs.tokens(),
        stream_itemsize=size,
        latent_numel=inputs.x.numel(),
        prediction_itemsize=size,
    )
    assert cache.stats.peak_bytes == expected >= max(held) > 0
    assert held[-1] == 0


def test_double_delta_is_image_and_text_and_single_delta_is_joint(model):
    plan, inputs = build_preset(planned(), "release"), CASES["one prompt"]
    cache, shapes = DeltaCache(plan), {}

    def positioned(step, *args):
        cache.begin(step)
        output = model(*args)["x"]
        if step == 6:
            for walk in cache._walks:
                for interval in walk.intervals:
                    kept = [a.tensors for a in interval.anchors.values()]
                    shapes[interval.label] = [tuple(t.shape) for ts in kept for t in ts]
        return output

    with cache.attached(model):
        clip(model, plan, inputs, positioned, bf16=True)
    image, text = GRID[0] * GRID[1] * GRID[2], 5
    double = [(1, image, WIDTH), (1, text, WIDTH)]
    joint = [(1, image + text, WIDTH)]
    assert shapes.pop("double_blocks 1-3") == double
    assert shapes and all(found == joint for found in shapes.values())


def test_interval_never_spans_the_two_lists(model):
    # the last double and the first single block are reused side by side, as two intervals
    computed = {"cond": [0, 10]}
    double = intervals(computed, [[2, 3]], block_list="double_blocks")
    single = intervals(computed, [[0, 1]], block_list="single_blocks")
    plan, inputs = tiny_plan([double, single]), CASES["one prompt"]
    outputs, report = cached(model, plan, inputs)
    assert equal(outputs, naively(model, plan, inputs))
    assert report.reused_intervals == 2 * 18
    with pytest.raises(PlanError, match=r"sites\[0\]\.intervals: block 4 of 4 double_blocks"):
        tiny_plan([intervals(computed, [[2, 4]], block_list="double_blocks")])


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((WIDTH, 5, 6), "tiny has 5 double_blocks, this model 4"),
        ((WIDTH, 4, 7), "tiny has 7 single_blocks, this model 6"),
        ((96, 4, 6), "hidden width 96, this model 48"),
    ],
)
def test_plan_for_other_lists_or_width_is_refused(model, sizes, text):
    with pytest.raises(PlanError, match=text):
        DeltaCache(build_preset(planned(*sizes), "release")).attach(model)
    assert type(model) is HYVideoDiffusionTransformer and "_delta_cache" not in vars(model)


def test_text_of_another_length_between_compute_and_reuse_is_refused(model):
    plan = build_preset(planned(), "paper")
    cache, lens = DeltaCache(plan), iter([*[(5,)] * 7, (4,)])

    def positioned(step, x, t, text, mask, *rest):
        cache.begin(step)
        return model(x, t, text, Inputs(next(lens)).mask, *rest)["x"]

    with cache.attached(model), pytest.raises(ValueError, match="the size may not change"):
        clip(model, plan, CASES["one prompt"], positioned, bf16=True)
    assert cache.bytes_held == 0


def test_released_scheme_runs_1632_of_3000_blocks_on_20_double_and_40_single():
    plan = load_preset("hunyuan-video-t2v-720p", "release")
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"width": 8})})
    sizes = {"hidden_size": 8, "heads_num": 1, "rope_dim_list": (4, 2, 2)}
    depths = {"mm_double_blocks_depth": 20, "mm_single_blocks_depth": 40}
    model, inputs = tiny_model(**sizes, **depths), Inputs((2,), grid=(1, 2, 1))
    runs = []
    for block in [*model.double_blocks, *model.single_blocks]:
        block.register_forward_hook(lambda *_: runs.append(1))
    _, report = cached(model, plan, inputs)
    assert (report.block_runs, report.block_runs_full) == (1632, 3000) == (len(runs), 3000)
    assert report.peak_bytes == 9 * inputs.tokens() * 8 * 2


def test_model_without_guidance_is_cached_the_same_way():
    model, plan = tiny_model(guidance_embed=False), plan_named("release")
    inputs = CASES["two prompts of different length"]
    outputs, _ = cached(model, plan, inputs)
    assert equal(outputs, naively(model, plan, inputs))


def test_storing_a_bf16_stream_as_bfloat16_changes_no_bit_and_no_byte(model):
    plan, inputs = plan_named("linear"), CASES["one prompt"]
    outputs, report = cached(model, plan, inputs, bf16=True)
    half = plan.model_copy(update={"storage": "bfloat16"})
    same, same_report = cached(model, half, inputs, bf16=True)
    assert equal(same, outputs) and same_report.peak_bytes == report.peak_bytes > 0
    full, fp32_report = cached(model, plan, inputs, bf16=False)
    rounded, halved = cached(model, half, inputs, bf16=False)
    assert not equal(rounded, full) and 2 * halved.peak_bytes == fp32_report.peak_bytes

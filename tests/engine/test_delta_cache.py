"""The engine on toys: exactness, order of branches, memory, exceptions, errors, copies."""

import copy
import gc
import io
import signal
import threading
import time
import weakref

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from made_plans import plans
from naive_walk import naive
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.site_schedule import forecasts
from toys import (
    PLANS,
    ToyHunyuan,
    ToyWan,
    bare,
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


@pytest.mark.parametrize("name", PLANS)
def test_plan_equals_the_naive_walk_bit_for_bit(model, name):
    plan = toy_plan(PLANS[name])
    outputs, cache = cached(model, plan)
    assert equal(outputs, naively(model, plan))
    assert not equal(outputs, bare(model, plan))
    assert cache.stats.block_runs == plan.expected.block_runs


@settings(max_examples=60, deadline=None)
@given(plans())
def test_random_plan_equals_the_naive_walk_bit_for_bit(plan):
    torch.manual_seed(2)
    model = ToyWan(depth=plan.model.block_lists["blocks"])
    outputs, cache = cached(model, plan)
    assert equal(outputs, naively(model, plan))
    assert cache.stats.block_runs == plan.expected.block_runs
    held = bytes_held(plan, tokens=5, stream_itemsize=4, latent_numel=5 * 8)
    assert cache.stats.peak_bytes == held and cache.bytes_held == 0


def test_blocks_called_by_keyword_are_cached_as_by_position(model):
    plan = toy_plan(PLANS["linear deltas"])
    expected, _ = cached(model, plan)

    def by_keyword(x, t, context):
        hidden = torch.stack(x)
        for block in model.blocks:
            hidden = block(e=t.float().sin() + context, x=hidden)
        return list(model.head(hidden))

    model.forward = by_keyword
    outputs, cache = cached(model, plan)
    assert equal(outputs, expected)
    assert cache.stats.block_runs == plan.expected.block_runs


def test_a_tensor_that_a_block_hands_on_untouched_has_a_zero_delta():
    class KeepsText(nn.Module):
        def forward(self, x, text, e):
            return x + torch.tanh(x * e), text

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.dim, self.blocks = 8, nn.ModuleList(KeepsText() for _ in range(6))

        def forward(self, x, t, context):
            hidden, text = torch.stack(x), torch.stack(x) + context
            for block in self.blocks:
                hidden, text = block(hidden, text, e=t)
            return list(hidden + text)

    model, plan = Model(), toy_plan([intervals(both(*range(12)[::2]), [[2, 2], [4, 5]])])
    outputs, cache = cached(model, plan)
    assert not equal(outputs, bare(model, plan))
    assert cache.stats.reused_intervals == 2 * 2 * 6


def test_all_compute_plan_is_bit_identical_to_the_bare_model(model):
    every = both(*range(12))
    for sites in ([], [prediction(every), intervals(every, [[0, 2], [4, 5]])]):
        plan = toy_plan(sites)
        assert equal(cached(model, plan)[0], bare(model, plan))


def test_detach_gives_the_bare_model_back(model):
    plan = toy_plan(PLANS["release shape"])
    before = bare(model, plan)
    kept = (type(model), type(model.blocks), set(vars(model)), set(vars(model.blocks)))
    cached(model, plan)
    assert (type(model), type(model.blocks), set(vars(model)), set(vars(model.blocks))) == kept
    assert equal(bare(model, plan), before)


def test_second_video_equals_the_first(model):
    plan = toy_plan(PLANS["prediction and intervals"])
    cache = DeltaCache(plan).attach(model)
    first = run_clip(model, plan, cached_call(cache, model))
    run_clip(model, plan, cached_call(cache, model), seed=5)
    assert equal(run_clip(model, plan, cached_call(cache, model)), first)


def test_video_after_an_aborted_one_equals_the_first(model):
    plan = toy_plan(PLANS["release shape"])
    cache = DeltaCache(plan).attach(model)
    call = cached_call(cache, model)
    first = run_clip(model, plan, call)
    for step in range(5):
        call(step, "cond", [torch.ones(5, 8)], torch.tensor([1.0]), 0.0)
    assert equal(run_clip(model, plan, call), first)


def test_branches_never_mix(model):
    plan = toy_plan(PLANS["release shape"])
    alone = []

    def only(wanted):
        cache = DeltaCache(plan)
        with cache.attached(model):
            for step in range(plan.steps):
                cache.begin(step, wanted)
                context = 0.3 if wanted == "cond" else -0.2
                alone.append(model([torch.full((5, 8), 0.1)], torch.ones(1), context)[0])

    with torch.no_grad():
        only("cond")
        only("uncond")
        cache, mixed = DeltaCache(plan), {"cond": [], "uncond": []}
        with cache.attached(model):
            for step in range(plan.steps):
                for branch, context in (("cond", 0.3), ("uncond", -0.2)):
                    cache.begin(step, branch)
                    mixed[branch].append(
                        model([torch.full((5, 8), 0.1)], torch.ones(1), context)[0]
                    )
    assert equal(alone, mixed["cond"] + mixed["uncond"])


def test_reuse_adds_the_stored_delta_once_and_out_of_place():
    class Adds(nn.Module):
        def __init__(self, amount):
            super().__init__()
            self.amount = amount

        def forward(self, x):
            return x + self.amount

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Adds(10.0**i) for i in range(6))

        def forward(self, x, t):
            for block in self.blocks:
                x = block(x)
            return x

    model, x = Sum(), torch.zeros(2, 8)
    cache = DeltaCache(toy_plan([intervals({"cond": [0]}, [[1, 3]])], steps=2)).attach(model)
    cache.begin(0)
    assert model(x, None)[0, 0] == 111111
    for block, amount in zip(model.blocks, (2, 20, 200, 2000, 20000, 200000), strict=True):
        block.amount = float(amount)
    cache.begin(1)
    assert model(x, None)[0, 0] == 200000 + 20000 + 1110 + 2
    assert torch.equal(x, torch.zeros(2, 8))


def test_bf16_input_of_the_first_block_comes_back_as_its_fp32_output(model):
    plan = toy_plan([intervals({"cond": [0]}, [[0, 1]])], steps=2)
    seen = []
    model.blocks[2].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    cache = DeltaCache(plan).attach(model.bfloat16())
    with torch.no_grad():
        for step in range(2):
            cache.begin(step)
            model([torch.ones(5, 8).bfloat16()], torch.ones(1), 0.0)
    assert seen == [torch.float32] * 2


def test_delta_storage_in_bf16_halves_the_bytes_and_stays_close(model):
    plans_ = [
        toy_plan(PLANS["linear deltas"], storage=storage) for storage in ("stream", "bfloat16")
    ]
    (full, cache_full), (half, cache_half) = (cached(model, plan) for plan in plans_)
    assert cache_half.stats.peak_bytes * 2 == cache_full.stats.peak_bytes
    assert all(a.dtype == b.dtype for a, b in zip(full, half, strict=True))
    assert 0 < max((a - b).abs().max() for a, b in zip(full, half, strict=True)) < 0.1


def test_anchors_die_with_their_last_use_and_warmup_stores_nothing(model):
    plan = toy_plan([intervals(both(0, 1, 2, 3, 6), [[1, 2]])])
    cache = DeltaCache(plan).attach(model)
    held = []
    call = cached_call(cache, model)

    def watched(step, branch, *args):
        result = call(step, branch, *args)
        held.append(cache.bytes_held)
        return result

    run_clip(model, plan, watched)
    one = 5 * 8 * 4
    assert held[:6] == [0] * 6  # steps 0-2 serve no reuse
    assert held[6:10] == [one, 2 * one, 2 * one, 2 * one]
    assert held[10:12] == [one, 0]  # step 5 is the last use of step 3
    assert held[-1] == 0


def test_only_one_interval_input_is_alive_and_none_after_the_call(model):
    plan = toy_plan([intervals(both(0), [[0, 1], [3, 4]])])
    inputs = []
    for block in (model.blocks[0], model.blocks[3]):
        block.register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0])))
    alive = []

    def look(*_):
        gc.collect()
        alive.append([ref() is not None for ref in inputs])

    model.blocks[5].register_forward_pre_hook(look)
    cache = DeltaCache(plan).attach(model)
    cache.begin(0)
    with torch.no_grad():
        model([torch.ones(5, 8)], torch.ones(1), 0.0)
    gc.collect()
    assert alive == [[False, False]]
    assert all(ref() is None for ref in inputs)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_exception_in_a_block_frees_everything_and_the_next_clip_is_right(model, error):
    plan = toy_plan(PLANS["release shape"])
    expected, _ = cached(model, plan)
    cache = DeltaCache(plan).attach(model)
    original = model.blocks[3].forward

    def fail(*args, **kwargs):
        raise error

    call = cached_call(cache, model)
    with torch.no_grad():
        for step in range(3):
            call(step, "cond", [torch.ones(5, 8)], torch.ones(1), 0.0)
        model.blocks[3].forward = fail
        with pytest.raises(type(error)):
            call(6, "cond", [torch.ones(5, 8)], torch.ones(1), 0.0)
    assert cache.bytes_held == 0 and all(
        not interval.inputs for walk in cache._walks for interval in walk.intervals
    )
    model.blocks[3].forward = original
    assert equal(run_clip(model, plan, call), expected)


@pytest.fixture
def sigint():
    """Interrupts raise, also where the tests run in the background and a shell has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_from_another_thread_leaves_the_bare_model(model, sigint):
    import _thread

    plan = toy_plan(PLANS["release shape"])
    before = bare(model, plan)
    model.blocks[2].register_forward_hook(lambda *_: time.sleep(0.01))
    threading.Timer(0.1, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(100):
            cached(model, plan)
    model.blocks[2]._forward_hooks.clear()
    assert type(model) is ToyWan and equal(bare(model, plan), before)


def test_exception_after_the_loop_detaches_too(model):
    cache = DeltaCache(toy_plan(PLANS["release shape"]))
    with pytest.raises(OSError, match="decoder"), cache.attached(model):
        raise OSError("decoder")
    assert type(model) is ToyWan


# -- HunyuanVideo's shape


def run_hunyuan(model, plan, call):
    torch.manual_seed(3)
    x, txt = torch.randn(1, 7, 8), torch.randn(1, 3, 8)
    outputs = []
    with torch.no_grad():
        for step in range(plan.steps):
            outputs.append(call(step, x, torch.tensor([1.0 - step / plan.steps]), txt)["x"])
            x = x - 0.1 * outputs[-1]
    return outputs


HUNYUAN = {"double_blocks": 4, "single_blocks": 5}


def test_double_and_single_blocks_equal_the_naive_walk():
    torch.manual_seed(4)
    model = ToyHunyuan()
    plan = toy_plan(
        [
            intervals({"cond": [0, 1, 4, 8]}, [[1, 3]], block_list="double_blocks"),
            intervals({"cond": [0, 1, 6]}, [[0, 1], [3, 3]], block_list="single_blocks"),
        ],
        lists=HUNYUAN,
    )
    with naive(plan, model, {name: name for name in HUNYUAN}, branches=1):
        expected = run_hunyuan(model, plan, lambda step, *args: model(*args))
    cache = DeltaCache(plan).attach(model)

    def positioned(step, *args):
        cache.begin(step)
        return model(*args)

    assert equal(run_hunyuan(model, plan, positioned), expected)
    assert cache.stats.block_runs == plan.expected.block_runs
    assert all(block.marked for block in [*model.double_blocks, *model.single_blocks])


def test_dict_prediction_is_forecast_in_its_own_structure():
    model = ToyHunyuan()
    plan = toy_plan([prediction({"cond": [0, 1, 2, 5]}, "linear")], lists=HUNYUAN)
    cache = DeltaCache(plan).attach(model)

    def positioned(step, *args):
        cache.begin(step)
        return model(*args)

    outputs = run_hunyuan(model, plan, positioned)
    newest, older = forecasts(plan, plan.prediction, "cond")[3]
    assert (newest[0], older[0]) == (2, 1)
    assert torch.equal(outputs[3], (outputs[2] * newest[1]).add(outputs[1], alpha=older[1]))


def test_caller_may_change_a_prediction_in_place(model):
    plan = toy_plan([prediction({"cond": [0]})], steps=3)
    cache = DeltaCache(plan).attach(model)
    with torch.no_grad():
        cache.begin(0)
        first = model([torch.ones(5, 8)], torch.ones(1), 0.0)
        expected = first[0].clone()
        for step in (1, 2):
            first[0].zero_()
            cache.begin(step)
            first = model([torch.ones(5, 8)], torch.ones(1), 0.0)
            assert torch.equal(first[0], expected)


# -- what a user sees


def test_model_keeps_its_names_length_and_indices_while_attached(model):
    plan = toy_plan(PLANS["release shape"])
    names, blocks = list(model.state_dict()), list(model.blocks)
    DeltaCache(plan).attach(model)
    assert list(model.state_dict()) == names and list(model.blocks) == blocks
    assert len(model.blocks) == 6 and model.blocks[2] is blocks[2]
    assert list(model.blocks + model.blocks) == blocks * 2
    assert list(model.blocks[1:3]) == blocks[1:3]
    assert isinstance(model, ToyWan) and type(model).__name__ == "ToyWan"
    assert isinstance(model.blocks, nn.ModuleList)


def test_copies_and_pickles_of_an_attached_model_are_plain(model):
    plan = toy_plan(PLANS["release shape"])
    cache = DeltaCache(plan).attach(model)
    twin = copy.deepcopy(model)
    assert type(twin) is ToyWan and type(twin.blocks) is nn.ModuleList
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert type(loaded) is ToyWan and type(loaded.blocks) is nn.ModuleList
    cache.detach()
    assert equal(bare(twin, plan), bare(model, plan))
    assert equal(bare(loaded, plan), bare(model, plan))


def test_replaced_forward_of_model_and_blocks_is_respected(model):
    calls = []
    original = model.forward
    model.forward = lambda *a, **k: calls.append("model") or original(*a, **k)
    block = model.blocks[0].forward
    model.blocks[0].forward = lambda *a, **k: calls.append("block") or block(*a, **k)
    plan = toy_plan([intervals({"cond": [0]}, [[1, 5]])], steps=2)
    cache = DeltaCache(plan).attach(model)
    with torch.no_grad():
        for step in range(2):
            cache.begin(step)
            model([torch.ones(5, 8)], torch.ones(1), 0.0)
    assert calls == ["model", "block"] * 2


def test_attach_and_detach_take_milliseconds():
    model = ToyWan(depth=40)
    plan = toy_plan([intervals(both(0, 6), [[2, 30]])], lists={"blocks": 40})
    DeltaCache(plan).attach(model).detach()
    start = time.perf_counter()
    for _ in range(10):
        DeltaCache(plan).attach(model).detach()
    assert (time.perf_counter() - start) / 10 < 0.2  # a bound for a busy machine, not a timing


def test_step_past_the_planned_count_computes(model):
    plan = toy_plan(PLANS["every block"])
    cache = DeltaCache(plan).attach(model)
    run_clip(model, plan, cached_call(cache, model))
    with torch.no_grad():
        cache.begin(12, "cond")
        x, t = [torch.ones(5, 8)], torch.ones(1)
        late = model(x, t, 0.0)
        cache.detach()
        assert torch.equal(late[0], model(x, t, 0.0)[0])

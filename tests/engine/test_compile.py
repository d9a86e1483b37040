"""torch.compile under the cache: which graphs a plan adds."""

import sys
import types
from collections.abc import Callable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

import hyvideo.attention
import hyvideo.layers
import hyvideo.rope
import wan.attention
import wan.model
from profiling_core.loops.cached_loop import LoopCache, LoopModels
from profiling_core.plan import CachePlan
from toys import PLANS, ToyWan, bare, cached, toy_plan


def compilable():
    torch.manual_seed(1)
    model = ToyWan()
    for block in model.blocks:
        del block.runs  # a counter would be guarded and recompile every call
        block.forward = lambda x, e, b=block: x + torch.tanh(b.linear(x) + e)
    return model


def graphs():
    import torch._dynamo as dynamo

    assert not dynamo.utils.counters["graph_break"]
    return dynamo.utils.counters["stats"]["unique_graphs"]


def start_compiling():
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()


def wan_block():
    from wan.rope import rotation

    block = wan.model.Block(64, 128, 4, qk_norm=True, cross_attn_norm=True, eps=1e-6)
    rope = rotation((1, 4, 4), 16, 16, torch.device("cpu"))[None]
    return block, (torch.randn(1, 16, 64), torch.randn(1, 6, 64), torch.randn(1, 8, 64), rope)


def double_block():
    rope = hyvideo.rope.factors(torch.rand(16, 16), torch.rand(16, 16))
    img, txt, vec = torch.randn(1, 16, 64), torch.randn(1, 8, 64), torch.randn(1, 64)
    return hyvideo.layers.DoubleStreamBlock(64, 4, 2.0), (img, txt, vec, rope)


def single_block():
    rope = hyvideo.rope.factors(torch.rand(16, 16), torch.rand(16, 16))
    x, vec = torch.randn(1, 24, 64), torch.randn(1, 64)
    return hyvideo.layers.SingleStreamBlock(64, 4, 2.0), (x, vec, 8, rope)


@pytest.mark.parametrize("kernel", ["sdpa", "cudnn", "flash"])
@pytest.mark.parametrize("make", [wan_block, double_block, single_block])
def test_a_block_is_one_graph_with_every_attention_kernel(make, kernel, monkeypatch):
    """On the CPU, with a stand-in for flash-attn that no compiler can look into."""
    package = types.ModuleType("flash_attn")
    block, inputs = make()
    attention = wan.attention if make is wan_block else hyvideo.attention
    package.flash_attn_func = torch.compiler.disable(attention._sdpa)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    kernels = {
        "sdpa": attention._sdpa,
        "cudnn": attention._sdpa_by(attention.CUDNN, attention.FLASH, *attention.ANY),
        "flash": attention._flash("flash_attn")[1],
    }
    monkeypatch.setitem(attention._chosen, ("cpu", torch.bfloat16, 16), kernels[kernel])
    start_compiling()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for key_lens in (None, (12,)):
            expected = block(*inputs, key_lens)
            found = torch.compile(block, backend="aot_eager", fullgraph=True)(*inputs, key_lens)
            torch.testing.assert_close(found, expected)
    assert graphs() == 2  # one for each kind of call


def test_per_block_compile_adds_no_graph():
    model, plan = compilable(), toy_plan(PLANS["linear deltas"])
    expected, _ = cached(model, plan)
    start_compiling()
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    bare(model, plan)
    before = graphs()
    outputs, _ = cached(model, plan)
    assert graphs() == before > 0
    torch.testing.assert_close(outputs, expected)


def test_whole_model_compile_adds_one_graph_per_kind_of_call():
    model, plan = compilable(), toy_plan(PLANS["release shape"])
    expected, _ = cached(model, plan)
    start_compiling()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    bare(compiled, plan)
    before = graphs()
    outputs, cache = cached(compiled, plan)
    assert graphs() == before + 3  # all blocks run, deltas kept, deltas reused
    assert cache.stats.block_runs == plan.expected.block_runs
    torch.testing.assert_close(outputs, expected)


def clip(model: nn.Module, scheduler: FlowMatchEulerDiscreteScheduler) -> torch.Tensor:
    scheduler.set_timesteps(12)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        with torch.no_grad():
            cond, uncond = (model([x], t, context)[0] for context in (0.3, -0.2))
        x = scheduler.step(uncond + 2 * (cond - uncond), t, x).prev_sample
    return x


def loop_cache(model: nn.Module, plan: CachePlan) -> LoopCache:
    return LoopCache(lambda grid: plan, LoopModels((model,)), lambda line: None)


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="aot_eager")
    return model


@pytest.mark.parametrize("whole", [in_place, lambda m: torch.compile(m, backend="aot_eager")])
def test_a_compiled_whole_model_gives_every_clip_right_without_new_graphs(whole: Callable) -> None:
    model, scheduler = compilable(), FlowMatchEulerDiscreteScheduler()
    plan, found = toy_plan(PLANS["release shape"]), []
    with loop_cache(model, plan).running(scheduler) as bare_cache:
        expected = clip(model, scheduler)
    start_compiling()
    compiled = whole(model)
    cache = loop_cache(compiled, plan)
    for _ in range(3):
        with cache.running(scheduler):
            torch.testing.assert_close(clip(compiled, scheduler), expected)
        assert cache.stats == bare_cache.stats and cache.stats.reused_intervals
        found.append(graphs())
    assert 0 < found[0] == found[2]

"""torch.compile under the cache: which graphs a plan adds."""

import torch

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

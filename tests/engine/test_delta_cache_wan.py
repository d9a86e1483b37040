"""The engine on the Wan transformer itself, under bf16 autocast as the pipeline runs it."""

import pytest
import torch

from devices import DEVICES
from naive_walk import naive
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan import CachePlan
from profiling_core.plan.site_schedule import forecasts
from toys import both, equal, intervals, prediction, toy_plan
from wan_toys import tiny_dit

LATENT, TOKENS, DEPTH = (16, 3, 4, 4), 12, 5


@pytest.fixture(params=DEVICES)
def model(request):
    return tiny_dit(num_layers=DEPTH).to(request.param)


def wan_plan(sites: list[dict], steps: int = 8) -> CachePlan:
    plan = toy_plan(sites, steps, {"blocks": DEPTH})
    return plan.model_copy(update={"model": plan.model.model_copy(update={"width": 48})})


def clip(model, plan, call):
    """Predictions of a short loop with both branches, prompts of different length."""
    generator, device = torch.Generator().manual_seed(3), next(model.parameters()).device
    x = torch.randn(LATENT, generator=generator).to(device)
    texts = [torch.randn(rows, model.text_dim, generator=generator).to(device) for rows in (9, 4)]
    outputs = []
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for step in range(plan.steps):
            t = torch.tensor([int(1000 * plan.sigmas[step])], device=device)
            for branch, text in zip(("cond", "uncond"), texts, strict=True):
                outputs.append(call(step, branch, x, t, text))
            x = x - 0.1 * outputs[-2]
    return outputs


def bare(model, plan):
    return clip(model, plan, lambda step, branch, x, t, text: model([x], t, [text], TOKENS)[0])


def cached(model, plan):
    cache = DeltaCache(plan)

    def call(step, branch, x, t, text):
        cache.begin(step, branch)
        return model([x], t, [text], TOKENS)[0]

    with cache.attached(model):
        return clip(model, plan, call), cache.stats


def naively(model, plan):
    with naive(plan, model, {"blocks": "blocks"}, branches=2):
        return bare(model, plan)


@pytest.mark.parametrize("runs", [[[0, 0], [2, 3]], [[0, 4]], [[1, 1], [4, 4]]])
def test_interval_plan_equals_the_naive_walk_bit_for_bit(model, runs):
    plan = wan_plan([intervals(both(0, 1, 2, 5), runs)])
    outputs, report = cached(model, plan)
    assert equal(outputs, naively(model, plan))
    assert not equal(outputs, bare(model, plan))
    assert report.block_runs == plan.expected.block_runs
    assert report.peak_bytes == 2 * len(runs) * TOKENS * 48 * 4  # fp32 stream, both branches


def test_all_compute_and_detached_are_bit_identical(model):
    every = both(*range(8))
    plan = wan_plan([prediction(every), intervals(every, [[0, 3]])])
    before = bare(model, plan)
    assert equal(cached(model, plan)[0], before)
    assert equal(bare(model, plan), before)


def test_reuse_of_the_first_interval_returns_the_fp32_stream(model):
    dtypes = []
    model.blocks[2].register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    cached(model, wan_plan([intervals(both(0, 4), [[0, 1]])]))
    assert set(dtypes) == {torch.float32} and len(dtypes) == 16


def test_prediction_is_forecast_as_a_list_without_running_the_model(model):
    plan = wan_plan([prediction(both(0, 1, 2, 4), "linear")])
    outputs, report = cached(model, plan)
    assert report.model_calls == 8 and report.reused_calls == 8
    (newest, w1), (older, w0) = forecasts(plan, plan.prediction, "cond")[3]
    expected = (outputs[2 * newest] * w1).add(outputs[2 * older], alpha=w0)
    assert torch.equal(outputs[6], expected)

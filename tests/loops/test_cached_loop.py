"""Guidance that begins late, ends early or makes three calls a step, in loops that are not ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    LayerSkipConfig,
    SkipLayerGuidance,
)
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

from diffusers_plans import intervals, made_plan, prediction
from profiling_core import cache_pipeline
from profiling_core.loops.cached_loop import LoopCache, LoopModels
from profiling_core.loops.scheduler_grid import grid_of
from profiling_core.plan import CachePlan
from tiny_pipelines import STEPS, build
from toys import ToyHunyuan, ToyWan, both, toy_plan
from toys import intervals as of_blocks
from toys import prediction as of_all

COMPUTED = (0, 1, 5, 9)
RUN = (1, 3)
PROMPTS = {"cond": torch.full((8,), 0.3), "uncond": torch.full((8,), -0.2)}
GUIDANCE: dict[str, Callable[[int], tuple[str, ...]]] = {
    "always": lambda step: ("cond", "uncond"),
    "begins late": lambda step: ("cond", "uncond")[: 1 + (step >= 3)],
    "ends early": lambda step: ("cond", "uncond")[: 1 + (step < 6)],
    "pauses": lambda step: ("cond", "uncond")[: 1 + (step not in (4, 5, 6))],
    "uncond first, begins late": lambda step: ("uncond", "cond")[step < 3 :],
    "uncond first, ends early": lambda step: ("uncond", "cond")[step >= 6 :],
    "three": lambda step: ("cond", "uncond", "skip"),
    "three for a while": lambda step: ("cond", "uncond", "skip")[: 2 + (2 <= step < 8)],
    "skip after uncond": lambda step: ("cond", "skip" if step > 6 else "uncond"),
}


class Weak(ToyWan):
    """Its perturbed prediction has the same prompt, weaker."""

    def forward(self, x: Any, t: Any, context: Any, scale: float = 1.0) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, e=t.float().sin() + scale * context)
        return self.head(x)


class Naive:
    """Holds the prediction, or the blocks of RUN, apart for every name of a call."""

    def __init__(self, blocks: bool) -> None:
        self.blocks, self.kept = blocks, {}

    def __call__(self, model: Weak, x: Any, t: Any, name: str, scale: float, step: int) -> Any:
        held = self.kept.get((name, max(s for s in COMPUTED if s <= step)), None)
        context = PROMPTS.get(name, PROMPTS["cond"])
        if not self.blocks:
            self.kept[name, step] = held = model(x, t, context, scale) if held is None else held
            return held
        e, (first, last) = t.float().sin() + scale * context, RUN
        for block in model.blocks[:first]:
            x = block(x, e=e)
        before = x
        if held is None:
            for block in model.blocks[first : last + 1]:
                x = block(x, e=e)
            self.kept[name, step] = x - before
        else:
            x = before + held
        for block in model.blocks[last + 1 :]:
            x = block(x, e=e)
        return model.head(x)


def clip(model: Weak, calls: Callable, scheduler: Any, naive: Naive | None = None) -> torch.Tensor:
    scheduler.set_timesteps(12)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for step, t in enumerate(scheduler.timesteps):
        found = {}
        for name in calls(step):
            scale = 0.5 if name == "skip" else 1.0
            if naive is None:
                found[name] = model(x, t, PROMPTS.get(name, PROMPTS["cond"]), scale)
            else:
                found[name] = naive(model, x, t, name, scale, step)
        guided = sum(((found["cond"] - found[name]) for name in found), found["cond"])
        x = scheduler.step(guided, t, x).prev_sample
    return x


def planned(scheduler: Any, sites: list[dict], **lists: int) -> CachePlan:
    scheduler.set_timesteps(12)
    return toy_plan(sites, lists=lists or {"blocks": 6}).replace(**grid_of(scheduler).sampling)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_that_changes_reuses_what_its_own_calls_computed(name: str, blocks: bool) -> None:
    torch.manual_seed(0)
    model, scheduler, calls = Weak(), FlowMatchEulerDiscreteScheduler(), GUIDANCE[name]
    sites = [of_blocks(both(*COMPUTED), [list(RUN)]) if blocks else of_all(both(*COMPUTED))]
    plan = planned(scheduler, sites)
    cache = LoopCache(lambda grid: plan, LoopModels((model,)), lambda line: None)
    for _ in range(2):
        with cache.running(scheduler):
            found = clip(model, calls, scheduler)
        torch.testing.assert_close(found, clip(model, calls, scheduler, Naive(blocks)))
    assert cache.stats.block_runs_full == 6 * sum(len(calls(step)) for step in range(12))
    assert cache.stats.reused_intervals + cache.stats.reused_calls > 0


@torch.no_grad()
@pytest.mark.parametrize("blocks", [False, True])
def test_batched_guidance_that_ends_computes_until_the_next_compute_step(blocks: bool) -> None:
    torch.manual_seed(0)
    model, scheduler, ran = ToyHunyuan(), FlowMatchEulerDiscreteScheduler(), []
    lists = ("double_blocks", "single_blocks")
    of_lists = [of_blocks(both(*COMPUTED), [[1, 2]], block_list=name) for name in lists]
    sites = of_lists if blocks else [of_all(both(*COMPUTED))]
    plan = planned(scheduler, sites, double_blocks=4, single_blocks=5)
    model.single_blocks[1].register_forward_hook(lambda *_: ran.append(step))
    with LoopCache(lambda grid: plan, LoopModels((model,)), lambda line: None).running(scheduler):
        scheduler.set_timesteps(12)
        x = torch.randn(1, 7, 8)
        for step, t in enumerate(scheduler.timesteps):
            batch = 2 if step < 6 else 1
            found = model(torch.cat([x] * batch), t, torch.ones(batch, 3, 8))["x"]
            x = scheduler.step(found[:1], t, x).prev_sample
    assert ran == [0, 1, 5, 6, 7, 8, 9]


SKIP = SkipLayerGuidance(
    guidance_scale=3.0,
    skip_layer_guidance_start=0.2,
    skip_layer_guidance_stop=0.8,
    skip_layer_config=LayerSkipConfig(indices=[2, 3]),
)
GUIDERS = {
    "begins late": ClassifierFreeGuidance(guidance_scale=3.0, start=0.35),
    "ends early": ClassifierFreeGuidance(guidance_scale=3.0, stop=0.65),
    "three for a while": SKIP,
}


@pytest.mark.parametrize("guider", GUIDERS)
def test_diffusers_guiders_that_change_the_calls_of_a_step(guider: str) -> None:
    tiny, calls = build("hunyuan15"), []
    block = type(
        tiny.pipe.transformer.transformer_blocks[0]
    )  # unknown to diffusers' layer skipping
    TransformerBlockRegistry.register(block, TransformerBlockMetadata(0, 1))
    plan_all = made_plan(tiny, prediction("hold", tuple(range(STEPS))))
    plans = [made_plan(tiny, sites) for sites in (intervals(tiny), prediction("hold"))]
    tiny.pipe.guider = GUIDERS[guider]
    counted = tiny.pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    full, blocks = tiny.latents(), 6 * len(calls)
    counted.remove()
    assert blocks != 6 * 2 * STEPS
    with cache_pipeline(tiny.pipe, plan_all) as cache:
        assert torch.equal(tiny.latents(), full)
    for plan in plans:
        with cache_pipeline(tiny.pipe, plan) as cache:
            found = tiny.latents()
        assert cache.stats.block_runs_full == blocks > cache.stats.block_runs
        assert torch.isfinite(found).all() and not torch.equal(found, full)

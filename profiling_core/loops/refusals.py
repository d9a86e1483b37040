"""What a cached diffusers pipeline cannot be combined with, and how to get on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from profiling_core.engine.block_lists import unwrapped
from profiling_core.engine.seams import CACHE
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan

_GROUPS = ("group_offloading", "lazy_prefetch_group_offloading")  # diffusers' hooks


def refuse_other_caches(pipe: Any, models: Iterable[nn.Module]) -> None:
    """PlanError names a cache that is enabled already: two would skip each other's steps."""
    for model in models:
        inner = unwrapped(model)
        other = _other_cache(inner)
        if other is not None:
            raise PlanError(
                f"{other[0]} is enabled on this {type(inner).__name__} already: two caches would "
                f"reuse what the other one reused; first {other[1]}"
            )


def refuse_intervals(plan: CachePlan, models: Iterable[nn.Module]) -> None:
    """PlanError where blocks may not be skipped while the model runs."""
    for model in models:
        reason = _against_skipping_blocks(unwrapped(model))
        if reason is not None:
            raise PlanError(
                f"plan {plan.name!r} skips blocks, but {reason}: take a plan that reuses the whole "
                "prediction (quality, balanced, fast)"
            )


def _other_cache(model: nn.Module) -> tuple[str, str] | None:
    """Its name and how to disable it."""
    if getattr(model, "is_cache_enabled", False):
        return f"diffusers' {type(model._cache_config).__name__}", "call disable_cache()"
    if getattr(model, "_is_cached", False):
        return "cache-dit", "call cache_dit.disable_cache(pipe)"
    if CACHE in vars(model):
        return "a DeltaCache", "detach it"
    return None


def _against_skipping_blocks(model: nn.Module) -> str | None:
    if getattr(model, "_parallel_config", None) is not None:
        return (
            "diffusers' context parallelism shards the tokens in a hook of the first block, which "
            "may not be left out"
        )
    if type(model).__name__ == "WanVACETransformer3DModel":
        return "diffusers' VACE adds its hints between the blocks, which a delta would add twice"
    if any(_prefetches(module) for module in model.modules()):
        return "group offloading with a stream fetches the next group in a fixed order"
    return None


def _prefetches(module: nn.Module) -> bool:
    """Is it offloaded in a group with a stream of its own?"""
    registry = getattr(module, "_diffusers_hook", None)
    hooks = [registry.get_hook(name) for name in _GROUPS] if registry is not None else []
    return any(getattr(getattr(hook, "group", None), "stream", None) is not None for hook in hooks)

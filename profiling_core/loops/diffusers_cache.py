"""cache_pipeline: one call that lets a diffusers pipeline run by a plan.

    with cache_pipeline(pipe, "balanced"):
        video = pipe(prompt, num_inference_steps=50).frames[0]

Without the with block the pipeline stays cached until `.detach()`. The only change to the pipeline
is the class of the object, which is given back. Between calls its models are the bare ones; during
a call a `DeltaCache` is attached to each, once the scheduler has its noise levels. A plan that
jumps (`balanced` with a multistep solver) shortens them: the progress bar then ends at the steps
that were computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

from torch import nn

from profiling_core.engine.block_lists import unwrapped
from profiling_core.engine.run_stats import RunStats
from profiling_core.engine.seams import CACHE
from profiling_core.errors import PlanError
from profiling_core.loops.cached_loop import Log, LoopCache, LoopModels
from profiling_core.loops.diffusers_models import (
    checked_name,
    fingerprint_of,
    loop_models,
    plan_for_solver,
)
from profiling_core.loops.scheduler_grid import Grid
from profiling_core.plan import CachePlan

_RUNNER = "_delta_pipeline"  # key in the instance dict of a pipeline
# packages whose decorators, hooks and sequence parallelism replace a forward and keep nothing,
# other than their modules named after a cache, as xfuser's
_HARMLESS = {"torch", "accelerate", "diffusers", "xfuser", "yunchang"}
_GROUPS = ("group_offloading", "lazy_prefetch_group_offloading")  # diffusers' hooks

logger = logging.getLogger("profiling_core")


def cache_pipeline(
    pipe: Any, plan: CachePlan | str | Path = "balanced", *, log: Log = logger.info
) -> PipelineCache:
    """Let `pipe`, a diffusers pipeline with a transformer of blocks, run by `plan` from now on.

    plan: a CachePlan, a plan file, or a preset: quality, balanced, fast; paper and release for the
    models that have them. It is regridded to the steps, shift and solver of each call.
    log: gets what a run will compute and what it did, a line at a time; by default the logger
    "profiling_core".

    Returns a context manager with `.detach()`; `.plan` and `.stats` are of the last call.
    PlanError (a ValueError) for a plan of another model, a pipeline that has another cache enabled,
    and what cannot be combined; see docs/models.md.
    """
    return PipelineCache(pipe, plan, log)


class PipelineCache:
    """A pipeline that runs by a plan; see cache_pipeline."""

    def __init__(self, pipe: Any, plan: CachePlan | str | Path, log: Log) -> None:
        self.pipe = pipe
        found = self._found()
        self._asked = checked_name(plan, self._model)
        self._loop = LoopCache(self._plan_for, found, log)
        run_calls_through(pipe, self._call)

    @property
    def plan(self) -> CachePlan | None:
        """The plan of the last call, on its grid; None before the first."""
        return self._loop.plan

    @property
    def stats(self) -> RunStats:
        """What the last call computed, reused and held."""
        return self._loop.stats

    def detach(self) -> None:
        """Give the pipeline its own call back."""
        give_calls_back(self.pipe, self._call)

    def __enter__(self) -> PipelineCache:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.detach()

    def _call(self, call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        self._loop.found = self._found()  # a user may have compiled, wrapped or replaced the models
        with self._loop.running(self.pipe.scheduler, owner=self.pipe):
            return call(*args, **kwargs)

    def _found(self) -> LoopModels:
        found = loop_models(self.pipe)
        self._model = fingerprint_of(found.models[0])
        refuse_other_caches(found.models)
        return found

    def _plan_for(self, grid: Grid) -> CachePlan:
        plan = plan_for_solver(self._asked, self._model, grid.solver)
        if plan.interval_sites:
            refuse_intervals(plan, self._loop.found.models)
        return plan


def run_calls_through(pipe: Any, runner: Callable[..., Any]) -> None:
    """Let `runner(call, args, kwargs)` answer a pipeline's calls; PlanError beside another."""
    if _RUNNER in vars(pipe):
        raise PlanError(
            f"this {type(pipe).__name__} is cached or profiled already: detach that first"
        )
    vars(pipe)[_RUNNER] = runner
    plain: type = type(pipe)
    pipe.__class__ = _called_class(plain)


def give_calls_back(pipe: Any, runner: Callable[..., Any]) -> None:
    """Undo `run_calls_through`, unless another runner came since."""
    if vars(pipe).get(_RUNNER) != runner:
        return
    del vars(pipe)[_RUNNER]
    plain: type = type(pipe).__mro__[1]
    if type(pipe) is _called_class(plain):
        pipe.__class__ = plain


@cache
def _called_class(plain: type) -> type:
    """`plain` whose call goes through the runner of the object; named like it."""

    @wraps(plain.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        runner = vars(self).get(_RUNNER)
        if runner is None:
            return plain.__call__(self, *args, **kwargs)
        return runner(lambda *a, **k: plain.__call__(self, *a, **k), args, kwargs)

    named = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain)(plain.__name__, (plain,), {"__call__": __call__, **named})


def refuse_other_caches(models: Iterable[nn.Module]) -> None:
    """PlanError names a cache that is enabled already: two would skip each other's steps."""
    for model in models:
        inner = unwrapped(model)
        other = _other_cache(inner)
        if other is not None:
            raise PlanError(
                f"{other[0]} is enabled on this {type(inner).__name__} already: two caches would "
                f"reuse what the other one reused; first {other[1]}"
            )
        lists = (child for child in inner.children() if isinstance(child, nn.ModuleList))
        for module in (inner, *(unwrapped(block) for blocks in lists for block in blocks)):
            replaced = _foreign_forward(module)
            if replaced is not None:
                raise PlanError(
                    f"the forward of this {type(module).__name__} was replaced by {replaced}: what "
                    "it keeps between calls, as another cache does, would go from clip to clip; "
                    "first give the module its own forward back"
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
    """The name of the enabled cache, and how to disable it."""
    if getattr(model, "is_cache_enabled", False):
        return f"diffusers' {type(model._cache_config).__name__}", "call disable_cache()"
    if getattr(model, "_is_cached", False):
        return "cache-dit", "call cache_dit.disable_cache(pipe)"
    if CACHE in vars(model):
        return "a DeltaCache", "detach it"
    for module in model.modules():
        for name, hook in getattr(vars(module).get("_diffusers_hook"), "hooks", {}).items():
            if hook._is_stateful:
                return f"diffusers' hook {name!r}, which keeps a state,", "remove the hook"
    return None


def _foreign_forward(module: nn.Module) -> str | None:
    """The name of a forward that the module's own package, torch and hooks know nothing of."""
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    own = {kind.__module__.split(".")[0] for kind in (owner, type(module))}
    forward: Any = vars(module).get("forward", vars(owner)["forward"])
    while forward is not None:
        call = forward.func if isinstance(forward, partial) else forward
        call = getattr(call, "__func__", call)
        named = getattr(call, "__globals__", {"__name__": type(call).__module__})
        package, _, inside = named["__name__"].partition(".")
        if package not in own and (package not in _HARMLESS or "cache" in inside):
            code = getattr(call, "__code__", None)
            return f"{named['__name__']}.{code.co_name if code else type(call).__name__}"
        forward = getattr(forward, "__wrapped__", None)  # below a decorator, a hook, a compiler
    return None


def _against_skipping_blocks(model: nn.Module) -> str | None:
    if getattr(model, "_parallel_config", None) is not None:
        return (
            "diffusers' context parallelism shards the tokens in a hook of the first block, which "
            "may not be left out"
        )
    if type(model).__name__ == "WanVACETransformer3DModel":
        return "diffusers' VACE adds its hints between the blocks, which a delta would add twice"
    registries = [getattr(module, "_diffusers_hook", None) for module in model.modules()]
    hooks = [r.get_hook(name) for r in registries if r is not None for name in _GROUPS]
    if any(getattr(getattr(hook, "group", None), "stream", None) is not None for hook in hooks):
        return "group offloading with a stream fetches the next group in a fixed order"
    return None

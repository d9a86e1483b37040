"""LoopCache: runs a plan in a foreign denoising loop, of upstream or of diffusers.

    cache = LoopCache(plan_for, models)
    with cache.running(scheduler):      # a scheduler, or the classes of which the loop makes one
        pipeline(...)

When the loop sets its scheduler's timesteps, the plan is regridded to those levels, a plan that
jumps shortens them and may weight the solver's steps, and a DeltaCache is put on every model. At
the end of the run, exceptions included, models and scheduler are as they were. Where the loop
changes from one model to another (Wan2.2), every model gets the plan's steps on its own side;
nothing is reused across the change. A loop that begins in the middle (a `strength` below 1) gets
the plan's steps from there on: its begin is known from the `get_timesteps` of its owner, or from
the timestep of its first model call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from profiling_core.engine.anchors import Anchor
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.engine.run_stats import RunStats
from profiling_core.engine.seams import CACHE
from profiling_core.errors import PlanError, ProfileError
from profiling_core.loops.scheduler_grid import (
    Grid,
    SteppedLevels,
    around_calls,
    grid_of,
    takes_weights,
    visit_only,
    weighted,
    when_set,
)
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import block_runs_without, bytes_held
from profiling_core.plan.describe import format_bytes, storage_words, summary_lines
from profiling_core.plan.regrid import regrid
from profiling_core.plan.restrict import (
    also_computed,
    for_both_branches,
    on_steps,
    on_visited_steps,
    part_of,
    plain_jumps,
)

PlanFor = Callable[[Grid], CachePlan]
MOST_CALLS = 4  # of a step: cond, uncond, and those of skip-layer or perturbed guidance
Log = Callable[[str], None]


@dataclass(frozen=True)
class LoopModels:
    """The models that a loop calls, in this order.

    lists: attribute paths of the plan's block lists where they differ from its names; shares: given
    the scheduler, how many of its steps each model takes; boundary: the noise level where the first
    one's end.
    """

    models: tuple[nn.Module, ...]
    lists: dict[str, str] | None = None
    shares: Callable[[Any], Sequence[int]] | None = None
    boundary: float | None = None

    def steps_of(self, scheduler: Any, first: int = 0) -> list[int]:
        """How many steps each model takes of those from number `first` on."""
        found = [len(scheduler.timesteps)]
        found = found if self.shares is None else list(self.shares(scheduler))
        ends = [max(0, end - first) for end in accumulate(found)]
        return [end - before for before, end in pairwise([0, *ends])]

    def used(self, scheduler: Any, grid: Grid) -> tuple[list[nn.Module], float | None]:
        """The models that the loop calls, and the noise level where the second takes over.

        ProfileError for more than two.
        """
        counts = self.steps_of(scheduler)
        models = [model for model, count in zip(self.models, counts, strict=True) if count]
        if len(models) > 2:
            raise ProfileError(
                f"the loop takes turns between {len(models)} models: a profile is of two at most"
            )
        if len(models) < 2:
            return models, None
        above, below = grid.sigmas[counts[0] - 1], grid.sigmas[counts[0]]
        known = self.boundary is not None and below < self.boundary <= above
        return models, self.boundary if known else (above + below) / 2


@dataclass(frozen=True)
class SetGrid:
    """A scheduler as its `set_timesteps` left it, and what that was given."""

    scheduler: Any
    given: dict[str, Any]
    timesteps: torch.Tensor
    sigmas: torch.Tensor | None

    def restored(self) -> dict[str, Any]:
        """What `visit_only` changes, changed back."""
        whole = {"timesteps": self.timesteps, "num_inference_steps": len(self.timesteps)}
        whole |= {} if self.sigmas is None else {"sigmas": self.sigmas}
        for name, value in whole.items():
            setattr(self.scheduler, name, value)
        return whole


class LoopCache:
    """Runs of one loop, one after the other; `plan` and `stats` are the last run's.

    plan_for: the plan for a grid of noise levels, on that grid or another; PlanError when there is
    none. log: gets what the plan computes, before the first step, and what was done, after it.
    """

    def __init__(self, plan_for: PlanFor, found: LoopModels, log: Log) -> None:
        self.found = found  # of the next run
        self._plan_for, self.log = plan_for, log
        self._caches: list[DeltaCache] = []
        self._steps, self._solver = SteppedLevels(), ExitStack()
        self._set: SetGrid | None = None
        self._lines: list[str] = []  # to log when the first model call comes
        self.called = False
        self.plan: CachePlan | None = None
        self.stats = RunStats()

    @contextmanager
    def running(
        self, *targets: Any, shift: float | None = None, owner: Any = None
    ) -> Iterator[LoopCache]:
        """One run of the loop inside the with block.

        targets: its scheduler, or the classes of which it makes one; shift: where the loop applies
        it itself; owner: a pipeline, whose `get_timesteps` may leave out the first levels.
        """
        if self._caches:
            raise ValueError("this loop runs already: a second run inside it cannot be cached")

        def see(scheduler: Any, given: dict[str, Any]) -> None:
            facts = given | ({} if shift is None else {"shift": shift})
            self._set = SetGrid(
                scheduler, facts, scheduler.timesteps, getattr(scheduler, "sigmas", None)
            )
            self._start(self._set)

        self.plan, self.stats = None, RunStats()
        self._set, self.called = None, False
        with ExitStack() as seams:
            if hasattr(owner, "get_timesteps"):
                seams.enter_context(around_calls(owner, "get_timesteps", self._without_first))
            for target in targets:
                seams.enter_context(when_set(target, see))
                seams.enter_context(self._steps.of(target))
            try:
                yield self
                self._finish()
            finally:
                self._detach()

    def begins_late(self, timestep: Any) -> bool:
        """At the first model call: does the loop begin in the middle, and is it attached so now?"""
        if self._set is None or self.plan is None:
            return False
        self.called = True
        first = 0 if self.plan.jumps else self._steps.place_of(timestep)
        if first:
            self._start(self._set, first)
        for line in self._lines:
            self.log(line)
        return first > 0

    def _without_first(self, get_timesteps: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Answer a pipeline's `get_timesteps`, whose last value is the number of steps left."""
        if self._set is None:
            return get_timesteps(*args, **kwargs)
        scheduler, whole = self._set.scheduler, self._set.restored()
        bound = inspect.signature(get_timesteps).bind(*args, **kwargs)
        bound.arguments |= {k: v for k, v in whole.items() if k in bound.arguments}
        found = get_timesteps(*bound.args, **bound.kwargs)
        steps = whole["num_inference_steps"]
        first = steps - int(found[-1])
        self._start(self._set, first if first < steps else 0)
        if self.plan is None or not self.plan.jumps:
            return found
        if getattr(scheduler, "begin_index", None) is not None:
            scheduler.set_begin_index(0)
        left = whole["timesteps"][first:]
        cut = [scheduler.timesteps if _equal(value, left) else value for value in found[:-1]]
        return (*cut, len(scheduler.timesteps))

    def _start(self, grid_set: SetGrid, first: int = 0) -> None:
        """Regrid the plan and attach, for a loop that begins at step `first`."""
        self._detach()
        scheduler = grid_set.scheduler
        grid = grid_of(scheduler, grid_set.given)
        plan = self._plan_for(grid)
        plan = plan if takes_weights(scheduler) else plain_jumps(plan)
        plan = regrid(plan, grid.sigmas, solver=grid.solver, shift=grid.shift)
        counts = self.found.steps_of(scheduler)
        changes = [sum(counts[:n]) for n, count in enumerate(counts) if count]
        plan = also_computed(plan, [step for step in changes if step > first])
        plan = part_of(plan, range(first, grid.steps))
        self._lines = [*plan.notes, *summary_lines(plan)]
        self.plan, visited = plan, on_visited_steps(for_both_branches(plan))
        if plan.jumps:
            visit_only(scheduler, [first + step for step in plan.solver_steps])
            self._solver.enter_context(weighted(scheduler, plan.solver_weights))
            first = 0
        self._steps.start(scheduler, first)
        begin = 0
        counts = self.found.steps_of(scheduler, first)
        for model, count in zip(self.found.models, counts, strict=True):
            if count:
                part = on_steps(visited, range(begin, begin + count))
                cache = LoggedCache(part, self.found.lists, visited, self)
                self._caches.append(cache.attach(model))
                cache.follow(strict=True, calls=MOST_CALLS)
            begin += count

    def _finish(self) -> None:
        """Sum up what the run did."""
        if self.plan is None:
            raise PlanError(
                "the loop never called set_timesteps of its scheduler: there is nothing to attach "
                "a plan to; call begin(step, branch) in it instead"
            )
        self._steps.check_taken()
        calls = [count for cache in self._caches for count in cache.calls_made]
        for cache in self._caches:
            cache.clear()
        self.stats = _summed([cache.stats for cache in self._caches])
        if not self.stats.model_calls:
            raise PlanError(
                f"the loop never called its {type(self.found.models[0]).__name__}, so plan "
                f"{self.plan.name!r} was not used: attach it to the model that the loop calls"
            )
        self.stats.block_runs_full = block_runs_without(self.plan, calls)
        for line in self.stats.lines():
            self.log(line)

    def _detach(self) -> None:
        self._solver.close()
        while self._caches:
            self._caches.pop().detach()


class LoggedCache(DeltaCache):
    """Logs what the anchors will weigh, once: the first ones have the sizes of all.

    Nothing of it is inside the model's call, which may be compiled. whole: the plan of all models.
    The loop's first call shows where it begins; a cache for that place may answer it then.
    """

    def __init__(
        self, plan: CachePlan, lists: dict[str, str] | None, whole: CachePlan, loop: LoopCache
    ) -> None:
        super().__init__(plan, lists=lists)
        self._whole, self._loop, self._log = whole, loop, loop.log
        self._logged = False

    def call(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        model, tracker = self._model, self._tracker
        if (
            tracker is not None
            and not self._loop.called
            and self._loop.begins_late(tracker.timestep_of(args, kwargs))
        ):
            return vars(model)[CACHE].call(run, args, kwargs)
        return super().call(run, args, kwargs)

    def _account(self, step: int, branch: str) -> None:
        deltas = [a for walk in self._walks for i in walk.intervals for a in i.anchors.values()]
        predictions = [*self._prediction.anchors.values()] if self._prediction else []
        missing = (self._walks and not deltas) or (self._prediction and not predictions)
        if not self._logged and not missing:
            self._logged = True
            self._log_bytes(deltas[:1], predictions[:1])
        super()._account(step, branch)

    def _log_bytes(self, deltas: list[Anchor], predictions: list[Anchor]) -> None:
        width, plan = self._whole.model.width, self._whole
        held = bytes_held(
            plan,
            tokens=sum(tensor.numel() // width for a in deltas for tensor in a.tensors),
            stream_itemsize=deltas[0].dtypes[0].itemsize if deltas else 0,
            latent_numel=sum(tensor.numel() for a in predictions for tensor in a.tensors),
            prediction_itemsize=predictions[0].dtypes[0].itemsize if predictions else 0,
        )
        self._log(
            f"holds at most {format_bytes(held // len(plan.branches))} of anchors in "
            f"{storage_words(plan)}, for every model call of a step"
        )


def _equal(value: Any, tensor: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and torch.equal(value, tensor)


def _summed(several: Sequence[RunStats]) -> RunStats:
    """The counts of several models: runs and calls add up, of bytes the largest counts."""
    total = replace(several[0]) if several else RunStats()
    for stats in several[1:]:
        for name in ("block_runs", "model_calls", "reused_calls", "reused_intervals"):
            setattr(total, name, getattr(total, name) + getattr(stats, name))
        total.peak_bytes = max(total.peak_bytes, stats.peak_bytes)
        total.bytes_held = max(total.bytes_held, stats.bytes_held)
    return total

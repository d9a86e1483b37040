"""LoopCache: runs a plan in a foreign denoising loop, of upstream or of diffusers.

    cache = LoopCache(plan_for, models)
    with cache.running(scheduler):      # a scheduler, or the classes of which the loop makes one
        pipeline(...)

When the loop sets its scheduler's timesteps, the plan is regridded to those levels, a plan that
jumps shortens them and may weight the solver's steps, and a DeltaCache is put on every model. At
the end of the run, exceptions included, models and scheduler are as they were. Where the loop
changes from one model to another (Wan2.2), every model gets the plan's steps on its own side;
nothing is reused across the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from profiling_core.engine.anchors import Anchor
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.engine.run_stats import RunStats
from profiling_core.errors import PlanError
from profiling_core.loops.scheduler_grid import (
    Grid,
    SteppedLevels,
    grid_of,
    takes_weights,
    visit_only,
    weighted,
    when_set,
)
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import block_runs_without, bytes_held
from profiling_core.plan.describe import format_bytes, storage_words, summary_lines
from profiling_core.plan.regrid import plain_jumps, regrid
from profiling_core.plan.restrict import (
    also_computed,
    for_both_branches,
    on_steps,
    on_visited_steps,
)

PlanFor = Callable[[Grid], CachePlan]
MOST_CALLS = 4  # of a step: cond, uncond, and those of skip-layer or perturbed guidance
Log = Callable[[str], None]


@dataclass(frozen=True)
class LoopModels:
    """The models that a loop calls, in this order.

    lists: attribute paths of the plan's block lists where they differ from its names; shares: given
    the scheduler, how many of its steps each model takes.
    """

    models: tuple[nn.Module, ...]
    lists: dict[str, str] | None = None
    shares: Callable[[Any], Sequence[int]] | None = None

    def steps_of(self, scheduler: Any) -> list[int]:
        return [len(scheduler.timesteps)] if self.shares is None else list(self.shares(scheduler))


class LoopCache:
    """Runs of one loop, one after the other; `plan` and `stats` are the last run's.

    plan_for: the plan for a grid of noise levels, on that grid or another; PlanError when there is
    none. log: gets what the plan computes, before the first step, and what was done, after it.
    """

    def __init__(self, plan_for: PlanFor, found: LoopModels, log: Log) -> None:
        self.found = found  # of the next run
        self._plan_for, self._log = plan_for, log
        self._caches: list[DeltaCache] = []
        self._steps, self._solver = SteppedLevels(), ExitStack()
        self.plan: CachePlan | None = None
        self.stats = RunStats()

    @contextmanager
    def running(self, *targets: Any, shift: float | None = None) -> Iterator[LoopCache]:
        """One run of the loop inside the with block.

        targets: its scheduler, or the classes of which it makes one; shift: where the loop applies
        it itself.
        """
        if self._caches:
            raise ValueError("this loop runs already: a second run inside it cannot be cached")

        def see(scheduler: Any, given: dict[str, Any]) -> None:
            self._start(scheduler, given | ({} if shift is None else {"shift": shift}))

        self.plan, self.stats = None, RunStats()
        with ExitStack() as seams:
            for target in targets:
                seams.enter_context(when_set(target, see))
                seams.enter_context(self._steps.of(target))
            try:
                yield self
                self._finish()
            finally:
                self._detach()

    def _start(self, scheduler: Any, given: dict[str, Any]) -> None:
        """Regrid the plan and attach, once the scheduler's timesteps are set."""
        self._detach()
        grid = grid_of(scheduler, given)
        plan = self._plan_for(grid)
        plan = plan if takes_weights(scheduler) else plain_jumps(plan)
        plan = regrid(plan, grid.sigmas, solver=grid.solver, shift=grid.shift)
        counts = self.found.steps_of(scheduler)
        plan = also_computed(plan, [sum(counts[:n]) for n, count in enumerate(counts) if count])
        for line in (*plan.notes, *summary_lines(plan)):
            self._log(line)
        self.plan, visited = plan, on_visited_steps(for_both_branches(plan))
        if plan.jumps:
            visit_only(scheduler, plan.solver_steps)
            self._solver.enter_context(weighted(scheduler, plan.solver_weights))
        self._steps.start(scheduler)
        first, counts = 0, self.found.steps_of(scheduler)
        for model, count in zip(self.found.models, counts, strict=True):
            if count:
                part = on_steps(visited, range(first, first + count))
                cache = LoggedCache(part, self.found.lists, visited, self._log)
                self._caches.append(cache.attach(model))
                cache.follow(strict=True, calls=MOST_CALLS)
            first += count

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
            self._log(line)

    def _detach(self) -> None:
        self._solver.close()
        while self._caches:
            self._caches.pop().detach()


class LoggedCache(DeltaCache):
    """Logs what the anchors will weigh, once: the first ones have the sizes of all.

    Nothing of it is inside the model's call, which may be compiled. whole: the plan of all models.
    """

    def __init__(self, plan: CachePlan, lists: dict[str, str] | None, whole: CachePlan, log: Log):
        super().__init__(plan, lists=lists)
        self._whole, self._log = whole, log
        self._logged = False

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


def _summed(several: Sequence[RunStats]) -> RunStats:
    """The counts of several models: runs and calls add up, of bytes the largest counts."""
    total = replace(several[0]) if several else RunStats()
    for stats in several[1:]:
        for name in ("block_runs", "model_calls", "reused_calls", "reused_intervals"):
            setattr(total, name, getattr(total, name) + getattr(stats, name))
        total.peak_bytes = max(total.peak_bytes, stats.peak_bytes)
        total.bytes_held = max(total.bytes_held, stats.bytes_held)
    return total

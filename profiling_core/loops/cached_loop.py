"""LoopCache: runs a plan in a denoising loop that is not ours; upstream's and diffusers'.

    cache = LoopCache(plan_for, models)
    with cache.running(scheduler):      # a scheduler, or the classes of which the loop makes one
        pipeline(...)

Everything that depends on the run is settled when the loop sets its scheduler's timesteps: the plan
is carried by sigma to the grid of that moment, a plan that jumps shortens it, and only then is a
DeltaCache put on every model. At the end of the run, exceptions included, models and scheduler are
as they were. Where the loop changes from one model to another (Wan2.2), every model gets the plan's
steps on its own side of the change; nothing is reused across it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from profiling_core.engine.block_lists import block_list, unwrapped
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.engine.run_stats import RunStats
from profiling_core.errors import PlanError
from profiling_core.loops.loop_sizes import FirstCall
from profiling_core.loops.scheduler_grid import Grid, grid_of, visit_only, when_set
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import block_runs_full
from profiling_core.plan.describe import summary_lines
from profiling_core.plan.regrid import regrid
from profiling_core.plan.restrict import for_both_branches, on_steps, on_visited_steps

PlanFor = Callable[[Grid], CachePlan]
Tell = Callable[[str], None]


def _silent(line: str) -> None:
    """Tell nobody."""


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
        """How many of the scheduler's steps every model takes."""
        return [len(scheduler.timesteps)] if self.shares is None else list(self.shares(scheduler))


class LoopCache:
    """Runs of one loop, one after the other; `plan`, `stats` and `lines` are the last run's.

    plan_for: the plan for a grid of noise levels, on that grid or another; PlanError when there is
    none. tell: gets what the plan computes, before the first step, and what was done, after it.
    """

    def __init__(self, plan_for: PlanFor, found: LoopModels, tell: Tell = _silent) -> None:
        self._plan_for, self._found, self._tell = plan_for, found, tell
        self._caches: list[DeltaCache] = []
        self._first: FirstCall | None = None
        self.plan: CachePlan | None = None
        self.stats = RunStats()

    @property
    def models(self) -> tuple[nn.Module, ...]:
        return self._found.models

    def use(self, found: LoopModels) -> None:
        """Other models from the next run on."""
        self._found = found

    @contextmanager
    def running(self, *targets: Any, shift: float | None = None) -> Iterator[LoopCache]:
        """One run of the loop inside the with block.

        targets: its scheduler, or the classes of which it makes one; shift: where the loop applies
        it itself.
        """
        if self._caches:
            raise ValueError("this loop runs already: a second run inside it cannot be cached")

        def see(scheduler: Any, told: dict[str, Any]) -> None:
            self._start(scheduler, told | ({} if shift is None else {"shift": shift}))

        self.plan, self.stats = None, RunStats()
        with ExitStack() as seams:
            for target in targets:
                seams.enter_context(when_set(target, see))
            try:
                yield self
                self._finish()
            finally:
                self._detach()

    def _start(self, scheduler: Any, told: dict[str, Any]) -> None:
        """The scheduler's timesteps are set: settle the plan and attach."""
        self._detach()
        grid = grid_of(scheduler, told)
        plan = regrid(self._plan_for(grid), grid.sigmas, solver=grid.solver, shift=grid.shift)
        for line in (*plan.notes, *summary_lines(plan)):
            self._tell(line)
        self.plan, visited = plan, on_visited_steps(for_both_branches(plan))
        if plan.jumps:
            visit_only(scheduler, plan.solver_steps)
        first = 0
        try:
            for model, count in zip(
                self._found.models, self._found.steps_of(scheduler), strict=True
            ):
                part = range(first, first + count)
                if count:
                    cache = DeltaCache(on_steps(visited, part), lists=self._found.lists)
                    self._caches.append(cache.attach(model))
                    cache.follow(strict=True)
                    if visited.sites and len(self._caches) == 1:
                        self._first = self._first_call(model, visited)
                first += count
        except BaseException:
            self._detach()
            raise

    def _first_call(self, model: nn.Module, plan: CachePlan) -> FirstCall:
        last = list(plan.model.block_lists)[-1]
        blocks = block_list(unwrapped(model), last, self._found.lists)
        return FirstCall(model, blocks, plan, self._tell)

    def _finish(self) -> None:
        """Sum up what the run did."""
        if self.plan is None:
            raise PlanError(
                "the loop never called set_timesteps of its scheduler: there is nothing to attach "
                "a plan to; call begin(step, branch) in it instead"
            )
        for cache in self._caches:
            cache.clear()
        self.stats = _summed([cache.stats for cache in self._caches])
        branches = max((cache.branches_seen for cache in self._caches), default=1)
        full = block_runs_full(self.plan) * branches // len(self.plan.branches)
        self.stats.block_runs_full = full
        for line in self.stats.lines():
            self._tell(line)

    def _detach(self) -> None:
        if self._first is not None:
            self._first.close()
            self._first = None
        while self._caches:
            self._caches.pop().detach()


def _summed(several: Sequence[RunStats]) -> RunStats:
    """The counts of several models: runs and calls add up, of bytes the most counts."""
    total = replace(several[0]) if several else RunStats()
    for stats in several[1:]:
        for name in ("block_runs", "model_calls", "reused_calls", "reused_intervals"):
            setattr(total, name, getattr(total, name) + getattr(stats, name))
        total.peak_bytes = max(total.peak_bytes, stats.peak_bytes)
        total.bytes_held = max(total.bytes_held, stats.bytes_held)
    return total

"""DeltaCache: runs a plan on a model from outside; attach, begin, follow, detach.

Two seams, both a change of class that is undone by `detach`:

- the model: calling it goes through the cache first, so that a reuse step of the prediction does
  not run it at all (no hooks, no all-gather, no offload transfer);
- the block list: the same registered ModuleList, but iterating over it *while a call of the model
  is under way* gives one callable per block, of which those of a reused interval pass on what the
  first of them forecast. At any other time, and for indices, `len` and `+`, it is the plain list.

On a compute step that a later reuse needs, the first block of an interval remembers its input and
the last stores output minus input (equation 9); on a reuse step the first adds the weighted deltas
of the plan's anchors to its input, out of place (equations 13 and 14 for a weight of 1).
Whether a step computes follows from the plan and the position given to `begin` alone: no norm, no
host read, no collective, the same on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from profiling_core.engine.anchors import forecast_prediction, keep, tensors_of
from profiling_core.engine.block_lists import block_list, hidden_width, unwrapped
from profiling_core.engine.call_tracker import EXTRA, CallTracker
from profiling_core.engine.interval import AnchorStore, Call, Interval
from profiling_core.engine.run_stats import RunStats
from profiling_core.engine.seams import (
    CACHE,
    WALK,
    BlockWalk,
    attached_class,
    put_on,
    take_off,
    walked_class,
)
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import block_runs_full, block_share
from profiling_core.plan.schema import Branch, IntervalSite
from profiling_core.plan.site_schedule import SiteSchedule


class DeltaCache:
    """Runs `plan` on a model.

        cache = DeltaCache(plan).attach(model)
        for step, t in enumerate(timesteps):
            cache.begin(step, "cond")
            ...model(...)...
        cache.detach()

    `lists` maps block list names of the plan to attribute paths of the model where they differ.
    weighted: the loop's solver applies plan.solver_weights; without it a fitted plan is refused.
    Raises PlanError (a ValueError) when plan and model do not fit.
    """

    def __init__(
        self, plan: CachePlan, *, lists: dict[str, str] | None = None, weighted: bool = False
    ) -> None:
        if plan.solver_weights and not weighted:
            raise PlanError(
                f"plan {plan.name!r} has weights for the solver's steps, which your loop has to "
                "apply (weighted=True says so): or search a plan for it with --modes jump"
            )
        self.plan = plan
        self.stats = self._new_stats()
        self._lists = dict(lists or {})
        self._model: nn.Module | None = None
        self._walks: list[BlockWalk] = []
        self._prediction: AnchorStore | None = None
        self._position: tuple[int, str] | None = None
        self._last_step = -1
        self._called: dict[int, set[str]] = {}  # step of this video -> branches
        self._tracker: CallTracker | None = None
        self._busy = False

    @property
    def steps(self) -> int:
        """Steps of the plan's grid."""
        return self.plan.steps

    @property
    def solver_steps(self) -> tuple[int, ...]:
        """The steps that a solver has to visit."""
        return self.plan.solver_steps

    def _new_stats(self) -> RunStats:
        return RunStats(
            plan=self.plan.name,
            steps=self.steps,
            solver_steps=len(self.solver_steps),
            block_runs_full=block_runs_full(self.plan),
            place=self.plan.storage_place,
        )

    # -- attach and detach

    def attach(self, model: nn.Module) -> DeltaCache:
        """Put the cache in front of `model`; after FSDP, compile or offload wrapping."""
        if self._model is not None or CACHE in model.__dict__:
            raise ValueError("a cache is attached already: detach it first")
        inner = unwrapped(model)
        found = {name: block_list(inner, name, self._lists) for name in self.plan.model.block_lists}
        lists = {name: blocks for name, blocks in found.items() if blocks is not None}
        lengths = {name: len(blocks) for name, blocks in lists.items()}
        self.plan.check_model(lengths, hidden_width(inner))
        _check_apart(lists)
        self._build_stores(lists)
        self._model = model
        try:
            put_on(model, CACHE, self, attached_class)
            for walk in self._walks:
                put_on(walk.blocks, WALK, walk, walked_class)
        except BaseException:
            self.detach()
            raise
        self.clear()
        return self

    def detach(self) -> None:
        """Free every anchor and give model and lists their own classes back."""
        self.clear()
        for walk in self._walks:
            take_off(walk.blocks, WALK, walked_class)
        self._walks, self._prediction = [], None
        if self._model is not None:
            take_off(self._model, CACHE, attached_class)
            self._model = None
        if self._tracker is not None:
            self._tracker.restore()
            self._tracker = None

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[DeltaCache]:
        """`attach` for a with block; detached at its end, exceptions included."""
        self.attach(model)
        try:
            yield self
        finally:
            self.detach()

    def clear(self) -> None:
        """Free every anchor and forget the position: the next call starts a new video."""
        for store in self._stores():
            store.clear()
        self._position = None
        self._last_step, self._called = -1, {}
        self.stats.bytes_held = 0
        if self._tracker is not None:
            self._tracker.forget()

    # -- position

    def begin(self, step: int, branch: str = "cond") -> None:
        """Set step (0-based, of the plan's grid) and branch of the next model call.

        Steps past the planned count compute everything. A step below the last one starts a new
        video. ValueError for a negative step, an unknown branch, or a step that the plan jumps.
        """
        self._position = None
        if step < 0:
            raise ValueError(f"step {step} is negative: steps count from 0")
        branches = self.plan.branches if self._tracker is None else self._tracker.branches
        if branch not in branches:
            known = ", ".join(branches)
            raise ValueError(f"plan {self.plan.name!r} has no branch {branch!r}: it has {known}")
        if step < self._last_step:
            self.clear()
        if self.plan.jumps and step < self.plan.steps and step not in self.plan.solver_steps:
            raise ValueError(
                f"plan {self.plan.name!r} jumps over step {step}: give the solver only the noise "
                "levels of plan.solver_steps"
            )
        if self._last_step < 0:  # a new video
            self.stats = self._new_stats()
        self._position = (step, branch)
        self._last_step = step

    def follow(self, owner: Any = None, call: str | None = None, **options: Any) -> DeltaCache:
        """Derive step and branch from the model calls of a loop that is not ours; see CallTracker.

        `owner.call` (as a pipeline's `generate`) is wrapped so that a run starts clean and frees
        everything at its end, exceptions included.
        """
        if self.plan.jumps:
            raise PlanError(
                f"plan {self.plan.name!r} lets the solver jump, but this loop's solver visits all "
                "of its own noise levels: take a plan that holds or forecasts ('linear')"
            )
        if self._tracker is not None:
            raise ValueError("this cache follows a loop already: detach it first")
        self._tracker = CallTracker(self.plan, self.clear, owner, call, **options)
        return self

    @property
    def calls_made(self) -> list[int]:
        """Of every step of this video that the followed loop visited."""
        return [] if self._tracker is None else self._tracker.calls_made

    def is_compute(self, step: int, branch: Branch = "cond") -> bool:
        """Do all blocks run at this step?"""
        return step >= self.plan.steps or block_share(self.plan, step, branch) == 1.0

    @property
    def bytes_held(self) -> int:
        """Bytes of all anchors alive now."""
        return sum(a.nbytes for store in self._stores() for a in store.anchors.values())

    # -- the model's call

    def call(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer one call of the model, `run` being its own call."""
        if self._busy:  # a wrapper put on top after attaching, or a model that calls itself
            return run(*args, **kwargs)
        self._busy = True
        try:
            if self._tracker is not None:
                self.begin(*self._tracker.position(args, kwargs))
            if self._position is None:
                raise ValueError(
                    "the model was called without a position: call begin(step, branch) before "
                    "every model call, or follow the loop"
                )
            step, branch = self._position
            self._position = None
            here = self._called.setdefault(step, set())
            missed = frozenset(s for s, branches in self._called.items() if branch not in branches)
            output = self._answer(
                run, args, kwargs, Call(step, branch, missed, _sizes(args, kwargs))
            )
            here.add(branch)
        except BaseException:
            self.clear()
            raise
        finally:
            self._busy = False
        self._account(step, branch)
        return output

    def _answer(self, run: Callable[..., Any], args: tuple, kwargs: dict, call: Call) -> Any:
        store, step, branch = self._prediction, call.step, call.branch
        schedule = None if store is None else store.schedules[branch]
        forecast = () if schedule is None else schedule.forecasts.get(step, ())
        if store is not None and forecast and not store.lacks(forecast, call):
            needed = store.needed(branch, step)
            _check_sizes(needed[0][0].sizes, call.sizes)
            self.stats.reused_calls += 1
            return forecast_prediction(needed)
        output = self._run(run, args, kwargs, call)
        if store is None or schedule is None:
            return output
        given, correction = output, schedule.corrections.get(step, ())
        if correction and not store.lacks(correction[1:], call):
            given = _corrected(store, output, call)
            store.drop_after(branch, step)  # what only the correction needed makes room
        if step in schedule.last_use:
            copies = (tensor.detach().clone() for tensor in tensors_of(output))
            storage, place = self.plan.storage, self.plan.storage_place
            store.anchors[branch, step] = keep(output, copies, storage, place, call.sizes)
        return given

    def _run(self, run: Callable[..., Any], args: tuple, kwargs: dict, call: Call) -> Any:
        self.stats.model_calls += 1
        for walk in self._walks:
            walk.start(call)
        try:
            output = run(*args, **kwargs)
        finally:
            for walk in self._walks:
                walk.stop()
        for walk in self._walks:
            walk.finish(call)
        self.stats.block_runs += sum(self.plan.model.block_lists.values())
        self.stats.block_runs -= sum(walk.skipped for walk in self._walks)
        self.stats.reused_intervals += sum(walk.reused for walk in self._walks)
        return output

    def _account(self, step: int, branch: str) -> None:
        self.stats.peak_bytes = max(self.stats.peak_bytes, self.bytes_held)
        for store in self._stores():
            for other in store.schedules:  # also of branches whose calls ended early
                store.drop_after(other, step if other == branch else step - 1)
        self.stats.bytes_held = self.bytes_held

    def _stores(self) -> Iterator[AnchorStore]:
        if self._prediction is not None:
            yield self._prediction
        for walk in self._walks:
            yield from walk.intervals

    def _build_stores(self, found: dict[str, nn.ModuleList]) -> None:
        self._walks, self._prediction = [], None
        for site in self.plan.sites:
            schedules: dict[str, SiteSchedule] = {
                b: SiteSchedule.of(self.plan, site, b) for b in self.plan.branches
            }
            schedules |= dict.fromkeys(EXTRA, schedules[self.plan.branches[0]])
            if not isinstance(site, IntervalSite):
                self._prediction = AnchorStore("prediction", schedules)
                continue
            walk = next((w for w in self._walks if w.name == site.block_list), None)
            if walk is None:
                walk = BlockWalk(site.block_list, found[site.block_list])
                self._walks.append(walk)
            walk.intervals += [Interval(site, run, schedules, self.plan) for run in site.intervals]


def _corrected(store: AnchorStore, output: Any, call: Call) -> Any:
    """The new prediction and those before it, weighted by the plan's correction."""
    (_, own), *others = store.schedules[call.branch].corrections[call.step]
    before = store.anchors_of(call.branch, call.step, others)
    _check_sizes(before[0][0].sizes, call.sizes)
    new = keep(output, tensors_of(output), "stream", "device")
    return forecast_prediction([(new, own), *before])


def _sizes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Size, ...]:
    """Shapes in the call's first argument, the latents; prompts may change their length."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    return tuple(tensor.shape for tensor in tensors_of(first))


def _check_sizes(kept: tuple[torch.Size, ...], now: tuple[torch.Size, ...]) -> None:
    if kept != now:
        raise ValueError(
            f"prediction: the latents are {[tuple(s) for s in now]}, at the compute step they were "
            f"{[tuple(s) for s in kept]}: the size may not change between a compute step and its "
            "reuse steps"
        )


def _check_apart(found: dict[str, nn.ModuleList]) -> None:
    """Refuse lists of the plan that are one list, or that another cache walks."""
    for name, blocks in found.items():
        if WALK in blocks.__dict__:
            raise ValueError(f"another cache walks {name} already: detach it first")
    if len({id(blocks) for blocks in found.values()}) < len(found):
        raise PlanError(f"the lists {', '.join(found)} of the plan are one list of the model")

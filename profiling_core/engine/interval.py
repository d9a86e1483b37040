"""One interval of blocks: its anchors, and the callables that keep or reuse its delta.

Everything that depends on the position is decided in `prepare`, before the model's call, and stored
in `finish`, after it. What runs inside the call is tensor arithmetic on attributes, so that a
compiled model sees the same few callables step after step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from profiling_core.engine.anchors import Anchor, forecast_delta, keep
from profiling_core.engine.block_lists import unwrapped
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.schema import IntervalSite
from profiling_core.plan.site_schedule import SiteSchedule

NOT_SKIPPED = (
    "no delta of them can be kept; take a plan that reuses the whole prediction (quality, "
    "balanced, fast)"
)


@dataclass(frozen=True)
class Call:
    """One call of the model: its position, and what decides whether it can reuse."""

    step: int
    branch: str
    missed: frozenset[int] = frozenset()  # steps of this video without a call of this branch
    sizes: tuple[torch.Size, ...] = ()  # of the latents


@dataclass
class AnchorStore:
    """The anchors of one site element: an interval, or the prediction."""

    label: str
    schedules: dict[str, SiteSchedule]
    anchors: dict[tuple[str, int], Anchor] = field(default_factory=dict)

    def needed(self, branch: str, step: int) -> list[tuple[Anchor, float]]:
        """Anchors and weights of a reuse step; ValueError when one was never computed."""
        return self.anchors_of(branch, step, self.schedules[branch].forecasts[step])

    def anchors_of(
        self, branch: str, step: int, weights: Iterable[tuple[int, float]]
    ) -> list[tuple[Anchor, float]]:
        """The anchors of some steps with their weights, for use at `step`."""
        found = []
        for anchor_step, weight in weights:
            anchor = self.anchors.get((branch, anchor_step))
            if anchor is None:
                raise ValueError(
                    f"{self.label}, {branch}: step {step} reuses step {anchor_step}, which was not "
                    "computed in this video (or is freed already): visit the steps in order from "
                    "0, each once"
                )
            found.append((anchor, weight))
        return found

    def lacks(self, weights: Iterable[tuple[int, float]], call: Call) -> bool:
        """Is there no anchor to reuse, as the branch was not called then, or with another batch?"""
        for step, _ in weights:
            anchor = self.anchors.get((call.branch, step))
            if step in call.missed if anchor is None else _other_batch(anchor.sizes, call.sizes):
                return True
        return False

    def clear(self) -> None:
        self.anchors.clear()

    def drop_after(self, branch: str, step: int) -> None:
        """Free the anchors that no later step needs."""
        last_use = self.schedules[branch].last_use
        for key in [k for k in self.anchors if k[0] == branch and last_use[k[1]] <= step]:
            del self.anchors[key]


class Interval(AnchorStore):
    """Blocks first..last of a list, reused together."""

    inputs: tuple[Any, ...]  # alive between run_first and run_last
    versions: list[int | None]
    kept: Anchor | None
    blocks: list[nn.Module]  # of a step whose delta is kept
    reused: list[tuple[Anchor, float]]

    def __init__(
        self,
        site: IntervalSite,
        run: tuple[int, int],
        schedules: dict[str, SiteSchedule],
        plan: CachePlan,
    ) -> None:
        first, last = run
        super().__init__(f"{site.block_list} {first}-{last}", schedules)
        self.first, self.last, self.plan = first, last, plan
        self._forget()

    def clear(self) -> None:
        super().clear()
        self._forget()

    def prepare(self, calls: list[Callable[..., Any]], blocks: list[nn.Module], call: Call) -> int:
        """Put this interval's callables into `calls`; the number of blocks that will not run."""
        self._forget()
        schedule, step = self.schedules[call.branch], call.step
        self.names = parameters(blocks[self.first])
        if step in schedule.forecasts and not self.lacks(schedule.forecasts[step], call):
            self.reused = self.needed(call.branch, step)
            count = self.last - self.first
            calls[self.first : self.last + 1] = [self.add_forecast] + [self.pass_on] * count
            return count + 1
        if step in schedule.last_use:
            self.blocks = blocks[self.first : self.last + 1]
            if self.first == self.last:
                calls[self.first] = self.run_only
            else:
                calls[self.first], calls[self.last] = self.run_first, self.run_last
        return 0

    def finish(self, call: Call) -> None:
        """Store what the call kept."""
        if self.kept is not None:
            self.anchors[call.branch, call.step] = replace(self.kept, sizes=call.sizes)
        self._forget()

    def run_first(self, *args: Any, **kwargs: Any) -> Any:
        self._remember(args, kwargs)
        return self.blocks[0](*args, **kwargs)

    def run_last(self, *args: Any, **kwargs: Any) -> Any:
        output = self.blocks[-1](*args, **kwargs)
        self._keep_delta(output)
        return output

    def run_only(self, *args: Any, **kwargs: Any) -> Any:
        self._remember(args, kwargs)
        return self.run_last(*args, **kwargs)

    def add_forecast(self, *args: Any, **kwargs: Any) -> Any:
        """Stands for the first block at a reuse step: input + weighted deltas."""
        newest = self.reused[0][0]
        updated = tuple(
            forecast_delta(self.label, tensor, self.reused, index)
            for index, tensor in enumerate(self._updated(newest, args, kwargs))
        )
        return updated[0] if newest.single else updated

    def pass_on(self, *args: Any, **kwargs: Any) -> Any:
        """Stands for the other blocks at a reuse step: returns its input."""
        newest = self.reused[0][0]
        updated = self._updated(newest, args, kwargs)
        return updated[0] if newest.single else updated

    def _remember(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.inputs = leading(self.names, args, kwargs)
        self.versions = [version(argument) for argument in self.inputs]

    def _check_not_changed(self, outputs: tuple[torch.Tensor, ...]) -> None:
        """ValueError for a block that changes its input in place: no input is left to subtract."""
        if torch.compiler.is_compiling():
            return
        for after, before, count in zip(outputs, self.inputs, self.versions, strict=False):
            # without a count a tensor that comes back may have been changed
            if version(before) != count or (after is before and count is None):
                raise ValueError(
                    f"{self.label}: the blocks change their input in place, so that no delta can "
                    "be kept; they have to return new tensors"
                )

    def _keep_delta(self, output: Any) -> None:
        outputs = (output,) if isinstance(output, torch.Tensor) else tuple(output)
        if len(self.inputs) < len(outputs):
            raise ValueError(
                f"{self.label}: blocks return {len(outputs)} tensors but are called with "
                f"{len(self.inputs)} arguments: the tensors that a block updates must be its "
                "leading arguments"
            )
        for after, before in zip(outputs, self.inputs, strict=False):
            if after.shape != before.shape:
                raise PlanError(
                    f"{self.label}: the blocks return {tuple(after.shape)} for an argument of "
                    f"{tuple(before.shape)}: {NOT_SKIPPED}"
                )
        self._check_not_changed(outputs)
        deltas = [
            after.detach() - before.detach()
            for after, before in zip(outputs, self.inputs, strict=False)
        ]
        self.inputs = ()
        self.kept = keep(output, deltas, self.plan.storage, self.plan.storage_place)

    def _updated(
        self, anchor: Anchor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        count, given = len(anchor.tensors), leading(self.names, args, kwargs)
        if len(given) < count:
            raise ValueError(
                f"{self.label}: {count} tensors are updated, the call gives {len(given)}"
            )
        return given[:count]

    def _forget(self) -> None:
        self.inputs, self.versions, self.kept, self.reused = (), [], None, []
        self.blocks = []


def parameters(block: nn.Module) -> tuple[str, ...]:
    """Names of a block's parameters, for loops that call it by keyword."""
    kind: type = type(unwrapped(block))
    return _parameters(kind)


@cache
def _parameters(kind: type[nn.Module]) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def leading(names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """A call's arguments in the order of the block's parameters, by position or name."""
    return (*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs))


def _other_batch(kept: tuple[torch.Size, ...], now: tuple[torch.Size, ...]) -> bool:
    """Latents (B, ...) of another number of samples, as when batched guidance ends early."""
    if kept == now or not kept or not now or len(now[0]) < 3:
        return False
    return kept[0][1:] == now[0][1:]


def version(value: Any) -> int | None:
    """How often a tensor was changed in place, where torch counts it."""
    counted = isinstance(value, torch.Tensor) and not torch.compiler.is_compiling()
    counted = counted and not value.is_inference()
    return value._version if counted else None

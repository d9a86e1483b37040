"""The drift guard at work: samples predictions, compares them with old forecasts, decides.

Of every new prediction a fixed set of values is taken (fixed seed, drawn on the host: the same on
every rank and machine), and of these the last few sets are kept, not the predictions: a few KiB a
branch, whatever the plan holds. Sampling and deviation are a handful of small kernels behind the
model's own. The result travels to pinned host memory without waiting and is read where it is
needed: at the first step after it that could be inserted, or at the end of the run. So no host read
waits for a step that is not over; at worst one falls between two steps and costs the queue's head
start.

Ranks that share a clip must decide alike. Where every rank is handed the whole prediction (sequence
parallelism after its last gather) they see the same bits and nothing is exchanged. Where they do
not (guidance branches on different ranks, clips of one batch apart), or where that is not certain,
give the process group that shares the clip: every deviation is then the largest of its ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.distributed as dist

from profiling_core.anchors import tensors_of
from profiling_core.guard import middles, old_forecasts
from profiling_core.plan import CachePlan, Forecast

SEED = 0  # of the sampled places
KEPT = 2  # predictions that a line needs


@dataclass(frozen=True)
class Deviation:
    """(1) of guard, once the device has come to it; threshold: the plan's for this step."""

    step: int
    branch: str
    threshold: float
    host: torch.Tensor  # scalar
    arrived: torch.cuda.Event | None

    @property
    def value(self) -> float:
        """Waits until the step's call is over on the device."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.host)

    @property
    def exceeds(self) -> bool:
        return self.value > self.threshold


class DriftGuard:
    """Follows one run of a plan that has a guard.

    group: the ranks that share the clip, see the module's docstring; each must make the same calls.
    """

    def __init__(self, plan: CachePlan, group: dist.ProcessGroup | None = None) -> None:
        self.plan, self.guard, self.group = plan, plan.guard, group
        self._gaps = middles(plan) if plan.guard.extra else {}
        self._sizes: list[int] = []
        self._places: list[torch.Tensor] = []
        self.clear()

    def clear(self) -> None:
        """The next prediction starts a new video."""
        self.follow(self.plan)
        self._samples: dict[str, dict[int, torch.Tensor]] = {b: {} for b in self.plan.branches}
        self._unread: list[Deviation] = []
        self._spent = False

    def follow(self, plan: CachePlan) -> None:
        """Take the old forecasts of this plan from here on."""
        self._forecasts = {branch: old_forecasts(plan, branch) for branch in plan.branches}

    def see(self, output: Any, step: int, branch: str) -> Deviation | None:
        """A new prediction; its deviation, at the steps that are compared."""
        kept = self._samples[branch]
        new, forecast = self._sampled(tensors_of(output)), self._forecasts[branch].get(step)
        found = None
        if forecast is not None and all(anchor in kept for anchor, _ in forecast):
            value = deviation(new, kept, forecast)
            if self.group is not None:
                dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
            found = Deviation(step, branch, self.guard.at(step), *_sent(value))
            self._unread.append(found)
        kept[step] = new
        for old in sorted(kept)[:-KEPT]:
            del kept[old]
        return found

    def wants(self, step: int) -> bool:
        """Is `step` to be computed in addition? Reads what was measured since the last answer."""
        if self._spent or step not in self._gaps:
            return False
        return self._decided(len(self._unread))

    def wants_after(self, step: int) -> int | None:
        """The same for a solver that is about to jump from `step`: the level it should visit.

        What was measured at `step` itself is left for the next gap: it may not be over.
        """
        place = next((middle for middle, before in self._gaps.items() if before == step), None)
        if self._spent or place is None:
            return None
        over = sum(one.step < step for one in self._unread)
        return place if self._decided(over) else None

    def _decided(self, count: int) -> bool:
        read, self._unread = self._unread[:count], self._unread[count:]
        self._spent = any([one.exceeds for one in read])
        return self._spent

    def _sampled(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The values at the sampled places, fp32."""
        sizes = [tensor.numel() for tensor in tensors]
        if sizes != self._sizes:
            for kept in self._samples.values():
                kept.clear()  # other places: nothing to compare with
            drawn = zip(places(sizes, self.guard.samples), tensors, strict=True)
            self._places = [place.to(t.device, non_blocking=True) for place, t in drawn]
            self._sizes = sizes
        taken = [t.detach().take(place) for t, place in zip(tensors, self._places, strict=True)]
        return torch.cat(taken).float()


def drift_line(deviations: Sequence[Deviation], extra_step: int | None) -> list[str]:
    """What the guard found, for the log after the run."""
    if not deviations:
        return []
    worst, count = largest(deviations), sum(one.exceeds for one in deviations)
    more = "" if extra_step is None else f"; step {extra_step} was computed in addition"
    return [
        f"guard: {len(deviations)} old forecasts compared, off by at most {worst.value:.3f} at "
        f"step {worst.step}, {worst.branch}; {count} above the threshold, on average at "
        f"{mean_share(deviations):.0%} of it{more}"
    ]


def largest(deviations: Sequence[Deviation]) -> Deviation | None:
    """The largest of all; None where nothing was compared."""
    return max(deviations, key=lambda one: one.value, default=None)


def mean_share(deviations: Sequence[Deviation]) -> float | None:
    """Geometric mean of deviation / threshold: how much this clip moves, against the planner's."""
    shares = [one.value / one.threshold for one in deviations]
    if not shares:
        return None
    return prod(max(share, 1e-12) ** (1 / len(shares)) for share in shares)


def places(sizes: Sequence[int], samples: int) -> list[torch.Tensor]:
    """Sorted places in every flattened tensor, `samples` in all; every place where fewer exist."""
    total = sum(sizes)
    if samples >= total:
        return [torch.arange(size) for size in sizes]
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(total, (samples,), generator=generator).sort().values
    ends = torch.tensor(sizes).cumsum(0)
    starts = ends - torch.tensor(sizes)
    return [
        drawn[(drawn >= start) & (drawn < end)] - start
        for start, end in zip(starts, ends, strict=True)
    ]


def deviation(new: torch.Tensor, kept: dict[int, torch.Tensor], forecast: Forecast) -> torch.Tensor:
    """(1) of guard, a scalar on the device."""
    expected = sum(weight * kept[anchor] for anchor, weight in forecast)
    smallest = torch.finfo(new.dtype).tiny
    return (expected - new).norm() / new.norm().clamp_min(smallest)


def _sent(value: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """The scalar on its way to the host, and the event of its arrival."""
    if value.device.type != "cuda":
        return value, None
    host = torch.empty((), dtype=value.dtype, pin_memory=True)
    host.copy_(value, non_blocking=True)
    return host, torch.cuda.current_stream(value.device).record_event()

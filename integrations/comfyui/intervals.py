"""Plans that reuse blocks: their deltas in ComfyUI's walk over the blocks.

ComfyUI lets a node replace a block: its replacement gets the tensors of the stream in a dict and
may run the original. Conditionings share a call or not, from step to step as memory allows, and
a long clip is evaluated in context windows; so a delta belongs to one conditioning in one window.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from profiling_core.engine.anchors import Anchor, forecast_delta, keep
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.site_schedule import SiteSchedule

# of a plan's block list: ComfyUI's name for a block of it, and what the block updates
_BLOCKS = {
    "blocks": ("double_block", ("img",)),
    "double_blocks": ("double_block", ("img", "txt")),
    "single_blocks": ("single_block", ("img",)),
}
_PLAIN = ("WanModel", "HunyuanVideo")  # nothing is added between their blocks
Key = tuple[Any, ...]  # conditioning, its place in the guidance, window
Replacement = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


def against_intervals(model: nn.Module, guider: Any) -> str | None:
    """Why no delta of blocks may be reused here; None where it may."""
    kind = type(model).__name__
    if kind not in _PLAIN:
        return f"{kind} adds to the stream between its blocks, which a delta would add twice"
    if any("control" in cond for conds in guider.conds.values() for cond in conds):
        return "a ControlNet adds to the stream between the blocks, which a delta would add twice"
    patches = guider.model_options["transformer_options"].get("patches", {})
    other = next((name for name in patches if name.endswith("_block")), None)
    if other is not None:
        return f"another node adds to the stream between the blocks (patch {other!r})"
    return None


@dataclass
class Interval:
    """Blocks first..last of a list, and their deltas by key and compute step."""

    label: str
    first: int
    last: int
    names: tuple[str, ...]  # of the tensors that its blocks update
    schedule: SiteSchedule
    anchors: dict[tuple[Key, int], Anchor] = field(default_factory=dict)
    # of the model's call that is under way
    keys: list[Key] = field(default_factory=list)
    reused: list[list[tuple[Anchor, float]]] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)

    def needed(self, step: int) -> list[list[tuple[Anchor, float]]]:
        """Anchors and weights for every key; [] where one was not evaluated then."""
        weights, found = self.schedule.forecasts.get(step, ()), []
        for key in self.keys:
            if not weights or any((key, anchor) not in self.anchors for anchor, _ in weights):
                return []
            found.append([(self.anchors[key, anchor], weight) for anchor, weight in weights])
        return found


class BlockDeltas:
    """The deltas of one run; place: 'device' or 'host' memory."""

    def __init__(self, plan: CachePlan, place: str) -> None:
        self.place, self._storage, self._step = place, plan.storage, 0
        self._blocks = sum(plan.model.block_lists.values())
        self._thread = threading.get_ident()
        self._window: Key | None = None  # of the model's own evaluation under way
        self._seen: set[Key] = set()  # windows, and conditionings of intervals, of this step
        self._ran = self._skipped = 0
        self.intervals: list[tuple[str, Interval]] = []  # with ComfyUI's name for the blocks
        for site in plan.interval_sites:
            kind, names = _BLOCKS[site.block_list]
            schedule = SiteSchedule.of(plan, site, "cond")
            for first, last in site.intervals:
                label = f"{site.block_list} {first}-{last}"
                self.intervals.append((kind, Interval(label, first, last, names, schedule)))

    @property
    def share(self) -> float:
        """Share of the blocks that ran, of all in the model's own evaluations."""
        return 1 - self._skipped / max(1, self._ran)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for _, interval in self.intervals for a in interval.anchors.values())

    def clear(self) -> None:
        for _, interval in self.intervals:
            interval.anchors.clear()
            interval.keys, interval.reused, interval.inputs = [], [], []

    def begin(self, step: int) -> None:
        """A prediction at `step` comes: free what no later one needs."""
        self._step, self._seen = step, set()
        for _, interval in self.intervals:
            last_use = interval.schedule.last_use
            for key in [key for key in interval.anchors if last_use[key[1]] < step]:
                del interval.anchors[key]

    def check_asked(self) -> None:
        """PlanError where the model's walk did not ask for replacements: it would run in full."""
        if not self._ran:
            raise PlanError(
                "the model does not ask for replacements of its blocks: another node has changed "
                "its forward; take quality, balanced or fast, or that node out"
            )

    @contextmanager
    def evaluation(self, window: Any) -> Iterator[None]:
        """An evaluation of the conditionings in a context window, or of the whole clip (None)."""
        key = () if window is None else tuple(window.index_list)
        own = key not in self._seen
        self._seen.add(key)
        self._window = key if own else None
        try:
            yield
        finally:
            self._window = None

    def replacements(
        self, earlier: dict[tuple[str, int], Replacement]
    ) -> dict[tuple[str, int], Replacement]:
        """For every block of an interval what ComfyUI calls in its place.

        earlier: replacements by other nodes, which then stand for the original block.
        """
        return {
            (kind, number): partial(self._answer, interval, number, earlier.get((kind, number)))
            for kind, interval in self.intervals
            for number in range(interval.first, interval.last + 1)
        }

    def _answer(
        self,
        interval: Interval,
        number: int,
        earlier: Replacement | None,
        args: dict[str, Any],
        extra: dict[str, Any],
    ) -> dict[str, Any]:
        def original() -> dict[str, Any]:
            return earlier(args, extra) if earlier else extra["original_block"](args)

        if self._window is None:
            return original()
        if number == interval.first:
            self._start(interval, args)
        if interval.reused:
            return self._forecast(interval, args) if number == interval.first else dict(args)
        output = original()
        if number == interval.last and interval.inputs:
            self._keep(interval, output)
        return output

    def _start(self, interval: Interval, args: dict[str, Any]) -> None:
        """Decide for the coming call of the interval's blocks whether it reuses or keeps."""
        if threading.get_ident() != self._thread:
            raise PlanError(
                "conditionings are evaluated on several GPUs at once, where a plan that reuses "
                "blocks cannot follow: take quality, balanced or fast"
            )
        options = args["transformer_options"]
        places = options["cond_or_uncond"]
        interval.keys = [
            (uuid, place, *(self._window or ()))
            for uuid, place in zip(options["uuids"], places, strict=True)
        ]
        named = [(interval.label, *key) for key in interval.keys]
        if len(set(named)) < len(named) or self._seen & set(named):
            raise PlanError(
                "a conditioning is evaluated for several areas of the picture: a plan that reuses "
                "blocks cannot tell them apart, take quality, balanced or fast"
            )
        self._seen |= set(named)
        if interval is self.intervals[0][1]:
            self._ran += len(named) * self._blocks
        interval.reused, interval.inputs = interval.needed(self._step), []
        if interval.reused:
            self._skipped += len(named) * (interval.last - interval.first + 1)
        elif self._step in interval.schedule.last_use:  # blocks may change their input in place
            interval.inputs = [args[name].clone() for name in interval.names]

    def _forecast(self, interval: Interval, args: dict[str, Any]) -> dict[str, Any]:
        """Stands for the first block at a reuse step: input + weighted deltas."""
        forecast = {}
        for index, name in enumerate(interval.names):
            parts = args[name].chunk(len(interval.keys))
            forecast[name] = torch.cat(
                [
                    forecast_delta(interval.label, part, needed, index)
                    for part, needed in zip(parts, interval.reused, strict=True)
                ]
            )
        return args | forecast

    def _keep(self, interval: Interval, output: dict[str, Any]) -> None:
        outputs = [output[name] for name in interval.names]
        count = len(interval.keys)
        deltas = [
            (after - before).chunk(count)
            for after, before in zip(outputs, interval.inputs, strict=True)
        ]
        interval.inputs = []
        for number, key in enumerate(interval.keys):
            own = [each[number] for each in deltas]
            template = tuple(each.chunk(count)[number] for each in outputs)
            anchor = keep(template, own, self._storage, self.place)
            interval.anchors[key, self._step] = anchor

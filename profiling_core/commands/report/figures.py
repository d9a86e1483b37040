"""The content of figures, apart from how they are drawn: picture and table start from these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiling_core.plan.schema import ModelFingerprint
from profiling_core.profile.block_scores import mean_over
from profiling_core.profile.profile import Profile

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Axis:
    """The elements along one side of a figure."""

    label: str  # with its unit
    word: str  # what one element is called: "step"
    names: tuple[str, ...]
    groups: tuple[tuple[str, int], ...] = ()  # named runs of neighbours, and how many each has

    def full_name(self, index: int) -> str:
        """The name of an element with its group: "single_blocks 3"."""
        first = 0
        for name, count in self.groups:
            if index < first + count:
                return f"{name} {self.names[index]}"
            first += count
        return f"{self.word} {self.names[index]}"


@dataclass(frozen=True)
class Layer:
    """One quantity of a heat map; NaN where it was not measured."""

    name: str
    values: np.ndarray  # (rows, columns)
    logarithmic: bool = False
    sides: tuple[str, ...] = ()  # "F", "B" or "" of every row
    means: tuple[float, ...] = ()  # of every row
    tau: float | None = None
    note: str = ""
    missing: str = NOT_MEASURED  # what NaN means


@dataclass(frozen=True)
class HeatMap:
    """Rows by columns in colour, in one or more layers."""

    id: str
    title: str
    caption: str
    x: Axis
    y: Axis
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Series:
    """A curve and its range over runs, one value per element of the panel's x axis."""

    name: str
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Panel:
    """Curves or bars over one x axis."""

    label: str  # of the y axis, with its unit
    x: Axis
    series: tuple[Series, ...]
    bars: bool = False
    from_zero: bool = False
    points: bool = False  # mark every element: few were measured


@dataclass(frozen=True)
class View:
    """Panels that are shown together."""

    name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Curves:
    """Panels of curves or bars, in one or more views."""

    id: str
    title: str
    caption: str
    views: tuple[View, ...]


@dataclass(frozen=True)
class AttentionMaps:
    """Small maps, blocks by steps, of the attention that the tokens of a frame receive."""

    id: str
    title: str
    caption: str
    steps: Axis
    blocks: Axis
    sides: tuple[str, ...]  # of every block
    maps: np.ndarray  # (blocks, steps, h, w), attention of one frame over its mean
    mask: np.ndarray  # (h, w), 0 to 1
    foreground: np.ndarray  # (blocks, steps), attention of foreground tokens over the mean


@dataclass(frozen=True)
class PlanPicture:
    """What a plan does at every step with every block: "#", "+", "." or ">" of `STATES`."""

    id: str
    title: str
    caption: str
    steps: Axis
    blocks: Axis
    branches: tuple[tuple[str, tuple[str, ...]], ...]  # name, one string of states per block
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Points:
    """Points of one name: joined by a line, or a cloud around a middle."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    middle: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scatter:
    """Sets of points over two numeric axes."""

    id: str
    title: str
    x_label: str
    y_label: str
    sets: tuple[Points, ...]
    log_y: bool = False
    line_at: float | None = None  # x of the full run
    ring: tuple[float, float] | None = None  # around the chosen point
    caption: str = ""


STATES = {
    "#": "computed and kept",
    "+": "computed",
    ".": "reused",
    ">": "stepped over by the solver",
}


@dataclass(frozen=True)
class Absent:
    """A figure that this profile cannot fill, and why."""

    id: str
    title: str
    reason: str


Figure = HeatMap | Curves | AttentionMaps | PlanPicture | Scatter | Absent


def step_axis(steps: Sequence[int], label: str = "denoising step") -> Axis:
    return Axis(label, "step", tuple(map(str, steps)))


def change_axis(profile: Profile) -> Axis:
    """Steps 1 to S - 1: what changed since the step before."""
    return step_axis(range(1, profile.recorded.steps))


def block_axis(model: ModelFingerprint) -> Axis:
    """All blocks, list by list."""
    lists = model.block_lists
    names = tuple(str(block) for count in lists.values() for block in range(count))
    return Axis("block", "block", names, groups=tuple(lists.items()))


def range_over(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest of what is finite; NaN where nothing is."""
    values = np.asarray(values, dtype=np.float64)
    seen = np.isfinite(values)
    low = np.where(seen, values, np.inf).min(axis=axis)
    high = np.where(seen, values, -np.inf).max(axis=axis)
    nothing = ~seen.any(axis=axis)
    return np.where(nothing, np.nan, low), np.where(nothing, np.nan, high)


def series(name: str, values: np.ndarray) -> Series:
    """Mean and range over runs of (R, N) values."""
    return Series(name, mean_over(values, (0,)), *range_over(values, 0))

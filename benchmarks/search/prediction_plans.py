"""Plans of many kinds from one profile, to see whether their predicted errors rank them rightly.

Every plan reuses the whole prediction. Four kinds: "searched", the best of every way to skip at
every speed-up; "exchanged", searched ones in which a few compute steps were moved at random;
"hand", a protected start and end with even steps between; "uniform", even steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.compare.policies import uniform_steps
from benchmarks.lib.schedules import protected
from profiling_core.plan import CachePlan
from profiling_core.search.search import Budget, PlanSearch, Point

SPEEDUPS = (1.25, 1.5, 2.0, 3.0, 4.0)  # of the searched ones
EXCHANGED = (2.0, 3.0)
HAND = (2.0,)
UNIFORM = (1.5, 3.0)
MOST_MOVED = 5  # steps of an exchanged plan


@dataclass(frozen=True)
class Kind:
    """What a plan is: one of "searched", "exchanged", "hand", "uniform", and its settings."""

    kind: str
    skip: str
    speedup: float  # as asked for

    @property
    def name(self) -> str:
        return f"{self.kind} {self.skip} {self.speedup:g}x"


def plans_of(search: PlanSearch) -> dict[Kind, CachePlan]:
    """All plans of a profile: 40 where the solver has four ways to skip."""
    return {kind: _plan(search, kind, steps) for kind, steps in _all(search)}


def _all(search: PlanSearch) -> Iterator[tuple[Kind, tuple[int, ...]]]:
    total = search.paths.steps
    for skip in search.skips:
        for speedup in SPEEDUPS:
            found = search.point_of(skip, _count(total, speedup)).steps
            yield Kind("searched", skip, speedup), found
            if speedup in EXCHANGED:
                kind = Kind("exchanged", skip, speedup)
                yield kind, exchanged(found, total, zlib.crc32(kind.name.encode()))
        for speedup in HAND:
            yield Kind("hand", skip, speedup), hand(total, _count(total, speedup))
        for speedup in UNIFORM:
            yield (
                Kind("uniform", skip, speedup),
                tuple(uniform_steps(total, _count(total, speedup))),
            )


def exchanged(steps: tuple[int, ...], total: int, seed: int) -> tuple[int, ...]:
    """1 to MOST_MOVED of the compute steps, but not step 0, moved to others at random."""
    rng = np.random.default_rng(seed)
    free = sorted(set(range(total)) - set(steps))
    moved = min(int(rng.integers(1, MOST_MOVED + 1)), len(steps) - 1, len(free))
    gone = rng.choice(steps[1:], moved, replace=False).tolist()
    new = rng.choice(free, moved, replace=False).tolist()
    return tuple(sorted({*steps, *new} - set(gone)))


def hand(total: int, count: int) -> tuple[int, ...]:
    """Two fifths of the compute steps at the start, a sixth at the end, the others between."""
    first, last = round(0.4 * count), round(count / 6)
    return protected(total, first=first, last=last, between=count - first - last)


def _count(total: int, speedup: float) -> int:
    return max(1, int(total / speedup + 1e-9))


def _plan(search: PlanSearch, kind: Kind, steps: tuple[int, ...]) -> CachePlan:
    point = Point(kind.skip, steps, search.paths.steps / len(steps), 0.0)
    return search.plan_of(point, Budget(speedup=kind.speedup), kind.name)

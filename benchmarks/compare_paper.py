"""The paper's plan at a budget: blocks, pattern and what else its settings leave open.

The share of background blocks, the warm-up, Tmax and Tmin are searched. For the profile's own
share (Otsu) and two others, the schedule is taken that meets the budget within TOLERANCE and lies
closest to the paper's; the calibration prompts choose among the three.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import log

from compare_tuning import TOLERANCE, UnreachableError
from profiling_core import schedule
from profiling_core.block_scores import Parted, default_lists, part_blocks
from profiling_core.paper_plan import BLOCKS, PATTERNS, paper_plan
from profiling_core.plan import CachePlan, PlanError
from profiling_core.profile import Profile
from profiling_core.step_change import Intervals, shrinking_intervals

WARMUPS = (1, 2, 4, 6, 8, 10, 14, 20)  # beside the profile's own
LONGEST = 24  # Tmax is searched up to here
LOOKED_AT = 24  # plans that are built for a share to know their exact cost
NEAR = 0.12  # of all block FLOPs: a share whose best guess is further off gets one plan


@dataclass(frozen=True)
class Settings:
    """What paper_plan is asked for, and how far it lies from what the profile says."""

    warmup: int
    tmax: int
    tmin: int
    distance: float


@dataclass(frozen=True)
class PaperPlans:
    """The plans of one choice of blocks and pattern (paper_plan.BLOCKS, PATTERNS)."""

    profile: Profile
    blocks: str
    pattern: str

    def candidates(self, budget: float) -> list[CachePlan]:
        """At most three plans at the budget; UnreachableError with the nearest speed-up."""
        nearest = 1.0
        for lists in self._lists():
            plans = [p for share in self._shares(lists) if (p := self._at(budget, lists, share))]
            speeds = [plan.expected.speedup_flops for plan in plans]
            nearest = min([nearest, *speeds], key=lambda speed: abs(log(speed / budget)))
            if met := [plan for plan in plans if off(plan, budget) < log(1 + TOLERANCE)]:
                # the profile's own share is the first where it reaches the budget
                places = sorted({0, len(met) // 2, len(met) - 1})
                return [met[place] for place in places]
        raise UnreachableError(f"{budget:g}x is not reached: the nearest is {nearest:.2f}x")

    def _lists(self) -> Iterator[tuple[str, ...]]:
        """The lists of the model's preset, then all, where those are too few for the budget."""
        default, every = default_lists(self.profile), tuple(self.profile.recorded.model.block_lists)
        yield default
        if set(default) != set(every):
            yield every

    def _shares(self, lists: tuple[str, ...]) -> list[float | None]:
        """Otsu's (None) first, then every number of background blocks."""
        count = sum(self.profile.recorded.model.block_lists[name] for name in lists)
        return [None, *(number / count for number in range(1, count))]

    def _at(self, budget: float, lists: tuple[str, ...], share: float | None) -> CachePlan | None:
        """Of a share: the closest to the paper within TOLERANCE, else the nearest to the budget."""
        try:
            parted = part_blocks(self.profile, share=share, lists=lists)
        except PlanError:  # blocks of equal score cannot be parted there
            return None
        wanted, side = 1 - 1 / budget, self._side(parted)

        def missed(one: tuple[Settings, float]) -> float:
            return round(abs(one[1] * side - wanted), 2)

        guessed = sorted(self._schedules, key=lambda one: (missed(one), one[0].distance))
        built = []
        for one in guessed[: LOOKED_AT if missed(guessed[0]) <= NEAR else 1]:
            if (plan := self._plan(one[0], lists, share)) is None:
                continue
            if off(plan, budget) < log(1 + TOLERANCE):
                return plan
            built.append(plan)
        return min(built, key=lambda plan: off(plan, budget), default=None)

    def _plan(self, one: Settings, lists: tuple[str, ...], share: float | None) -> CachePlan | None:
        try:
            return paper_plan(
                self.profile,
                share=share,
                lists=lists,
                blocks=self.blocks,
                pattern=self.pattern,
                warmup=one.warmup,
                tmax=one.tmax,
                tmin=one.tmin,
            )
        except PlanError:  # too few segments for this choice of blocks
            return None

    def _side(self, parted: Parted) -> float:
        """Share of the block FLOPs that a reuse step skips; the mean of both where mixed."""
        total = sum(self.profile.recorded.model.block_lists.values())
        skipped = [
            sum(map(len, side.values())) / total for side in (parted.background, parted.foreground)
        ]
        return {"background": skipped[0], "foreground": skipped[1]}.get(
            self.blocks, sum(skipped) / 2
        )

    @cached_property
    def _schedules(self) -> list[tuple[Settings, float]]:
        """Settings and the share of steps that they reuse; those that reuse none are left out."""
        steps, own = self.profile.recorded.steps, shrinking_intervals(self.profile)
        found = []
        for one in _settings(own, steps):
            computed = PATTERNS[self.pattern](steps, one.warmup, one.tmax, one.tmin)
            if len(computed) < steps:
                found.append((one, 1 - len(computed) / steps))
        return found


def off(plan: CachePlan, budget: float) -> float:
    """Relative distance of its speed-up from the budget, the same both ways."""
    return abs(log(plan.expected.speedup_flops / budget))


def all_choices() -> list[tuple[str, str]]:
    """Blocks and pattern of every combination."""
    return [(blocks, pattern) for blocks in BLOCKS for pattern in PATTERNS]


def _settings(own: Intervals, steps: int) -> Iterator[Settings]:
    warmups = sorted({own.warmup, *(w for w in WARMUPS if w < steps)})
    for warmup in warmups:
        for tmax in range(2, min(LONGEST, steps) + 1):
            for tmin in range(1, tmax + 1):
                distance = abs(log(tmax / own.tmax)) + abs(log(tmin / own.tmin))
                distance += abs(warmup - own.warmup) / schedule.round_half_up(steps / 5)
                yield Settings(warmup, tmax, tmin, distance)

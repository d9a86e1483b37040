"""Search: a profile and a budget give the plan with the least predicted error.

    search = PlanSearch(Profile.load("my.profile"))
    plan = search.plan(Budget(speedup=2.0))
    for point in search.frontier(): ...

Plans reuse the whole prediction. Trajectories turn the profile's Gram matrices into coordinates,
segments give the error of every stretch of skipped steps for each reuse mode, step_search chooses
the steps. This module decides how many steps a budget pays for and which reuse mode it allows, the
first of BEST_FIRST, and builds the plan.

A budget is a speed-up (full over spent block FLOPs), a largest predicted error, a largest number of
bytes for anchors, or several of them. With bytes alone the speed-up is SPEEDUP. Errors are
relative: the distance of the final latent from the full run's over that one's norm, the 80th
percentile of the profile's runs.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from math import floor, prod

import numpy as np

from profiling_core.errors import PlanError
from profiling_core.files import installed_version
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.describe import format_bytes
from profiling_core.plan.importers import from_steps
from profiling_core.plan.schema import Storage, StoragePlace
from profiling_core.plan.solvers import SKIPS, skips_of
from profiling_core.profile.profile import Profile
from profiling_core.search.fitted_jump import LEAST_RUNS, FittedJumps
from profiling_core.search.segments import Segments
from profiling_core.search.sensitivity import Sensitivity, sensitivity_of
from profiling_core.search.step_search import (
    CALIBRATION,
    Choice,
    StepSearch,
)
from profiling_core.search.trajectories import Trajectories, trajectories_of

SPEEDUP = 2.0
# fitted jumps are taken below this speed-up alone: docs/research/prediction.md
FITTED_BELOW = 3.5
# By runs: predictions of two modes are too near to decide between them, and a near tie that was
# taken by its third digit lost 2.6 dB, 6 on the worst prompt (docs/research/prediction.md).
BEST_FIRST = ("fitted", "jump", "corrected", "linear", "hold")
GIVE_UP = 2.0  # times the least error, from which on plans of fewer steps are no start
LESS = 0.9  # times the error, from which on a plan of fewer steps is one: no near tie
FRONTIER = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)


@dataclass(frozen=True)
class Budget:
    """What a plan may cost; None: no limit. Raises PlanError for values that limit nothing."""

    speedup: float | None = None
    max_error: float | None = None  # relative
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.speedup is None and self.max_error is None and self.max_bytes is None:
            raise PlanError("no budget: give --speedup, --max-error or --max-bytes")
        if self.speedup is not None and not 1 <= self.speedup < float("inf"):
            raise PlanError(f"--speedup {self.speedup:g}: expected at least 1, for example 2.0")
        if self.max_error is not None and not 0 < self.max_error < float("inf"):
            raise PlanError(f"--max-error {self.max_error:g}: expected above 0, for example 0.02")
        if self.max_bytes is not None and self.max_bytes < 0:
            raise PlanError(f"--max-bytes {self.max_bytes}: expected at least 0")


@dataclass(frozen=True)
class Point:
    """The best plan of one number of compute steps in one reuse mode."""

    skip: str
    steps: tuple[int, ...]
    speedup: float
    error: float


class PlanSearch:
    """Searches plans on one profile; tables are made on first use and kept.

    skips: the reuse modes to consider, by default all that differ for this solver; storage,
    storage_place: of the plans. ProfileError when the profile's runs do not follow their solver.
    """

    def __init__(
        self,
        profile: Profile,
        skips: tuple[str, ...] | None = None,
        *,
        storage: Storage = "stream",
        storage_place: StoragePlace = "device",
    ) -> None:
        self.profile = profile
        self._stored = {"storage": storage, "storage_place": storage_place}
        self.trajectories: Trajectories = trajectories_of(profile)
        self.steps = self.trajectories.steps
        self.sensitivity: Sensitivity = sensitivity_of(profile, self.trajectories)
        solver = self.trajectories.solver
        possible = skips_of(solver)
        few = self.trajectories.runs < LEAST_RUNS
        for skip in skips or ():
            if skip not in possible:
                raise PlanError(f"{skip!r} is no reuse mode with {solver}: {', '.join(possible)}")
        if few and "fitted" in (skips or ()):
            raise PlanError(
                f"'fitted' needs a profile of at least {LEAST_RUNS} runs, this one has "
                f"{self.trajectories.runs}: record more, or take jump"
            )
        self.skips = skips or tuple(s for s in possible if not (few and s == "fitted"))
        self._point, self._search = cache(self._best_point), cache(self._step_search)

    def plan(self, budget: Budget, name: str | None = None) -> CachePlan:
        """The plan of `point`, named after its speed-up where no name is given."""
        return self.plan_of(self.point(budget), budget, name)

    def point(self, budget: Budget) -> Point:
        """The point with the least predicted error within the budget; PlanError without one."""
        point = self._chosen(budget)
        if budget.max_error is not None and point.error > budget.max_error:
            raise PlanError(
                f"--max-error {budget.max_error:g}: at {point.speedup:.2f}x the predicted error is "
                f"{point.error:.4f} at best: allow more or ask for less speed"
            )
        return point

    def plan_of(
        self, point: Point, budget: Budget, name: str | None = None, **settings: float
    ) -> CachePlan:
        """The plan of any point; settings: more facts for its provenance."""
        subject = self.profile.recorded
        facts = {
            **{limit: value for limit, value in asdict(budget).items() if value is not None},
            "runs": self.trajectories.runs,
            "sensitivity": self.sensitivity.source,
            **({} if subject.boundary is None else {"boundary": subject.boundary}),
            **settings,
        }
        return self._plan(point, name or f"{point.speedup:.2f}x", facts)

    def frontier(self, speedups: tuple[float, ...] = FRONTIER) -> list[Point]:
        """The best point of each reuse mode at every speed-up, the slowest first.

        A point is left out where a faster one has no larger error.
        """
        counts = [count_of(self.steps, speedup) for speedup in speedups if speedup <= self._most]
        return undominated(
            [
                self.point_of(skip, count)
                for count in counts
                for skip in self.skips_at(count, self.skips)
            ]
        )

    def predicted(self, plan: CachePlan) -> float:
        """The predicted error of a plan of the prediction site on the profile's own grid."""
        return self._evaluated(plan).error

    def predicted_errors(self, plan: CachePlan) -> np.ndarray:
        """(10) of step_search for such a plan: (R,)."""
        return self._evaluated(plan).errors

    def _evaluated(self, plan: CachePlan) -> Choice:
        site = plan.prediction
        if site is None or plan.interval_sites or plan.steps != self.steps:
            raise PlanError(
                f"plan {plan.name!r}: errors are predicted for plans of the whole prediction with "
                f"the profile's {self.steps} steps"
            )
        weighted = plan.solver_weights and plan.solver == self.trajectories.solver
        skip = "fitted" if weighted else site.skip  # on another solver its steps are plain jumps
        computed = {*site.compute_steps["cond"], self.trajectories.change or 0}
        return self._search(skip).evaluate(sorted(computed))

    @property
    def _most(self) -> float:
        """The largest speed-up: every model computes its first step."""
        return self.steps if self.trajectories.change is None else self.steps / 2

    def _chosen(self, budget: Budget) -> Point:
        """The best point at the budget's speed-up, or the fastest below its error."""
        skips, most = self._within_bytes(budget.max_bytes), budget.max_error
        if budget.speedup is None and most is not None:
            counts = range(1, self.steps)  # more of them, less error; all: none
            place = bisect_left(counts, True, key=lambda n: self.exactly(n, skips).error <= most)
            return self.exactly(place + 1, skips)
        speedup = budget.speedup or SPEEDUP
        if speedup > self._most:
            two = " by two models, which compute their first step," * (self._most < self.steps)
            raise PlanError(
                f"--speedup {speedup:g}: {self.steps} steps{two} allow {self._most:g}x at most"
            )
        return self.exactly(count_of(self.steps, speedup), skips)

    def exactly(self, count: int, skips: tuple[str, ...] | None = None) -> Point:
        """The least error with `count` compute steps in the best of the modes.

        Where a plan of fewer steps has clearly less error than `point_of`, steps are added to it.
        """
        skip = min(self.skips_at(count, skips or self.skips), key=BEST_FIRST.index)
        best = self.point_of(skip, count)
        for steps in range(count - 1, 0, -1):
            fewer = self.point_of(skip, steps)
            if fewer.error > GIVE_UP * best.error:
                break
            best = fewer if fewer.error < LESS * best.error else best
        if len(best.steps) == count:
            return best
        choice = self._search(skip).filled(best.steps, count)
        return Point(skip, choice.steps, self.steps / count, choice.error)

    def skips_at(self, count: int, skips: tuple[str, ...]) -> tuple[str, ...]:
        """Those of `skips` that pay at so many compute steps; the only one stays."""
        fitted = self.steps < FITTED_BELOW * count
        return tuple(skip for skip in skips if fitted or skip != "fitted") or skips

    def point_of(self, skip: str, count: int) -> Point:
        """The best `count` compute steps in one reuse mode, by one search."""
        return self._point(skip, count)

    def _best_point(self, skip: str, count: int) -> Point:
        more = [self.point_of("jump", count).steps] if skip == "fitted" else []
        choice = self._search(skip).best(count, *more)
        return Point(skip, choice.steps, self.steps / count, choice.error)

    def _step_search(self, skip: str) -> StepSearch:
        table, sensitivity = self._segments[skip].table, self.sensitivity.values
        return StepSearch(table, sensitivity, calibration=CALIBRATION[skip])

    @cached_property
    def _segments(self) -> dict[str, Segments]:
        plain = {skip: Segments(self.trajectories, skip) for skip in SKIPS}
        return {**plain, "fitted": self._fitted_jumps}

    @cached_property
    def _fitted_jumps(self) -> FittedJumps:
        return FittedJumps(self.trajectories, "fitted")

    def _within_bytes(self, most: int | None) -> tuple[str, ...]:
        if most is None:
            return self.skips
        held = {skip: self._bytes(skip) for skip in self.skips}
        allowed = tuple(skip for skip in self.skips if held[skip] <= most)
        if not allowed:
            least = min(held, key=held.__getitem__)
            raise PlanError(
                f"--max-bytes {format_bytes(most)}: the anchors need "
                f"{format_bytes(held[least])} at least, with {least}"
            )
        return allowed

    def _bytes(self, skip: str) -> int:
        """Bytes of the anchors of any plan in this reuse mode."""
        quarters = tuple(sorted({part * self.steps // 4 for part in range(4)}))
        plan = self._plan(Point(skip, quarters, 0.0, 0.0), "bytes", {})
        return anchor_bytes(plan, self.profile)

    def _plan(self, point: Point, name: str, settings: dict) -> CachePlan:
        subject = self.profile.recorded
        skip = "jump" if point.skip == "fitted" else point.skip
        (site,) = from_steps(subject.steps, point.steps, subject.branches, skip)
        if point.skip == "fitted":
            site["solver_weights"] = self._fitted_jumps.step_weights(point.steps)
        sites = [site] if len(point.steps) < subject.steps else []
        return CachePlan.build(
            name=name,
            **subject.plan_fields,
            **self._stored,
            sites=sites,
            provenance={
                "made_by": f"profiling-dit {installed_version()}",
                "source": f"searched on {self.profile.origin}",
                "profile_sha256": self._profile_sha256,
                "settings": settings,
            },
            predicted_error=point.error,
        )

    @cached_property
    def _profile_sha256(self) -> str:
        return self.profile.sha256()


def undominated(points: list[Point]) -> list[Point]:
    """Without those that a faster point of their reuse mode beats: less speed, less error."""
    return [
        point
        for point in points
        if not any(
            other.skip == point.skip
            and other.speedup > point.speedup
            and other.error <= point.error
            for other in points
        )
    ]


def count_of(steps: int, speedup: float) -> int:
    """Compute steps that reach the speed-up."""
    return max(1, floor(steps / speedup + 1e-9))


def anchor_bytes(plan: CachePlan, profile: Profile) -> int:
    """Bytes that a plan of the prediction site keeps, with predictions in fp32."""
    return bytes_held(
        plan,
        tokens=0,
        stream_itemsize=0,
        latent_numel=prod(profile.recorded.latent),
        prediction_itemsize=4,
    )

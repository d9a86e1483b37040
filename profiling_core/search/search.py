"""Search: a profile and a budget give the plan with the least predicted error. No torch.

    search = PlanSearch(Profile.load("my.profile"))
    plan = search.plan(Budget(speedup=2.0))
    for point in search.frontier(): ...

The whole prediction is what is reused. Paths turn the profile's Gram matrices into coordinates,
segments give the error of every stretch of skipped steps for every way to skip, step_search chooses
the steps. What is left here: which ways to skip a budget allows, how many steps it pays for, and
the plan itself.

A budget is a speed-up (full over spent block FLOPs), a largest predicted error, a largest number of
bytes for anchors, or several of them. Bytes alone mean the speed-up SPEEDUP. Errors are relative:
the distance of the final latent from the full run's over that one's norm, the 80th percentile of
the profile's runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from math import floor, prod

import numpy as np

from profiling_core import __version__
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.describe import format_bytes
from profiling_core.plan.schema import Storage, StoragePlace
from profiling_core.plan.solvers import SKIPS, skips_of
from profiling_core.profile.profile import Profile
from profiling_core.search.segments import Segments
from profiling_core.search.sensitivity import Sensitivity, sensitivity_of
from profiling_core.search.step_search import EASE, TOLD, USUAL, Aim, Choice, StepSearch
from profiling_core.search.trajectories import Paths, paths_of

SPEEDUP = 2.0
OTHER_EASES = (1.0, 0.5, 0.25)  # for candidates: the sensitivity trusted more, and less
FRONTIER = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
PREDICTION_ITEMSIZE = 4  # bytes of a number of a prediction, in fp32


@dataclass(frozen=True)
class Budget:
    """What a plan may cost; None: no limit. Raises PlanError for values that limit nothing."""

    speedup: float | None = None
    max_error: float | None = None  # relative
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.speedup is None and self.max_error is None and self.max_bytes is None:
            raise PlanError("no budget: give a speed-up, a largest error or a number of bytes")
        if self.speedup is not None and not 1 <= self.speedup < float("inf"):
            raise PlanError(f"speed-up {self.speedup:g}: expected at least 1, for example 2.0")
        if self.max_error is not None and not 0 < self.max_error < float("inf"):
            raise PlanError(f"largest error {self.max_error:g}: expected above 0, for example 0.02")
        if self.max_bytes is not None and self.max_bytes < 0:
            raise PlanError(f"{self.max_bytes} bytes: expected at least 0")


@dataclass(frozen=True)
class Point:
    """What one number of compute steps buys with one way to skip."""

    skip: str
    steps: tuple[int, ...]
    speedup: float
    error: float


class PlanSearch:
    """The plans that follow from one profile; tables are made on first use and kept.

    skips: the reuse modes that are considered, by default all that differ for this solver;
    storage, storage_place: of the plans. ProfileError when the profile's runs do not follow their
    solver.
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
        self.paths: Paths = paths_of(profile)
        self.sensitivity: Sensitivity = sensitivity_of(profile, self.paths)
        possible = skips_of(self.paths.solver)
        for skip in skips or ():
            if skip not in possible:
                known = ", ".join(possible)
                raise PlanError(f"{skip!r} is no way to skip with {self.paths.solver}: {known}")
        self.skips = skips or possible
        self.choice = cache(self._choice)
        self._searches: dict[tuple[str, Aim], StepSearch] = {}

    def plan(self, budget: Budget, name: str | None = None) -> CachePlan:
        """The plan of `point`, named after its speed-up where no name is given."""
        return self.plan_of(self.point(budget), budget, name)

    def point(self, budget: Budget) -> Point:
        """What has the least predicted error of all that the budget allows.

        PlanError says what is possible when nothing is.
        """
        point = self._chosen(budget)
        if budget.max_error is not None and point.error > budget.max_error:
            raise PlanError(
                f"at {point.speedup:.2f}x the predicted error is {point.error:.4f} at best, above "
                f"{budget.max_error:g}: allow more or ask for less speed"
            )
        return point

    def candidates(self, budget: Budget, count: int) -> list[Point]:
        """At most `count` points as fast as `point(budget)`, best predicted first.

        Of every way to skip that the budget allows, from searches that trust the sensitivity as
        much as usual, more and less; errors are always predicted in the usual way.
        """
        best = self._chosen(budget)
        found, steps = [best], len(best.steps)
        for skip in self._within_bytes(budget.max_bytes):
            found += [self.point_of(skip, steps, Aim(ease)) for ease in (EASE, *OTHER_EASES)]
        most = float("inf") if budget.max_error is None else budget.max_error
        kept = [point for point in found if point.error <= most]
        distinct = {(point.skip, point.steps): point for point in kept}
        return sorted(distinct.values(), key=lambda point: point.error)[:count]

    def plan_of(
        self, point: Point, budget: Budget, name: str | None = None, **settings: float
    ) -> CachePlan:
        """The plan of any point; settings: further facts for its provenance."""
        return self._built(point, budget, name or f"{point.speedup:.2f}x", settings)

    def frontier(self, speedups: tuple[float, ...] = FRONTIER) -> list[Point]:
        """The best point of every way to skip at every speed-up, the slowest first."""
        return [
            self.point_of(skip, self._count(speedup))
            for speedup in speedups
            if speedup <= self.paths.steps
            for skip in self.skips
        ]

    def predicted(self, plan: CachePlan) -> float:
        """The quantile over the runs of `predicted_errors`."""
        return self._evaluated(plan).error

    def predicted_errors(self, plan: CachePlan) -> np.ndarray:
        """(10) of step_search for a plan of the prediction site on the profile's own grid: (R,)."""
        return self._evaluated(plan).errors

    # -- parts

    def _evaluated(self, plan: CachePlan) -> Choice:
        site = plan.prediction
        if site is None or plan.interval_sites or plan.steps != self.paths.steps:
            raise PlanError(
                f"plan {plan.name!r}: errors are predicted for plans of the whole prediction with "
                f"the profile's {self.paths.steps} steps"
            )
        return self._search(site.skip).evaluate(site.compute_steps["cond"])

    def _chosen(self, budget: Budget) -> Point:
        """The best point at the budget's speed-up, or the fastest below its error."""
        allowed = self._within_bytes(budget.max_bytes)
        point = self._cheapest(allowed, budget) if budget.speedup is None else None
        return point or self._at_speedup(allowed, budget.speedup or SPEEDUP)

    def _at_speedup(self, skips: tuple[str, ...], speedup: float) -> Point:
        if speedup > self.paths.steps:
            raise PlanError(
                f"speed-up {speedup:g}: {self.paths.steps} steps allow {self.paths.steps}x at most"
            )
        return self._best(skips, self._count(speedup))

    def _cheapest(self, skips: tuple[str, ...], budget: Budget) -> Point | None:
        """The fastest point at or below the largest error; computing every step has none."""
        if budget.max_error is None:
            return None
        low, high = 1, self.paths.steps  # more compute steps, less error
        while low < high:
            middle = (low + high) // 2
            if self._best(skips, middle).error <= budget.max_error:
                high = middle
            else:
                low = middle + 1
        return self._best(skips, high)

    def _best(self, skips: tuple[str, ...], count: int) -> Point:
        return min((self.point_of(skip, count) for skip in skips), key=lambda point: point.error)

    def _count(self, speedup: float) -> int:
        """Compute steps that reach the speed-up."""
        return max(1, floor(self.paths.steps / speedup + 1e-9))

    def point_of(self, skip: str, count: int, aim: Aim = USUAL) -> Point:
        """The best that `count` compute steps give with one way to skip.

        Another aim chooses other steps; their error is predicted in the usual way.
        """
        choice = self.choice(skip, count, aim)
        return Point(skip, choice.steps, self.paths.steps / count, choice.error)

    def _choice(self, skip: str, count: int, aim: Aim = USUAL) -> Choice:
        best = self._search(skip, aim).best(count)
        return best if aim == USUAL else self._search(skip).evaluate(best.steps)

    def _search(self, skip: str, aim: Aim = USUAL) -> StepSearch:
        if (skip, aim) not in self._searches:
            table, sensitivity = self._segments[skip].table, self.sensitivity.values
            self._searches[skip, aim] = StepSearch(table, sensitivity, aim, TOLD[skip])
        return self._searches[skip, aim]

    @cached_property
    def _segments(self) -> dict[str, Segments]:
        return {skip: Segments(self.paths, skip) for skip in SKIPS if skip in self.skips}

    def _within_bytes(self, most: int | None) -> tuple[str, ...]:
        if most is None:
            return self.skips
        held = {skip: self._bytes(skip) for skip in self.skips}
        allowed = tuple(skip for skip in self.skips if held[skip] <= most)
        if not allowed:
            least = min(held, key=held.__getitem__)
            raise PlanError(
                f"{format_bytes(most)} of anchors: the least is {format_bytes(held[least])}, "
                f"with {least}"
            )
        return allowed

    def _bytes(self, skip: str) -> int:
        """Of the anchors of any plan that skips in this way."""
        quarters = tuple(sorted({part * self.paths.steps // 4 for part in range(4)}))
        plan = self._plan(Point(skip, quarters, 0.0, 0.0), "bytes", {})
        return bytes_held(
            plan,
            tokens=0,
            stream_itemsize=0,
            latent_numel=prod(self.profile.recorded.latent),
            prediction_itemsize=PREDICTION_ITEMSIZE,
        )

    def _built(self, point: Point, budget: Budget, name: str, more: dict) -> CachePlan:
        settings = {
            "speedup": budget.speedup,
            "max_error": budget.max_error,
            "max_bytes": budget.max_bytes,
            "runs": self.paths.runs,
            "sensitivity": self.sensitivity.source,
            **more,
        }
        return self._plan(point, name, {k: v for k, v in settings.items() if v is not None})

    def _plan(self, point: Point, name: str, settings: dict) -> CachePlan:
        subject = self.profile.recorded
        site = {
            "kind": "prediction",
            "compute_steps": dict.fromkeys(subject.branches, point.steps),
            "skip": point.skip,
        }
        if point.skip == "weights":
            weights = dict(self._fitted(point.steps))
            site["weights"] = dict.fromkeys(subject.branches, weights)
        sites = [site] if len(point.steps) < subject.steps else []
        return CachePlan.build(
            name=name,
            **subject.plan_fields,
            **self._stored,
            sites=sites,
            provenance={
                "made_by": f"profiling-dit {__version__}",
                "source": f"searched on {self.profile.origin}",
                "profile_sha256": self._profile_sha256,
                "settings": settings,
            },
            predicted_error=point.error,
        )

    @cached_property
    def _profile_sha256(self) -> str:
        return self.profile.sha256()

    def _fitted(self, computed: tuple[int, ...]) -> Iterator[tuple[int, list[float]]]:
        """Weights of the last two anchors for every reuse step, newest first."""
        for step in range(self.paths.steps):
            anchors = [c for c in computed if c < step][-2:][::-1]
            if step not in computed:
                alone = len(anchors) == 1
                weights = [1.0] if alone else self._segments["weights"].weights(anchors, step)
                yield step, [float(weight) for weight in weights]

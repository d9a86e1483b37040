"""The search behind the shipped presets `quality`, `balanced` and `fast`.

The miniatures' are searched on the profiles beside their weights. A profile's presets are the plans
that `plan --speedup` finds on it in the solver's own reuse mode. The official models were never
profiled here; `RobustSearch` takes the steps that are good in all worlds that they may be like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np

from profiling_core.plan import CachePlan
from profiling_core.plan.importers import from_steps
from profiling_core.plan.model_specs import MODELS, PlannedModel
from profiling_core.plan.presets import build_preset
from profiling_core.plan.regrid import SPEEDUPS
from profiling_core.plan.solvers import skips_of
from profiling_core.profile.profile import Profile
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.law import LawSearch, worlds
from profiling_core.search.resample import SigmaGrid, moved_to
from profiling_core.search.search import Budget, PlanSearch, count_of
from profiling_core.search.segments import Segments
from profiling_core.search.step_search import StepSearch

PROFILES = {  # of the models that were profiled, in a clone of the repository
    "wan2.1-t2v-mini": "Wan2.1/ckpts/Wan2.1-T2V-mini/profile.safetensors",
    "hunyuan-video-t2v-mini": "HunyuanVideo/ckpts/HYVideo-mini/profile.safetensors",
    "wan2.1-i2v-mini": "Wan2.1/ckpts/Wan2.1-I2V-mini/profile.safetensors",
}
WORLDS = ("wan2.1-t2v-mini", "hunyuan-video-t2v-mini")  # of them that a RobustSearch counts
LABEL = (
    "fitted to public step lists of full-size models (LeMiCa's, the Golden Path study's), "
    "not measured on the real model: profile your model for a better one"
)
MINIATURE = {"quality": 0.4, "balanced": 0.4, "fast": 0.75}  # of a miniature's regret counts
SMALLEST_GAIN = 1e-6  # dB
SHIPPED_BY, ROBUST_BY = "profiling-dit 0.1.0", "profiling-dit 0.2.0"  # the same when made again


def make_preset(planned: PlannedModel, preset: str) -> CachePlan:
    """The plan behind a shipped model's file; ProfileError where its profile is not there."""
    name = planned.fingerprint.name
    if preset not in SPEEDUPS:
        return build_preset(planned, preset)
    if name in PROFILES:
        plan = _profiled(name).plan(preset)
        made = plan.provenance.model_copy(update={"made_by": SHIPPED_BY})
        return plan.model_copy(update={"provenance": made})
    return robust_search(name).plan(planned, preset)


def presets_from(profile: Profile) -> list[CachePlan]:
    """`quality`, `balanced` and `fast` of a profile's own model and grid."""
    found = ProfiledPresets(profile)
    return [found.plan(preset) for preset in SPEEDUPS]


def missing_profiles() -> list[Path]:
    """The profiles that building all presets needs and that are not there."""
    paths = [_repository() / path for path in PROFILES.values()]
    return [path for path in paths if not path.is_file()]


class ProfiledPresets:
    """The presets of one profile."""

    def __init__(self, profile: Profile) -> None:
        self.skip = _skip_of(profile.recorded.solver)
        self.search = PlanSearch(profile, (self.skip,))

    def plan(self, preset: str) -> CachePlan:
        point = self.search.exactly(count_of(self.search.steps, SPEEDUPS[preset]), (self.skip,))
        point = replace(point, error=_rounded(point.error))
        return self.search.plan_of(point, Budget(speedup=SPEEDUPS[preset]), preset)


class RobustSearch:
    """Steps for models that nobody profiled: the least worst regret over several worlds.

    A world is a model as it might be: a fitted law of `law.worlds`, or a miniature's profile on
    the models' grid. The regret of a list is how much more error, in dB, the world predicts for it
    than for the best list of that length that was found there. A miniature is another model, so of
    its regret a share counts (docs/research/presets.md).
    """

    def __init__(self, planned: PlannedModel) -> None:
        family, self.steps = planned.family, planned.family.steps
        levels = planned.sigmas(self.steps)
        self.skip = _skip_of(family.solver)
        grid = SigmaGrid(family.solver, family.shift, tuple(levels))
        self.laws = {
            name: LawSearch(law, Levels(levels), family.solver) for name, law in worlds().items()
        }
        self.miniatures = {name: self._step_search(name, grid) for name in WORLDS}
        self.own, self.best = cache(self._own), cache(self._best)

    def plan(self, planned: PlannedModel, preset: str) -> CachePlan:
        """The preset of any model with this grid. It states no error: laws have no unit."""
        family = planned.family
        steps = self.best(count_of(self.steps, SPEEDUPS[preset]), MINIATURE[preset])
        return CachePlan.build(
            name=preset,
            model=planned.fingerprint,
            steps=self.steps,
            sigmas=[round(sigma, 6) for sigma in planned.sigmas(self.steps)],
            solver=family.solver,
            shift=family.shift,
            sites=from_steps(self.steps, steps, family.branches, self.skip),
            provenance={
                "made_by": ROBUST_BY,
                "source": LABEL,
                "settings": {"speedup": SPEEDUPS[preset]},
            },
        )

    def worst(self, steps: Sequence[int], share: float) -> float:
        """The largest regret, of a miniature's the share."""
        found = self.regrets(steps)
        return max(dB * (1 if name in self.laws else share) for name, dB in found.items())

    def regrets(self, steps: Sequence[int]) -> dict[str, float]:
        """By world, dB; below 0 where the list is better than the one that was found there."""
        by_law = {name: values[0] for name, values in self._by_law(np.array([steps])).items()}
        return {**by_law, **{name: self._by_miniature(name, steps) for name in self.miniatures}}

    def exchanged(self, steps: tuple[int, ...], share: float) -> tuple[int, ...] | None:
        """The best of all lists in which one step has moved; None where none is better."""
        free = np.setdiff1d(np.arange(1, self.steps), steps)
        lists = np.array(
            [sorted((*steps[:k], *steps[k + 1 :], b)) for k in range(1, len(steps)) for b in free]
        )
        by_law = np.max(list(self._by_law(lists).values()), axis=0)
        best, least = None, self.worst(steps, share) - SMALLEST_GAIN
        for n in np.argsort(by_law, kind="stable"):
            if by_law[n] >= least:
                break
            moved = tuple(lists[n].tolist())
            if (worst := self.worst(moved, share)) < least:
                best, least = moved, worst
        return best

    def _best(self, count: int, share: float) -> tuple[int, ...]:
        """Single steps are moved as long as that lowers the worst regret.

        It starts from every world's own list and from the means of two; the best end is taken.
        """
        pairs = combinations_with_replacement(self.own(count).values(), 2)
        starts = sorted({tuple((np.add(a, b) // 2).tolist()) for a, b in pairs})
        ends = [self._improved(start, share) for start in starts]
        return min(ends, key=lambda steps: (self.worst(steps, share), steps))

    def _improved(self, steps: tuple[int, ...], share: float) -> tuple[int, ...]:
        while (moved := self.exchanged(steps, share)) is not None:
            steps = moved
        return steps

    def _by_law(self, lists: np.ndarray) -> dict[str, np.ndarray]:
        own = self.own(lists.shape[1])
        errors = {
            name: law.errors(np.array([own[name], *lists])) for name, law in self.laws.items()
        }
        return {name: 20 * np.log10(found[1:] / found[0]) for name, found in errors.items()}

    def _by_miniature(self, name: str, steps: Sequence[int]) -> float:
        search, own = self.miniatures[name], self.own(len(steps))[name]
        return float(20 * np.log10(search.evaluate(steps).error / search.evaluate(own).error))

    def _own(self, count: int) -> dict[str, tuple[int, ...]]:
        """Every world's own best list."""
        by_law = {name: law.best(count) for name, law in self.laws.items()}
        return {**by_law, **{name: m.best(count).steps for name, m in self.miniatures.items()}}

    def _step_search(self, name: str, grid: SigmaGrid) -> StepSearch:
        search = PlanSearch(moved_to(Profile.load(_repository() / PROFILES[name]), grid))
        table = Segments(search.trajectories, self.skip).table
        return StepSearch(table, search.sensitivity.values)


def robust_search(model: str) -> RobustSearch:
    """Of all models that have this one's grid."""
    family = MODELS[model].family
    return _robust(next(name for name, planned in MODELS.items() if planned.family is family))


@cache
def _robust(model: str) -> RobustSearch:
    return RobustSearch(MODELS[model])


@cache
def _profiled(name: str) -> ProfiledPresets:
    return ProfiledPresets(Profile.load(_repository() / PROFILES[name]))


def _skip_of(solver: str) -> str:
    """The presets' reuse mode: a jump, with Euler a correction."""
    return skips_of(solver)[-1]


def _rounded(error: float) -> float:
    """To 4 digits: machines round differently."""
    return float(f"{error:.4g}")


def _repository() -> Path:
    """Where the trees lie beside the package when it is installed with -e."""
    return Path(str(resources.files("profiling_core"))).parent

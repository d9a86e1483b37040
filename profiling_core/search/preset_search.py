"""The search behind the shipped presets `quality`, `balanced` and `fast`.

The miniatures' are searched on the profiles beside their weights. A profile's presets are the plans
that `plan --speedup` finds on it in the solver's own reuse mode. The official models' files were
searched on magnitude ratios that are no longer here (commit 3d21302); `law_preset` makes theirs
from a law of `law.worlds`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

from profiling_core.plan import CachePlan
from profiling_core.plan.importers import from_steps
from profiling_core.plan.model_specs import PlannedModel
from profiling_core.plan.presets import STEPS, build_preset
from profiling_core.plan.regrid import SPEEDUPS
from profiling_core.plan.solvers import skips_of
from profiling_core.profile.profile import Profile
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.law import Law, LawSearch
from profiling_core.search.search import Budget, PlanSearch, count_of

PROFILES = {  # of the models that were profiled, in a clone of the repository
    "wan2.1-t2v-mini": "Wan2.1/ckpts/Wan2.1-T2V-mini/profile.safetensors",
    "hunyuan-video-t2v-mini": "HunyuanVideo/ckpts/HYVideo-mini/profile.safetensors",
}
LABEL = "from published figures, profile your model for a better one"
SHIPPED_BY = "profiling-dit 0.1.0"  # that searched the shipped files; the same when made again


def make_preset(planned: PlannedModel, preset: str) -> CachePlan:
    """The plan behind a shipped model's file; ProfileError where its profile is not there."""
    name = planned.fingerprint.name
    if preset not in SPEEDUPS:
        return build_preset(planned, preset)
    if name in PROFILES:
        plan = _profiled(name).plan(preset)
        made = plan.provenance.model_copy(update={"made_by": SHIPPED_BY})
        return plan.model_copy(update={"provenance": made})
    return build_preset(planned, preset)


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
        point = self.search.point_of(self.skip, count_of(self.search.steps, SPEEDUPS[preset]))
        point = replace(point, error=_rounded(point.error))
        return self.search.plan_of(point, Budget(speedup=SPEEDUPS[preset]), preset)


def law_preset(planned: PlannedModel, preset: str, law: Law, world: str) -> CachePlan:
    """The preset of a model that was not profiled, by one of the laws of `worlds`.

    It has no predicted error: public lists say which steps are better, not by how much.
    """
    family, skip = planned.family, _skip_of(planned.family.solver)
    search = LawSearch(law, Levels(planned.sigmas(STEPS)), family.solver)
    steps = search.best(count_of(STEPS, SPEEDUPS[preset]))
    return CachePlan.build(
        name=preset,
        model=planned.fingerprint,
        steps=STEPS,
        sigmas=[round(sigma, 6) for sigma in planned.sigmas(STEPS)],
        solver=family.solver,
        shift=family.shift,
        sites=from_steps(STEPS, steps, family.branches, skip),
        provenance={
            "made_by": SHIPPED_BY,
            "source": f"{LABEL}: a law fitted to public lists of steps (docs/research/law.md)",
            "settings": {"speedup": SPEEDUPS[preset], "world": world},
        },
    )


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

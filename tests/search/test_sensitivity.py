from __future__ import annotations

import numpy as np
import pytest

from made_profiles import made_profile
from profiling_core.plan.describe import summary_lines
from profiling_core.profile.profile import Profile
from profiling_core.search.search import Budget, PlanSearch
from profiling_core.search.sensitivity import DEFAULT, default_law, sensitivity_of
from profiling_core.search.trajectories import trajectories_of
from tree_paths import ROOT

PROFILES = {
    "wan": ROOT / "Wan2.1/ckpts/Wan2.1-T2V-mini/profile.safetensors",
    "hunyuan": ROOT / "HunyuanVideo/ckpts/HYVideo-mini/profile.safetensors",
}


def test_every_run_has_its_own_and_the_end_changes_nothing() -> None:
    profile = made_profile(runs=2, steps=20)
    profile.arrays["sensitivity"][:, [2, 6]] = [[8.0, 2.0], [1.0, 0.25]]
    found = sensitivity_of(profile, trajectories_of(profile))
    assert found.source == "measured at 2 steps"
    assert np.allclose(found.values[[0, 2, 4, 6, 19], 0], [8, 8, 4, 2, 2])
    assert np.allclose(found.values[[0, 2, 4, 6, 19], 1], [1, 1, 0.5, 0.25, 0.25])
    assert np.allclose(found.values[20], 1)


@pytest.mark.parametrize("tree", PROFILES)
def test_the_default_law_is_what_both_miniatures_have_in_common(tree: str) -> None:
    profile = Profile.load(PROFILES[tree])
    values = profile.arrays["sensitivity"].astype(np.float64)
    measured = np.isfinite(values).all(axis=0)
    means = np.exp(np.log(values[:, measured]).mean(axis=0))
    law = default_law(np.append(profile.recorded.sigmas, 0.0))[:-1][measured]
    ratio = means / law
    assert np.exp(np.abs(np.log(ratio)).mean()) < 2.0  # 1.7 for either
    assert 0.2 < ratio.min() and ratio.max() < 4.0
    assert np.corrcoef(np.log(means), np.log(law))[0, 1] > 0.7


def test_a_plan_by_the_default_law_says_so() -> None:
    plan = PlanSearch(made_profile(runs=1, steps=20)).plan(Budget(speedup=2.0))
    assert plan.provenance.settings["sensitivity"] == DEFAULT
    assert any("by the default law of sensitivity" in line for line in summary_lines(plan))


@pytest.mark.parametrize("tree", PROFILES)
def test_the_profiles_beside_the_miniatures_are_searched(tree: str) -> None:
    search = PlanSearch(Profile.load(PROFILES[tree]))
    plan = search.plan(Budget(speedup=2.0))
    assert search.sensitivity.source == "measured at 11 steps"
    assert 0 < plan.expected.predicted_error < 0.05
    assert search.trajectories.runs == 6 and not any("default" in s for s in summary_lines(plan))

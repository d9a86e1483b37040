"""Steps at which a part of the model is left out: parts, prices, predicted errors, plans."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from made_profiles import made_profile
from profiling_core.cost import speedup_flops
from profiling_core.partial_steps import PartialSearch, part_named, parts_of
from profiling_core.plan import PlanError
from profiling_core.profile import Profile
from profiling_core.search import Budget, PlanSearch
from profiling_core.step_search import EASE, TOLD

WAN, HUNYUAN = "wan2.1-t2v-mini", "hunyuan-video-t2v-mini"


@pytest.fixture(scope="module")
def profiles() -> dict[str, Profile]:
    return {name: made_profile(model=name, runs=3, steps=20) for name in (WAN, HUNYUAN)}


def partial_search(profile: Profile, name: str) -> tuple[PlanSearch, PartialSearch]:
    search = PlanSearch(profile)
    weights = search.sensitivity.values**EASE
    return search, PartialSearch(profile, search.paths, part_named(profile, name), weights)


def test_a_part_costs_its_share_of_a_step(profiles) -> None:
    wan, hunyuan = (parts_of(profiles[name]) for name in (WAN, HUNYUAN))
    assert set(wan) == {"uncond", "background", "front", "back"}
    assert set(hunyuan) == {"background", "front", "back", "double_blocks", "single_blocks"}
    assert wan["uncond"].share == wan["front"].share == 0.5
    assert hunyuan["double_blocks"].share == pytest.approx(4 / 14)
    assert hunyuan["front"].blocks == {"double_blocks": (0, 1, 2, 3), "single_blocks": (0, 1, 2)}
    assert wan["uncond"].branches == ("uncond",)


@pytest.mark.parametrize("model", [WAN, HUNYUAN])
def test_every_part_makes_a_plan_at_the_price_of_whole_steps(profiles, model) -> None:
    profile, count = profiles[model], 11
    for name in parts_of(profile):
        search = PlanSearch(profile, parts=(name,))
        budget = Budget(speedup=20 / count)
        points = [p for p in search.candidates(budget, 99) if p.part == name]
        assert points, name
        for point in points:
            assert set(point.partial) < set(point.steps) and len(point.steps) > count
            plan = search.plan_of(point, budget)
            assert speedup_flops(plan) == pytest.approx(point.speedup, rel=1e-3)
            assert speedup_flops(plan) >= 20 / count - 1e-6
            for site in plan.interval_sites:
                for branch in plan.branches:
                    left_out = set(point.steps) - set(site.compute_steps[branch])
                    expected = (
                        set(point.partial) if branch in search.parts[name].branches else set()
                    )
                    assert left_out == expected


def test_a_partial_step_follows_two_whole_ones(profiles) -> None:
    search, partial = partial_search(profiles[WAN], "front")
    best = partial.best(search._search("jump"), 11)
    places = [best.steps.index(step) for step in best.partial]
    assert min(places) >= 2
    assert all(later - earlier > 1 for earlier, later in pairwise(places))


def test_leaving_all_blocks_out_leaves_what_the_forecast_leaves(profiles) -> None:
    """(11) with phi = 1, and (12) by hand."""
    search, partial = partial_search(profiles[HUNYUAN], "front")
    every = {"double_blocks": tuple(range(4)), "single_blocks": tuple(range(10))}
    object.__setattr__(partial.part, "blocks", every)
    steps = tuple(range(20))
    v, sigma = search.paths.predictions, search.paths.levels.sigma
    slope = (sigma[7] - sigma[6]) / (sigma[6] - sigma[5])
    left = (sigma[8] - sigma[7]) * (v[6] + slope * (v[6] - v[5]) - v[7])
    weight = search.sensitivity.values[8] ** EASE
    expected = TOLD["hold"] * np.linalg.norm(left, axis=-1) * weight
    found = partial.errors(search._search("hold"), steps, (7,))
    assert found == pytest.approx(expected, rel=1e-5)
    assert partial.errors(search._search("hold"), steps, ()) == pytest.approx(np.zeros(3))


def test_the_unconditional_branch_keeps_its_products(profiles) -> None:
    profile = profiles[WAN]
    search, partial = partial_search(profile, "uncond")
    u, factor = partial._uncond
    scales = np.array([run.guidance for run in profile.runs])
    assert factor == pytest.approx(1 - scales)
    for run, gram in enumerate(profile.arrays["gram"]):
        products = gram[20:40, 20:40] / gram[-1, -1]
        assert u[:, run] @ u[:, run].T == pytest.approx(products, abs=1e-6 * products.max())
        width = search.paths.latents.shape[-1]
        final = gram[20:40, -1] / gram[-1, -1]
        assert u[:, run, :width] @ search.paths.latents[-1, run] == pytest.approx(
            final, abs=1e-6 * abs(final).max()
        )


def test_parts_are_considered_only_within_a_speed_up(profiles) -> None:
    search = PlanSearch(profiles[WAN], parts=tuple(parts_of(profiles[WAN])))
    most = 10**9
    assert all(point.part is None for point in search.candidates(Budget(2.0, None, most), 99))
    whole = PlanSearch(profiles[WAN]).point(Budget(speedup=2.0))
    assert search.point(Budget(speedup=2.0)).error <= whole.error


def test_an_unknown_part_is_refused(profiles) -> None:
    with pytest.raises(PlanError, match="no part 'middle': this model has uncond, background"):
        PlanSearch(profiles[WAN], parts=("middle",))
    with pytest.raises(PlanError, match="no part 'uncond': this model has background, front"):
        PlanSearch(profiles[HUNYUAN], parts=("uncond",))

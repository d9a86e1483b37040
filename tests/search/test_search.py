from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from made_profiles import made_profile
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.regrid import regrid
from profiling_core.search.fitted_jump import LEAST_RUNS
from profiling_core.search.search import Budget, PlanSearch, Point

WAN, HUNYUAN = "wan2.1-t2v-mini", "hunyuan-video-t2v-mini"


@pytest.fixture(scope="module", params=[WAN, HUNYUAN])
def search(request) -> PlanSearch:
    return PlanSearch(made_profile(model=request.param, runs=3, steps=20))


def test_a_speed_up_is_reached_in_the_solvers_own_mode(search: PlanSearch) -> None:
    plan = search.plan(Budget(speedup=1.9))
    assert plan.name == "2.00x" and speedup_flops(plan) == 2.0
    assert plan.expected.predicted_error == pytest.approx(search.predicted(plan))
    assert plan.prediction.skip == search.skips[-1]
    assert plan.expected.predicted_error <= search.point_of(search.skips[-1], 10).error
    assert plan.branches == search.profile.recorded.branches


@pytest.mark.parametrize(
    ("model", "skips", "expected"),
    [
        (WAN, None, "fitted"),
        (WAN, ("hold", "jump", "linear"), "jump"),
        (HUNYUAN, None, "corrected"),
        (HUNYUAN, ("hold", "linear"), "linear"),
    ],
)
def test_a_near_tie_of_modes_is_decided_by_runs_not_by_the_prediction(
    model: str, skips: tuple[str, ...] | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = PlanSearch(made_profile(model=model, runs=LEAST_RUNS, steps=12), skips)

    def nearly_tied(skip: str, count: int) -> Point:
        return Point(skip, tuple(range(count)), 12 / count, (1 - 0.01 * (skip != expected)) / count)

    monkeypatch.setattr(search, "_point", nearly_tied)
    assert search.point(Budget(speedup=2.0)).skip == expected


def test_much_more_speed_predicts_more_error(search: PlanSearch) -> None:
    for skip in search.skips:
        errors = [search.point_of(skip, count).error for count in (20, 14, 9, 5, 2)]
        assert errors[0] < 1e-6
        assert all(slower < faster for slower, faster in pairwise(errors))


def test_steps_are_added_to_a_plan_of_fewer_that_errs_less(
    search: PlanSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip, good = search.skips[-1], search.point_of(search.skips[-1], 8)
    bad = search._search(skip).evaluate(range(10))  # the end is one stretch
    stuck = Point(skip, bad.steps, 2.0, 2 * good.error)
    kept = {10: stuck, 9: stuck, 8: good}
    monkeypatch.setattr(search, "_point", lambda skip, count: kept.get(count, stuck))
    found = search.exactly(10)
    assert set(good.steps) < set(found.steps) and len(found.steps) == 10
    assert found.error < good.error and found.speedup == 2.0
    assert found.error == search.predicted(search.plan_of(found, Budget(speedup=2.0)))


def test_a_largest_error_gives_the_fastest_plan_below_it(search: PlanSearch) -> None:
    reached = search.plan(Budget(speedup=2.0)).expected.predicted_error
    plan = search.plan(Budget(max_error=reached))
    assert plan.expected.predicted_error <= reached
    assert speedup_flops(plan) >= 2.0
    with pytest.raises(PlanError, match=r"at 4\.00x the predicted error is .* at best: allow"):
        search.plan(Budget(speedup=4.0, max_error=reached / 10))


def test_bytes_limit_the_ways_to_skip() -> None:
    wan, hunyuan = (PlanSearch(made_profile(model=m, runs=2, steps=20)) for m in (WAN, HUNYUAN))
    plan = wan.plan(Budget(max_bytes=0))
    assert plan.jumps and speedup_flops(plan) == 2.0
    one = 16 * 9 * 16 * 16 * 4
    assert hunyuan.plan(Budget(max_bytes=one)).prediction.skip == "hold"
    with pytest.raises(PlanError, match="0 B: the anchors need 144 KiB at least, with hold"):
        hunyuan.plan(Budget(max_bytes=0))


def test_a_plan_names_its_profile_and_settings(search: PlanSearch, tmp_path: Path) -> None:
    plan = search.plan(Budget(speedup=3.0), name="mine")
    plan.save(tmp_path / "mine.json")
    written = json.loads((tmp_path / "mine.json").read_text())
    assert written["name"] == "mine"
    assert written["provenance"]["profile_sha256"] == search.profile.sha256()
    assert written["provenance"]["settings"]["speedup"] == 3.0
    assert written["provenance"]["settings"]["sensitivity"] == search.sensitivity.source
    assert CachePlan.load(tmp_path / "mine.json") == plan


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "no budget: give --speedup"),
        ({"speedup": 0.5}, "--speedup 0.5: expected at least 1"),
        ({"max_error": 0.0}, "--max-error 0: expected above 0"),
        ({"max_bytes": -1}, "--max-bytes -1: expected at least 0"),
    ],
)
def test_budgets_that_limit_nothing_are_refused(budget: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Budget(**budget)


def test_more_than_one_step_a_step_is_refused(search: PlanSearch) -> None:
    with pytest.raises(PlanError, match="--speedup 21: 20 steps allow 20x at most"):
        search.plan(Budget(speedup=21.0))
    assert len(search.plan(Budget(speedup=20.0)).prediction.compute_steps["cond"]) == 1


def test_a_reuse_mode_that_the_solver_lacks_is_refused() -> None:
    with pytest.raises(PlanError, match="'jump' is no reuse mode with euler: hold, linear, cor"):
        PlanSearch(made_profile(model=HUNYUAN, runs=1, steps=20), ("jump",))


def test_measured_sensitivity_moves_the_compute_steps() -> None:
    profile = made_profile(model=HUNYUAN, runs=2)
    flat = PlanSearch(profile).plan(Budget(speedup=2.0)).prediction.compute_steps["cond"]
    profile.arrays["sensitivity"][:, [1, 10, 25]] = [50.0, 20.0, 1.0]
    search = PlanSearch(profile)
    early = search.plan(Budget(speedup=2.0)).prediction.compute_steps["cond"]
    assert search.sensitivity.source == "measured at 3 steps"
    assert search.sensitivity.values[[0, 1, 25, 50]] == pytest.approx([50, 50, 1, 1])
    assert sum(step < 10 for step in early) > sum(step < 10 for step in flat)


def test_plans_of_other_sites_are_not_predicted(search: PlanSearch) -> None:
    plan = search.plan(Budget(speedup=2.0))
    other = regrid(plan, tuple(np.linspace(0.99, 0.02, 30)), solver=plan.solver, shift=plan.shift)
    with pytest.raises(PlanError, match="plans of the whole prediction with the profile's 20"):
        search.predicted(other)

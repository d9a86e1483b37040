"""benchmarks/left_out.py: its plans and its tables; no model runs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import left_out
from left_out import AIMS, BUDGETS, OTHERS, key, plans, summary, told
from made_profiles import made_profile
from profiling_core.search import PlanSearch
from profiling_core.step_search import TOLD, USUAL, Aim

USUAL_WORDS = f"ease {USUAL.ease:g}, quantile {USUAL.bad:g}"


def row(skip: str, psnr: float, predicted: float, prompt: str = "a", aim: Aim = USUAL) -> dict:
    return {
        **{"tree": "wan", "weights": "w", "prompt": prompt, "seed": 1, "budget": 1.9},
        **{"skip": skip, **asdict(aim), "plan": skip + prompt, "psnr_frames": psnr},
        "predicted": predicted,
    }


def test_the_table_takes_what_was_predicted_to_err_least():
    rows = [row("jump", 50, 0.02), row("linear", 60, 0.03), row("jump", 40, 0.05, "b")]
    lines = {line[:40].strip(): line for line in summary(rows, "wan").splitlines()}
    assert "45.0 +-7.1 (40.0)" in lines[f"jump, {USUAL_WORDS}"]
    assert "60.0 (60.0)" in lines[f"linear, {USUAL_WORDS}"]
    assert "45.0 +-7.1 (40.0)" in lines[f"least predicted, {USUAL_WORDS}"]
    assert summary(rows, "hunyuan").count("\n") == 1  # the header alone


def test_a_row_that_was_made_again_counts_once():
    rows = [row("jump", 50, 0.02), row("jump", 52, 0.02)]
    assert "52.0 (52.0)" in summary(rows, "wan") and len({key(one) for one in rows}) == 1


@pytest.mark.parametrize("tried", [("corrected",), ("linear", "corrected")])
def test_every_aim_of_the_named_ways_and_one_of_the_others(tried: tuple[str, ...]) -> None:
    search = PlanSearch(made_profile("hunyuan-video-t2v-mini", runs=3, steps=12))
    found = [one for one, _ in plans(search, tried)]
    for budget in BUDGETS:
        ways = [(one["skip"], one["ease"], one["bad"]) for one in found if one["budget"] == budget]
        others = set(search.skips) - set(tried) if budget in OTHERS else set()
        wanted = [(skip, aim.ease, aim.bad) for skip in tried for aim in AIMS]
        usual = [(skip, USUAL.ease, USUAL.bad) for skip in others]
        assert sorted(ways) == sorted([*wanted, *usual])
    assert USUAL in AIMS
    assert all(one["steps"][0] == 0 and one["predicted"] > 0 for one in found)


def test_what_plans_tell_is_compared_with_what_was_measured(monkeypatch) -> None:
    profile = made_profile("hunyuan-video-t2v-mini", runs=3, steps=12)
    monkeypatch.setattr(left_out, "_without", lambda *prompt: profile)
    search = PlanSearch(profile)
    steps = search.point_of("linear", 6).steps
    plain = search._search("linear").evaluate(steps).error / TOLD["linear"]
    base = {**row("linear", 50, 0.02), "tree": "hunyuan", "steps": list(steps)}
    measured = {"a": 2 * plain, "b": 8 * plain}
    rows = [base | {"prompt": p, "latent_error": error} for p, error in measured.items()]
    lines = {line.split()[0]: line.split()[1:] for line in told(rows).splitlines()[2:]}
    assert lines["linear"] == ["-", "4.00", "(2)", "4.00"]
    assert lines["jump"] == ["-", "-", "-"]

"""benchmarks/left_out.py: its plans and its table; no model runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import left_out
from left_out import BUDGETS, EASES, OTHERS, key, plans, summary
from made_profiles import made_profile
from profiling_core.search import PlanSearch


def row(skip: str, psnr: float, predicted: float, prompt: str = "a", ease: float = 0.75) -> dict:
    return {
        **{"tree": "wan", "weights": "w", "prompt": prompt, "seed": 1, "budget": 1.9},
        **{"skip": skip, "ease": ease, "plan": skip + prompt, "psnr_frames": psnr},
        "predicted": predicted,
    }


def test_the_table_takes_what_was_predicted_to_err_least():
    rows = [row("jump", 50, 0.02), row("linear", 60, 0.03), row("jump", 40, 0.05, "b")]
    lines = {line[:28].strip(): line for line in summary(rows, "wan").splitlines()}
    assert "45.0 +-7.1 (40.0)" in lines["jump, ease 0.75"]
    assert "60.0 (60.0)" in lines["linear, ease 0.75"]
    assert "45.0 +-7.1 (40.0)" in lines["least predicted, ease 0.75"]
    assert summary(rows, "hunyuan").count("\n") == 1  # the header alone


def test_a_row_that_was_made_again_counts_once():
    rows = [row("jump", 50, 0.02), row("jump", 52, 0.02)]
    assert "52.0 (52.0)" in summary(rows, "wan") and len({key(one) for one in rows}) == 1


@pytest.mark.parametrize("eased", [("corrected",), ("linear", "corrected")])
def test_every_ease_of_the_named_ways_and_one_of_the_others(eased: tuple[str, ...]) -> None:
    search = PlanSearch(made_profile("hunyuan-video-t2v-mini", runs=3, steps=12))
    found = [one for one, _ in plans(search, eased)]
    for budget in BUDGETS:
        ways = [(one["skip"], one["ease"]) for one in found if one["budget"] == budget]
        others = set(search.skips) - set(eased) if budget in OTHERS else set()
        wanted = [(skip, ease) for skip in eased for ease in EASES]
        assert sorted(ways) == sorted([*wanted, *((skip, 0.75) for skip in others)])
    assert all(one["steps"][0] == 0 and one["predicted"] > 0 for one in found)
    assert left_out.NAME == "left_out"

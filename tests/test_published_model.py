"""The benchmark that judges plans from magnitude ratios: its policies, its tables."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import published_model
from made_profiles import made_profile


def test_the_list_by_hand_is_the_old_preset_at_26_steps() -> None:
    assert published_model.by_hand(26)[:10] == tuple(range(10))
    assert published_model.by_hand(26)[-4:] == (46, 47, 48, 49)
    assert [len(published_model.by_hand(count)) for count in (33, 25, 16)] == [33, 25, 16]


@pytest.mark.parametrize("model", ["wan2.1-t2v-mini", "hunyuan-video-t2v-mini"])
def test_policies_know_the_ratios_alone(model: str) -> None:
    miniature = published_model.Miniature(made_profile(model=model, runs=2))
    assert miniature.models["ratios"] == pytest.approx(np.abs(1 - miniature.ratios))
    assert all(change.shape == (49,) for change in miniature.models.values())
    assert published_model.CHOSEN in miniature.models
    steps = miniature.magcache(30)
    assert steps is None or (len(steps) == 30 and steps[:10] == tuple(range(10)))
    assert miniature.plan((0, 5, 9)).prediction.skip == miniature.skip


def test_tables_hold_errors_over_the_profile_s() -> None:
    rows = [
        {"tree": tree, "policy": policy, "speedup": speedup, "error": error, "by": "gram"}
        for tree in ("hunyuan", "wan")
        for policy, error in (
            (published_model.FULL, 0.01),
            ("by hand", 0.02),
            *((f"both, turn {turn:g}", 0.01 + turn / 100) for turn in published_model.TURNS),
        )
        for speedup in published_model.SPEEDUPS
    ]
    assert published_model.excess(rows, "wan", "by hand") == pytest.approx(2.0)
    table, *checks = published_model.tables(rows)
    assert "| wan | by hand | 0.0200 |" in table and table.count("| 2.00 |") >= 2
    assert checks[0].startswith("both, turn 0.125: best on hunyuan (1.12), 1.12 on wan")

"""The tables of benchmarks/search/transfer.py and the choice of runs; no model runs."""

from __future__ import annotations

import numpy as np

from benchmarks.search.transfer import grouped, loss_table, tables
from made_profiles import made_profile


def row(policy: str, prompt: str, psnr: float, **more: object) -> dict:
    return {
        "part": "settings",
        "tree": "wan",
        "setting": "30 steps",
        "policy": policy,
        "prompt": prompt,
        "speedup": 2.0,
        "skip": "jump",
        "computed": [0, 1, 2],
        "psnr_frames": psnr,
        "ssim": 0.99,
        "latent_error": 0.02,
        "predicted": 0.01,
        "predicted_recorded": 0.02,
        **more,
    }


ROWS = [
    row("carried, speed kept", "a", 40.0, predicted=0.02),
    row("carried, speed kept", "b", 42.0, predicted=0.02),
    row("searched, 3 computed", "a", 43.0, computed=[0, 1, 4]),
    row("searched, 3 computed", "b", 47.0, computed=[0, 1, 4]),
    row("searched, recorded there, 3 computed", "a", 43.0, computed=[0, 1, 4]),  # the same plan
    row("3 plain steps", "a", 35.0, skip=None, computed=3, predicted=None),
]


def test_loss_is_the_paired_difference_from_the_search_at_equal_cost():
    (line,) = loss_table(grouped(ROWS, "settings")).splitlines()[2:]
    assert line == "| wan | 30 steps | carried, speed kept | 6.0 | 4.0 +-1.0 | 2 |"


def test_every_sampler_has_a_row_and_the_newest_counts():
    text = tables([*ROWS, row("3 plain steps", "a", 36.0, skip=None, computed=3, predicted=None)])
    assert "| 3 plain steps | 2.00x | - | 36.0 | 0.9900 | 0.0200 | - | 0.0200 | 1 |" in text
    assert "| searched, 3 computed | 2.00x | jump | 45.0 +-2.0 (43.0) |" in text
    assert "wan, 2 plans: rank correlation" in text


def test_some_runs_keep_their_own_arrays():
    profile = made_profile(runs=3, steps=8)
    some = profile.of_runs((0, 2))
    assert [run.prompt for run in some.runs] == ["prompt 0 of 0", "prompt 2 of 0"]
    assert np.array_equal(some.arrays["gram"], profile.arrays["gram"][[0, 2]])
    assert some.arrays["block_flops"] is profile.arrays["block_flops"]

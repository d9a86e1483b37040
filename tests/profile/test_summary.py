"""The numbers and the terminal lines of a profile."""

from dataclasses import replace

import numpy as np
import pytest

from made_profiles import made_profile, with_arrays
from profiling_core.errors import ProfileError
from profiling_core.profile.block_scores import block_scores
from profiling_core.profile.profile import Profile, Settings
from profiling_core.profile.summary import (
    agreement,
    rank_correlations,
    ranking,
    settings_lines,
    stability,
    summary_lines,
)

HUNYUAN = "hunyuan-video-t2v-mini"


def with_share(profile, share):
    return with_arrays(profile, attention_share=np.asarray(share, np.float32))


def without_attention(profile):
    subject = profile.subject.model_copy(update={"attention_steps": (), "map_steps": ()})
    arrays = {n: a for n, a in profile.arrays.items() if n[:4] not in ("atte", "mask")}
    settings = Settings(attention_every=0)
    return replace(profile, settings=settings, subject=subject, arrays=arrays)


def rising(profile, signs):
    """R_attn that rises over the blocks where the sign of (run, branch, step) is 1, else falls."""
    shape = profile.arrays["attention_share"].shape
    ramp = np.linspace(0.1, 0.5, shape[-1])
    return with_share(profile, np.where(signs[..., None] > 0, ramp, ramp[::-1]))


def test_rank_correlation_is_spearmans_with_mean_ranks_of_ties():
    rows = np.array([[1, 2, 3, 4.0], [10, 20, 40, 30], [4, 3, 2, 1], [1, 1, 2, 2], [5, 5, 5, 5]])
    found = rank_correlations(rows)
    np.testing.assert_allclose(found[0, :4], [1, 0.8, -1, 2 / np.sqrt(5)])
    np.testing.assert_allclose(found[:4, :4], found[:4, :4].T)
    assert np.isnan(found[4]).all()
    assert np.isnan(rank_correlations(np.array([[1, 2.0], [np.nan, 1]]))[0, 1])


def test_ranking_lists_all_blocks_the_largest_first():
    rows = ranking(made_profile(HUNYUAN))
    scores = [row.score for row in rows]
    assert scores == sorted(scores, reverse=True) and len(rows) == 14
    assert {(row.block_list, row.block) for row in rows[:4]} == {
        ("double_blocks", 1),
        ("single_blocks", 1),
        ("single_blocks", 4),
        ("single_blocks", 5),
    }
    sides = {(row.block_list, row.block): row.side for row in rows}
    assert sides["single_blocks", 1] == "F" and sides["single_blocks", 0] == "B"
    assert sides["double_blocks", 1] == "F" and sides["double_blocks", 0] == "B"
    for row in rows:
        assert row.lift == pytest.approx(row.score / 0.2, rel=1e-5)
        assert 0 < row.spread < 0.05
    assert max(scores) == pytest.approx(block_scores(made_profile(HUNYUAN)).max())


def test_stability_tells_a_ranking_that_stays_from_one_that_turns():
    profile = made_profile()
    signs = np.ones((2, 2, 10))
    steady = stability(rising(profile, signs))
    assert steady.mean == pytest.approx(1) and steady.early_late == pytest.approx(1)
    assert steady.matrix.shape == (10, 10)
    signs[..., 5:] = -1
    turned = stability(rising(profile, signs))
    assert turned.early_late == pytest.approx(-1)
    assert turned.mean == pytest.approx((20 - 25) / 45)  # 2 x 10 pairs alike, 25 opposite


def test_agreement_tells_runs_prompts_and_branches_apart():
    profile = made_profile(runs=3)
    runs = list(profile.runs)
    runs[1] = runs[1].model_copy(update={"prompt": runs[0].prompt})
    profile = replace(profile, runs=tuple(runs))
    signs = np.ones((3, 2, 10))
    signs[2] = -1
    found = agreement(rising(profile, signs))
    assert found.runs == pytest.approx(-1 / 3)  # one pair alike, two opposite
    assert found.prompts == pytest.approx(-1)
    assert found.branches == pytest.approx(1)
    signs[:, 1] = -signs[:, 0]
    assert agreement(rising(profile, signs)).branches == pytest.approx(-1)
    alone = agreement(made_profile(HUNYUAN, runs=1))
    assert np.isnan([alone.runs, alone.prompts, alone.branches]).all()


def test_steps_with_an_empty_mask_are_left_out(recwarn):
    profile = rising(made_profile(), np.ones((2, 2, 10)))
    share = profile.arrays["attention_share"].copy()
    share[:, :, 0] = np.nan
    share[0, 1, 4] = np.nan
    holes = with_share(profile, share)
    assert stability(holes).mean == pytest.approx(1)
    assert agreement(holes).runs == pytest.approx(1)
    assert np.isfinite([row.spread for row in ranking(holes)]).all()
    assert not recwarn.list


def test_summary_names_runs_blocks_sides_and_curve():
    lines = summary_lines(made_profile())
    text = "\n".join(lines)
    for part in (
        "profile of wan2.1-t2v-mini: 2 runs of 50 steps",
        "branches cond, uncond",
        "foreground mask: pca",
        "run 2: 'prompt 1 of 0', seed 1",
        "20.0 s, 0.100 s a call, cpu float32, foreground 14.0 %",
        "foreground blocks (4): 1 5 8-9",
        "background blocks (8): 0 2-4 6-7 10-11",
        "(Otsu)",
        "between steps 0.",
        "early against late 0.",
        "suggests warm-up",
        "Tmax 12",
    ):
        assert part in text
    assert "sensitivity" not in text
    assert max(map(len, lines)) <= 100
    table = [line for line in lines if line.startswith("blocks ")]
    assert len(table) == 12 and table[0].endswith("F") and table[-1].endswith("B")
    bars = [line for line in lines if "|" in line]
    assert len(bars) == 6 and len(bars[-1]) == len("        |") + 49
    assert bars[0].split("|")[1].startswith("#") and " " * 20 in bars[0]


@pytest.mark.parametrize("steps", [2, 200])
def test_summary_of_few_and_many_steps_is_whole_and_narrow(steps):
    lines = summary_lines(made_profile(steps=steps, runs=1))
    assert max(map(len, lines)) <= 100
    assert any(line.endswith(f"to {steps - 1}") for line in lines)


def test_summary_says_what_sampled_attention_and_sensitivity_cost():
    profile = made_profile(settings=Settings(sensitivity=(3, 12)))
    sampled = profile.runs[0].model_copy(update={"attention_rows": 512, "attention_error": 0.031})
    sensitivity = profile.arrays["sensitivity"].copy()
    sensitivity[:, 3], sensitivity[0, 12] = [13, 15], 2.5
    profile = replace(profile, runs=(sampled, profile.runs[1]))
    profile = with_arrays(profile, sensitivity=sensitivity)
    text = "\n".join(summary_lines(profile))
    assert "attention +-3.1 % from 512 rows" in text
    assert "before a step (geometric mean): 14 at 3, 2.5 at 12" in text


def test_summary_of_a_run_whose_every_step_had_attention():
    profile = made_profile(runs=1)
    run = profile.runs[0].model_copy(update={"model_seconds": None, "foreground": None})
    seconds = np.full_like(profile.arrays["block_seconds"], np.nan)
    profile = with_arrays(replace(profile, runs=(run,)), block_seconds=seconds)
    text = "\n".join(summary_lines(profile))
    assert "  20.0 s, cpu float32\n" in text
    assert "0.08       -  F" in text.replace("0.081", "0.08").replace("0.083", "0.08")


def test_summary_without_attention_shows_drift_and_seconds():
    text = "\n".join(summary_lines(without_attention(made_profile())))
    assert "no attention" in text and "attention_every > 0" in text
    assert "blocks 11       -      -       -   0.08" in text
    assert "equation 7" not in text and "suggests warm-up" in text
    with pytest.raises(ProfileError, match="holds no attention"):
        ranking(without_attention(made_profile()))


def test_summary_says_why_there_are_no_sides():
    profile = made_profile()
    share = profile.arrays["attention_share"]
    text = "\n".join(summary_lines(with_share(profile, np.full_like(share, np.nan))))
    assert "no R_attn, so no F and B: no foreground in any mask" in text
    text = "\n".join(summary_lines(with_share(profile, np.full_like(share, 0.2))))
    assert "no F and B: 12 blocks of one and the same score" in text


def test_summary_without_runs_shows_the_settings():
    lines = summary_lines(
        Profile(Settings(mask="sam2", mask_source="/weights", attention_every=2, sensitivity=(1,)))
    )
    assert lines[0] == "a profile without runs yet"
    assert "  foreground mask: sam2 from /weights" in lines
    assert any("attention every 2 steps" in line for line in lines)
    assert any("sensitivity at steps 1" in line for line in lines)
    high = settings_lines(Settings(high_share=None, high_threshold=1.5, attention_every=1))
    assert any("every step;" in line and "above 1.5 x the mean" in line for line in high)


def test_a_prompt_cannot_write_to_the_terminal():
    profile = made_profile(runs=1)
    run = profile.runs[0].model_copy(update={"prompt": "a\x1b[2Jb\nc" + "x" * 200, "seed": None})
    lines = summary_lines(replace(profile, runs=(run,)))
    (line,) = [line for line in lines if line.startswith("run 1")]
    assert line.startswith("run 1: 'a [2Jb cxxx") and line.endswith("...', seed -")
    assert all(part.isprintable() for part in lines)


def test_a_profile_without_runs_has_no_ranking():
    with pytest.raises(ProfileError, match="no run yet"):
        ranking(Profile())

"""The shipped plans: what they compute, what they hold, how their lists are scaled."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from made_profiles import made_profile
from profiling_core.commands.main import main
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held, speedup_flops
from profiling_core.plan.describe import format_bytes, summary_lines
from profiling_core.plan.model_specs import HUNYUAN, MODELS, WAN
from profiling_core.plan.presets import (
    SHRINKING,
    available,
    build_preset,
    load_preset,
    paper_sites,
    presets_of,
)
from profiling_core.search import preset_search as searched_presets
from profiling_core.search.paper_method import ABLATIONS, PATTERNS
from profiling_core.search.preset_search import LABEL, MINIATURE, robust_search

SHIPPED = [(model, preset) for model, planned in MODELS.items() for preset in presets_of(planned)]
HUNYUAN_720P, HUNYUAN_MINI = "hunyuan-video-t2v-720p", "hunyuan-video-t2v-mini"
OURS = ("quality", "balanced", "fast")
TABLE_3 = {"background": 1.87, "foreground": 1.57, "split": 1.65, "alternate": 1.65}
HELD = ("paper", "release", "foreground", "split", "alternate")


def blocks(plan, block_list: str) -> list[int]:
    """The reused blocks of a list, one by one."""
    runs = [r for s in plan.interval_sites if s.block_list == block_list for r in s.intervals]
    return [block for first, last in runs for block in range(first, last + 1)]


@pytest.mark.parametrize(("model", "preset"), SHIPPED)
def test_shipped_plan_is_what_its_builder_makes(model, preset):
    assert load_preset(model, preset) == searched_presets.make_preset(MODELS[model], preset)


def test_release_has_the_block_runs_measured_on_the_released_code():
    plan = load_preset("wan2.1-t2v-14B", "release")
    assert plan.expected.block_runs == 2 * 992
    assert speedup_flops(plan) == pytest.approx(2.016, abs=1e-3)


def test_paper_holds_ten_deltas_and_ours_nothing():
    paper = load_preset("wan2.1-t2v-14B", "paper")
    size = {"tokens": 32760, "stream_itemsize": 4, "latent_numel": 2096640}
    assert bytes_held(paper, **size) == 10 * 32760 * 5120 * 4
    for preset in OURS:
        assert bytes_held(load_preset("wan2.1-t2v-14B", preset), **size) == 0


@pytest.mark.parametrize("model", MODELS)
def test_ours_hold_less_than_100_mb_and_cost_what_they_say(model):
    clip, steps = MODELS[model].clip, MODELS[model].family.steps
    plans = [load_preset(model, preset) for preset in OURS]
    counts = (33, 25, 16) if steps == 50 else (26, 20, 13)
    for plan, count in zip(plans, counts, strict=True):
        size = {"tokens": clip.tokens, "stream_itemsize": 4, "latent_numel": clip.latent}
        assert bytes_held(plan, **size) < 100e6, format_bytes(bytes_held(plan, **size))
        assert plan.expected.speedup_flops == pytest.approx(steps / count, abs=1e-4)
        computed = plan.prediction.compute_steps
        assert set(computed.values()) == {computed["cond"]} and len(computed["cond"]) == count
    errors = [plan.expected.predicted_error for plan in plans]
    if "mini" in model:
        assert 0 < errors[0] < errors[1] < errors[2] < 0.1
    else:  # a law has no unit
        assert errors == [None] * 3


@pytest.mark.parametrize("model", MODELS)
def test_presets_of_models_that_nobody_profiled_say_so(model, capsys):
    for preset in OURS:
        plan = load_preset(model, preset)
        fitted = "mini" not in model
        assert (LABEL in plan.provenance.source) is fitted
        assert (plan.provenance.profile_sha256 is None) is fitted
        assert main(["show", preset, "--model", model]) == 0
        shown = capsys.readouterr().out
        assert (LABEL in shown) is fitted
        assert ("predicted relative error" in shown) is not fitted


@pytest.mark.parametrize(
    ("model", "worst"),  # of the laws, of all worlds: docs/research/presets.md
    [
        (
            "wan2.1-t2v-14B",
            {"quality": (0.5, 1.5), "balanced": (0.6, 1.2), "fast": (1.6, 2.7)},
        ),
        (
            "wan2.1-i2v-14B",
            {"quality": (1.5, 3.3), "balanced": (0.7, 1.6), "fast": (1.2, 1.5)},
        ),
        (
            "wan2.1-i2v-14B-720P",
            {"quality": (0.5, 1.2), "balanced": (0.9, 1.7), "fast": (1.4, 1.8)},
        ),
        (
            "wan2.1-flf2v-14B",  # and both of VACE, which have its grid
            {"quality": (1.4, 4.5), "balanced": (1.7, 2.7), "fast": (2.2, 2.8)},
        ),
        (
            HUNYUAN_720P,
            {"quality": (1.05, 1.1), "balanced": (1, 2.6), "fast": (2, 2.5)},
        ),
    ],
)
def test_no_world_makes_an_official_preset_lose_more_than_its_regret(model, worst):
    search = robust_search(model)
    for preset, (of_laws, of_all) in worst.items():
        steps = load_preset(model, preset).prediction.compute_steps["cond"]
        regrets = search.regrets(steps)
        assert len(regrets) == 7
        assert max(regrets[world] for world in search.laws) < of_laws
        assert max(regrets.values()) < of_all
        share = MINIATURE[preset]
        assert search.exchanged(steps, share) is None
        worse = (*range(len(steps) - 1), search.steps - 1)  # a start and one step at the end
        assert search.worst(search.exchanged(worse, share), share) < search.worst(worse, share)
        own = search.own(len(steps))
        assert all(search.regrets(own[world])[world] == 0 for world in own)


def test_hunyuan_release_runs_1632_of_3000_blocks():
    plan = load_preset(HUNYUAN_720P, "release")
    assert (plan.expected.block_runs, plan.expected.block_runs_full) == (1632, 3000)
    assert blocks(plan, "double_blocks") == list(range(6, 20))
    double, single = (site.compute_steps["cond"] for site in plan.interval_sites)
    assert double == (*range(6), 6, 12, 18, 24, 30, 36, 42, 48)
    assert single == (*range(6), 6, 18, 26, 32, 38, 42, 46, 48)


def test_every_row_of_table_3_is_as_fast_as_the_paper_reports():
    """Within 0.04 of the reported figures: blocks by count beside measured seconds."""
    for model, reported in (("wan2.1-t2v-14B", {"background": 2.01}), (HUNYUAN_720P, TABLE_3)):
        for row, figure in reported.items():
            plan = load_preset(model, "paper" if row == "background" else row)
            assert speedup_flops(plan) == pytest.approx(figure, abs=0.04)
            assert f"which reports {figure}x" in plan.provenance.source


def test_the_document_has_the_ideal_speed_of_every_row_of_tables_3_and_4():
    text = (Path(__file__).parents[2] / "docs" / "paper.md").read_text("utf-8")
    rows = re.findall(r"^\| (.+) \| (?:`\w+`|-) \| ([\d.]+)x \| ([\d.]+)x \|$", text, re.M)
    planned, found = MODELS[HUNYUAN_720P], {}
    for row, (side, pattern) in ABLATIONS.items():
        computed = SHRINKING if pattern == "stepwise" else PATTERNS[pattern](50, 6, 12, 2)
        plan = load_preset(HUNYUAN_720P, "paper").replace(
            sites=paper_sites(planned, side, computed)
        )
        found[row] = f"{speedup_flops(plan):.2f}"
    assert {name: ideal for names, ideal, _ in rows for name in names.split(", ")} == found
    assert [float(figure) for _, _, figure in rows[:4]] == list(TABLE_3.values())


def test_hunyuan_paper_and_foreground_share_the_single_blocks_between_them():
    paper, other = (load_preset(HUNYUAN_720P, name) for name in ("paper", "foreground"))
    background = [0, 2, 4, 5, 6, 7, *range(10, 22), 23, 25, 26, 27, 31, 33]
    assert blocks(paper, "single_blocks") == background
    assert blocks(other, "single_blocks") == [b for b in range(40) if b not in background]
    assert (paper.expected.block_runs, other.expected.block_runs) == (1632, 1920)
    shrinking = (*range(6), 6, 18, 26, 32, 38, 42, 46, 48)
    for plan in (paper, other):
        assert blocks(plan, "double_blocks") == list(range(6, 20))
        assert {site.compute_steps["cond"] for site in plan.sites} == {shrinking}


def test_split_and_alternate_part_the_segments_between_both_sides():
    for name in ("split", "alternate"):
        _, early, late = load_preset(HUNYUAN_720P, name).sites
        assert (early.block_list, early.blocks, late.blocks) == ("single_blocks", 16, 24)
        idle = [set(range(50)) - set(site.compute_steps["cond"]) for site in (early, late)]
        assert not idle[0] & idle[1] and len(idle[0] | idle[1]) == 36 and min(idle[0]) == 7
        assert (max(idle[0]) < min(idle[1])) is (name == "split")


def test_hunyuan_balanced_corrects_where_wan_jumps():
    ours, wan = (load_preset(name, "balanced") for name in (HUNYUAN_720P, "wan2.1-t2v-14B"))
    assert ours.prediction.skip == "corrected" and not ours.jumps
    assert ours.solver_steps == tuple(range(50))
    assert wan.jumps and len(wan.solver_steps) == 25


def test_hunyuan_bytes_count_image_and_text_tokens_of_both_kinds_of_blocks():
    size = {"tokens": 119056, "stream_itemsize": 2, "latent_numel": 7603200}
    half = {**size, "prediction_itemsize": 2}
    names = (*HELD, *OURS)
    held = {name: bytes_held(load_preset(HUNYUAN_720P, name), **half) for name in names}
    delta = 119056 * 3072 * 2
    expected = {"release": 9 * delta, "paper": 9 * delta, "foreground": 9 * delta}
    expected |= {"split": 9 * delta, "alternate": 9 * delta}
    assert held == {**expected, **dict.fromkeys(OURS, 2 * 7603200 * 2)}
    lines = summary_lines(load_preset(HUNYUAN_720P, "balanced"), **half)
    assert "holds at most 29 MiB of anchors" in lines[-1]


@pytest.mark.parametrize("model", [HUNYUAN_720P, HUNYUAN_MINI])
def test_hunyuan_plans_have_one_branch_and_the_official_noise_levels(model):
    level = np.linspace(1, 0, 51, dtype=np.float32)[:-1]
    level = 7 * level / (1 + 6 * level)
    for preset in available(model):
        plan = load_preset(model, preset)
        assert plan.branches == ("cond",) and (plan.solver, plan.shift) == ("euler", 7.0)
        assert np.abs(np.array(plan.sigmas) - level).max() < 1e-6
        assert plan.expected.block_runs_full == 50 * sum(plan.model.block_lists.values())
    assert available(model) == [*HELD, *OURS] == presets_of(MODELS[model])


def test_miniature_lists_are_the_released_ones_scaled_by_position():
    plan, other = (load_preset(HUNYUAN_MINI, name) for name in ("release", "foreground"))
    assert blocks(plan, "double_blocks") == [1, 2, 3]
    assert blocks(plan, "single_blocks") == [0, 1, 3, 4, 6]
    assert blocks(other, "single_blocks") == [2, 5, 7, 8, 9]
    for words in ("double_blocks scaled to 4", "single_blocks scaled to 10"):
        assert f"{words} by position, not profiled on this model" in plan.provenance.source


@pytest.mark.parametrize("depth", [1, 2, 3, 7, 12, 20, 30, 40, 60])
@pytest.mark.parametrize("released", [*WAN.released.values(), *HUNYUAN.released.values()])
def test_background_and_foreground_part_the_blocks_at_every_depth(released, depth):
    parts = [*released.background_at(depth), *released.foreground_at(depth)]
    assert sorted(b for first, last in parts for b in range(first, last + 1)) == list(range(depth))
    if depth == released.depth:
        assert released.background_at(depth) == released.background


def test_image_to_video_takes_the_published_plans_of_its_blocks_by_step_number():
    for name, shift in (("i2v-14B", 3), ("i2v-14B-720P", 5), ("flf2v-14B", 16)):
        t2v, paper = (load_preset(f"wan2.1-{model}", "paper") for model in ("t2v-14B", name))
        assert paper.sites == t2v.sites and paper.shift == shift and name in paper.model.name
    for preset in OURS:
        flf2v, large, small = (
            load_preset(f"wan2.1-{kind}", preset) for kind in ("flf2v-14B", "vace-14B", "vace-1.3B")
        )
        assert flf2v.sites == large.sites == small.sites and small.model.block_lists["blocks"] == 30
    assert len(available("wan2.1-vace-1.3B")) == 5


def test_presets_of_the_other_family_are_refused():
    with pytest.raises(PlanError, match=r"no preset 'foreground' for wan2.1-t2v-14B: there are"):
        load_preset("wan2.1-t2v-14B", "foreground")


def test_another_models_presets_are_those_of_its_family_s_official_one():
    planned = MODELS["wan2.1-t2v-14B"]
    fingerprint = planned.fingerprint.model_copy(update={"name": "mine", "width": 64})
    plan = build_preset(replace(planned, fingerprint=fingerprint), "fast")
    assert plan.sites == load_preset("wan2.1-t2v-14B", "fast").sites
    assert plan.model.name == "mine" and "the steps of wan2.1-t2v-14B" in plan.provenance.source


def test_presets_of_a_profile(tmp_path, capsys):
    profile = made_profile(model=HUNYUAN_MINI, runs=2, steps=20)
    profile.save(tmp_path / "my.profile")
    command = ["presets", "--profile", str(tmp_path / "my.profile"), "--out", str(tmp_path)]
    assert main(command) == 0
    assert "quality.json: 1.54x, predicted error" in capsys.readouterr().out
    for preset, count in zip(OURS, (13, 10, 6), strict=True):
        plan = CachePlan.load(tmp_path / f"{HUNYUAN_MINI}.{preset}.json")
        assert plan.name == preset and len(plan.prediction.compute_steps["cond"]) == count
        assert plan.provenance.profile_sha256 == profile.sha256()
        assert plan.expected.predicted_error > 0


def test_presets_without_the_trees_name_the_missing_profile(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(searched_presets, "_repository", lambda: tmp_path)
    assert main(["presets", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no profile" in error and "install the package from there" in error
    assert list(tmp_path.iterdir()) == []

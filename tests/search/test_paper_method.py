"""From a profile to the paper's plan: blocks by equation 7, steps by equation 15, ablations."""

import numpy as np
import pytest

from made_profiles import made_profile, with_arrays
from profiling_core.errors import PlanError, ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import block_runs, speedup_flops
from profiling_core.plan.model_specs import consecutive
from profiling_core.plan.site_schedule import computes, forecasts
from profiling_core.profile.block_scores import (
    block_scores,
    otsu_threshold,
    split_blocks,
)
from profiling_core.profile.step_change import l1_curve, shrinking_intervals
from profiling_core.search.paper_method import every_ablation, paper_plan

WAN, HUNYUAN = "wan2.1-t2v-mini", "hunyuan-video-t2v-mini"
PAPER_STEPS = (*range(6), 6, 18, 27, 34, 40, 44, 47)  # the walk of warm-up 6, Tmax 12, Tmin 2
PAPER = {"warmup": 6, "tmax": 12, "tmin": 2}


def with_curve(curve, model=WAN):
    """A profile whose relative L1 is `curve` in every run and branch."""
    profile = made_profile(model, steps=len(curve) + 1)
    shape = profile.arrays["l1_relative"].shape
    return with_arrays(profile, l1_relative=np.broadcast_to(np.float32(curve), shape))


def reused(plan, site, branch="cond"):
    return sorted(set(range(plan.steps)) - set(site.compute_steps[branch]))


# -- blocks


def test_the_blocks_that_look_at_the_background_are_reused():
    profile = made_profile()
    plan = paper_plan(profile, **PAPER)
    (site,) = plan.sites
    assert site.intervals == ((0, 0), (2, 4), (6, 7), (10, 11))  # all but 1, 5, 8, 9
    assert site.compute_steps == {"cond": PAPER_STEPS, "uncond": PAPER_STEPS}
    assert site.skip == "hold"
    assert (plan.model, plan.steps) == (profile.subject.model, 50)
    assert (plan.sigmas, plan.solver) == (profile.subject.sigmas, "unipc")


def test_double_blocks_are_split_by_r_attn_as_single_ones_are():
    profile = made_profile(HUNYUAN)  # axis B: double blocks 0-3, then single blocks 0-9
    double, single = paper_plan(profile).sites
    assert (double.block_list, double.intervals) == ("double_blocks", ((0, 0), (2, 3)))
    assert (single.block_list, single.intervals) == ("single_blocks", ((0, 0), (2, 3), (6, 9)))
    assert double.compute_steps == single.compute_steps
    (alone,) = paper_plan(profile, lists=["single_blocks"]).sites
    assert alone == single


@pytest.mark.parametrize("row", ["foreground", "split", "alternate"])
def test_the_background_of_the_double_blocks_is_reused_in_every_row(row):
    profile = made_profile(HUNYUAN)
    background, plan = paper_plan(profile, **PAPER), paper_plan(profile, blocks=row, **PAPER)
    assert plan.sites[0] == background.sites[0]
    assert plan.sites[1].intervals == ((1, 1), (4, 5))  # foreground single blocks
    assert "in double_blocks the background alone;" in plan.provenance.source
    (alone,) = paper_plan(profile, blocks="foreground", lists=["double_blocks"], **PAPER).sites
    assert alone.intervals == ((1, 1),)


def test_scores_are_means_over_runs_branches_and_steps_without_empty_masks():
    profile = made_profile(runs=2)
    share = profile.arrays["attention_share"].copy()
    share[...] = np.arange(12) / 20
    share[1] += 0.1
    share[0, 0, 3] = np.nan
    scores = block_scores(with_arrays(profile, attention_share=share))
    entries = 2 * 2 * 10
    expected = np.arange(12) / 20 + 0.1 * (entries / 2) / (entries - 1)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    lift = block_scores(with_arrays(profile, attention_share=share), score="lift")
    np.testing.assert_allclose(lift, scores / 0.2, rtol=1e-6)
    single = block_scores(made_profile(HUNYUAN), "single_blocks")
    np.testing.assert_array_equal(single, block_scores(made_profile(HUNYUAN))[4:])


def test_otsu_parts_where_the_variance_between_the_groups_is_largest():
    values = np.array([0.1, 0.5, 0.12, 0.55, 0.11, 0.2])
    tau = otsu_threshold(values)
    assert tau == pytest.approx((0.2 + 0.5) / 2)
    rng = np.random.default_rng(3)
    for _ in range(20):
        values = rng.normal(size=9)
        tau = otsu_threshold(values)

        def between(at, values=values):
            below, above = values[values < at], values[values >= at]
            return below.size * above.size * (below.mean() - above.mean()) ** 2

        ordered = np.sort(values)
        assert between(tau) == pytest.approx(max(between(at) for at in ordered[1:]))
    near = np.array([1.0, np.nextafter(1.0, 2.0)])
    assert ((near < otsu_threshold(near)) == [True, False]).all()


def test_share_is_met_and_tau_is_taken_as_given():
    profile = made_profile()
    for share, count in ((0.6, 7), (0.25, 3), (0.9, 11)):
        split = split_blocks(profile, share=share)
        assert len(split.background["blocks"]) == count
        again = split_blocks(profile, tau=split.tau)
        assert (again.background, again.foreground) == (split.background, split.foreground)
    scores = block_scores(profile)
    top = split_blocks(profile, tau=float(scores.max()))
    assert top.foreground["blocks"] == (int(scores.argmax()),)  # F holds score >= tau


def test_consecutive_blocks_become_one_interval():
    assert consecutive([0, 2, 3, 4, 8]) == ((0, 0), (2, 4), (8, 8))
    assert consecutive([]) == ()


# -- steps


def test_warm_up_and_the_denser_end_come_from_the_l1_curve():
    curve = [0.3, 0.25, 0.2, 0.15, 0.12, 0.1, *[0.04] * 38, 0.1, 0.13, 0.16, 0.2, 0.25]
    found = shrinking_intervals(with_curve(curve))
    assert (found.warmup, found.tmax, found.tmin) == (6, 12, 3)  # 12 x 0.04 / 0.168 = 2.9
    assert found.derived == ("warm-up", "Tmin")
    plan = paper_plan(with_curve(curve))
    assert "warm-up and Tmin from the L1 curve" in plan.provenance.source
    assert plan.provenance.settings["from_l1_curve"] == "warm-up, Tmin"
    assert plan.sites[0].compute_steps["cond"][:8] == (0, 1, 2, 3, 4, 5, 6, 18)


def test_what_is_given_is_not_derived():
    found = shrinking_intervals(with_curve([0.1] * 49), tmax=8, warmup=3)
    assert (found.warmup, found.tmax, found.tmin, found.derived) == (3, 8, 8, ("Tmin",))
    plan = paper_plan(made_profile(), **PAPER)
    assert plan.provenance.settings["from_l1_curve"] == "none"
    assert "L1" not in plan.provenance.source


def test_a_flat_or_still_curve_has_the_shortest_warm_up_and_one_interval():
    for level in (0.1, 0.0):
        found = shrinking_intervals(with_curve([level] * 24))
        assert (found.warmup, found.tmax, found.tmin) == (1, 6, 6)  # 12 of 50 steps, 6 of 25


def test_few_steps_are_planned_too():
    for steps in (4, 5, 8, 13):
        plan = paper_plan(made_profile(steps=steps), tmax=3)
        assert plan.steps == steps and speedup_flops(plan) > 1


def test_compute_steps_can_be_given():
    plan = paper_plan(made_profile(), steps=[0, 1, 9, 20], order="linear")
    assert plan.sites[0].compute_steps["uncond"] == (0, 1, 9, 20)
    assert plan.sites[0].skip == "linear"
    assert plan.provenance.settings["steps"] == "0,1,9,20"


# -- split, alternate and the tables


def test_split_reuses_foreground_early_and_background_late():
    plan = paper_plan(made_profile(), blocks="split", **PAPER)
    foreground, background = plan.sites
    assert foreground.intervals == ((1, 1), (5, 5), (8, 9))
    early, late = [*range(7, 18), *range(19, 27)], [28, 29, 30, 31, 32, 33, *range(35, 40)]
    assert reused(plan, foreground) == early  # 19 of 37 reuse steps
    assert reused(plan, background) == [*late, 41, 42, 43, 45, 46, 48, 49]


def test_alternate_switches_at_every_segment_and_starts_with_foreground():
    plan = paper_plan(made_profile(HUNYUAN), blocks="alternate", steps=[0, 1, 2, 5, 8, 40])
    _, foreground, background = plan.sites
    assert reused(plan, foreground) == [3, 4, *range(9, 40)]
    assert reused(plan, background) == [6, 7, *range(41, 50)]


@pytest.mark.parametrize("model", [WAN, HUNYUAN])
@pytest.mark.parametrize("blocks", ["split", "alternate"])
def test_two_sites_of_one_list_have_right_anchors_and_cost(model, blocks):
    profile = made_profile(model)
    plan = paper_plan(profile, blocks=blocks)
    schedule = paper_plan(profile).sites[0].compute_steps["cond"]
    runs = 0
    for branch in plan.branches:
        for step in range(plan.steps):
            runs += sum(plan.model.block_lists.values())
            sides = [site for site in plan.sites if step not in computes(plan, site, branch)]
            lists = len(plan.model.block_lists)
            assert len(sides) == lists * (step not in schedule)  # one side of each, or none
            for site in sides:
                ((anchor, weight),) = forecasts(plan, site, branch)[step]
                assert anchor in computes(plan, site, branch) and weight == 1.0
                assert anchor == max(s for s in schedule if s < step)  # the segment's first step
                runs -= site.blocks
    assert runs == block_runs(plan)
    assert plan.expected.speedup_flops == pytest.approx(speedup_flops(plan), abs=1e-4)


@pytest.mark.parametrize("model", [WAN, HUNYUAN])
def test_every_row_of_tables_3_and_4(model, tmp_path):
    profile = made_profile(model)
    plans = every_ablation(profile, **PAPER)
    assert len(plans) == 10
    for row, plan in plans.items():
        assert plan.name == row and speedup_flops(plan) > 1
        plan.save(tmp_path / "plan.json")
        assert CachePlan.load(tmp_path / "plan.json").dumps() == plan.dumps()
    assert len({str(plan.sites) for plan in plans.values()}) == 8  # two rows are in both tables
    for side in ("Foreground", "Background"):
        assert plans[f"{side}-focused Block Reuse"].sites == plans[f"{side}+Stepwise"].sites
    fast = speedup_flops(plans["Background-focused Block Reuse"])
    slow = speedup_flops(plans["Foreground-focused Block Reuse"])
    for row in ("Background+Foreground (Split)", "Background+Foreground (Alternate)"):
        assert slow < speedup_flops(plans[row]) < fast  # as in the paper's table 3


def test_provenance_names_profile_and_settings():
    profile = made_profile(runs=3)
    plan = paper_plan(profile, share=0.6, **PAPER)
    assert plan.provenance.made_by == "profiling_core.paper_plan"
    assert plan.provenance.profile_sha256 == profile.sha256()
    assert "profile of 3 runs" in plan.provenance.source
    assert "7 of 12 blocks are background" in plan.provenance.source
    settings = plan.provenance.settings
    assert (settings["share"], settings["tau_from"]) == (0.6, "share 0.6")
    assert (settings["warmup"], settings["tmax"], settings["tmin"]) == (6, 12, 2)
    assert (settings["runs"], settings["lists"], settings["blocks"]) == (3, "blocks", "background")
    again = paper_plan(profile, tau=settings["tau"], **PAPER)
    assert again.sites == plan.sites


# -- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.3, "share": 0.5}, "tau 0.3 and share 0.5 are both given"),
        ({"tau": 0.9}, "tau 0.9 leaves no foreground block"),
        ({"share": 0.0}, "share 0 of background blocks: expected above 0 and below 1"),
        ({"share": 0.01}, "share 0.01 leaves no background block of 12"),
        ({"lists": ["double_blocks"]}, "block list 'double_blocks' is not one of blocks"),
        ({"lists": ["blocks", "blocks"]}, "name one or more of blocks"),
        ({"steps": [0, 1, 50]}, "compute step 50 lies outside 0..49"),
        ({"steps": []}, "must begin with step 0"),
        ({"steps": range(50)}, "all 50 steps are computed, none is left to reuse"),
        ({"steps": [0, 9], "tmax": 5}, "steps and tmax both set the compute steps"),
        ({"steps": [0], "blocks": "alternate"}, "'alternate' needs two segments"),
        ({"warmup": 0}, "warm-up of 0 steps, expected 1..49"),
        ({"tmax": 2, "tmin": 5}, "Tmax 2, Tmin 5"),
        ({"blocks": "all"}, "blocks 'all' is unknown: take background, foreground"),
        ({"pattern": "steps"}, "pattern 'steps' is unknown: take stepwise"),
        ({"order": "cubic"}, "order 'cubic' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises((PlanError, ProfileError)) as error:
        paper_plan(made_profile(), **settings)
    assert message in str(error.value)


def test_scores_that_cannot_be_split_are_refused():
    profile = made_profile()
    share = profile.arrays["attention_share"]
    equal = with_arrays(profile, attention_share=np.full_like(share, 0.2))
    with pytest.raises(ProfileError, match="one and the same score"):
        paper_plan(equal)
    with pytest.raises(ProfileError, match=r"share 0\.5 splits blocks of the same score 0\.2"):
        paper_plan(equal, share=0.5)
    with pytest.raises(ProfileError, match="blocks 0 has no R_attn over chance"):
        chance = np.zeros_like(share)
        split_blocks(with_arrays(profile, attention_chance=chance), score="lift")
    with pytest.raises(ProfileError, match="score 'drift' is unknown: take share, lift"):
        split_blocks(profile, score="drift")


def test_a_curve_that_is_not_finite_is_named():
    curve = [0.1] * 49
    curve[7] = float("inf")
    with pytest.raises(ProfileError, match="l1_relative between steps 7 and 8 is inf"):
        l1_curve(with_curve(curve))

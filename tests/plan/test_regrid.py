"""Plans on other grids: whether the speed or the noise levels are kept, and what the log says."""

from __future__ import annotations

import numpy as np
import pytest

from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.importers import from_steps
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import load_preset
from profiling_core.plan.regrid import SPEEDUPS, regrid
from profiling_core.plan.restrict import plain_jumps

MINI = "wan2.1-t2v-mini"
WAN = {"solver": "unipc", "shift": 5.0}
DENSE_ENDS = (0, 1, 2, 3, 4, 5, 9, 13, 17, 18, 19)  # of 20


def grid(steps: int, shift: float = 5.0, first: float = 0.999) -> tuple[float, ...]:
    levels = np.linspace(first, 0.0, steps + 1)[:-1]
    return tuple(shift * levels / (1 + (shift - 1) * levels))


def plan(computed: tuple[int, ...] = DENSE_ENDS, steps: int = 20, skip: str = "jump") -> CachePlan:
    return CachePlan.build(
        name="toy",
        model=MODELS[MINI].fingerprint,
        steps=steps,
        sigmas=grid(steps),
        solver="unipc",
        shift=5.0,
        sites=from_steps(steps, computed, ("cond", "uncond"), skip),
        provenance={"made_by": "tests", "source": "by hand"},
    )


def carried(one: CachePlan, steps: int, shift: float = 5.0, speed: bool = True) -> CachePlan:
    return regrid(one, grid(steps, shift), solver="unipc", shift=shift, keep_speed=speed)


@pytest.mark.parametrize("steps", [12, 15, 30, 40, 100])
def test_the_share_of_computed_steps_is_kept(steps):
    one = carried(plan(), steps)
    computed = one.prediction.compute_steps["cond"]
    assert len(computed) == round(11 / 20 * steps) and computed[0] == 0
    assert one.expected.speedup_flops == pytest.approx(steps / len(computed), abs=1e-4)


def test_dense_stretches_stay_dense_and_wide_ones_wide():
    computed = carried(plan(), 40).prediction.compute_steps["cond"]
    assert set(range(11)) <= set(computed)  # steps 0 to 5 of 20
    assert [step for step in computed if 12 <= step < 34] == [14, 18, 22, 26, 30]  # of 9 and 13


def test_another_shift_keeps_the_number_of_computed_steps():
    one = carried(plan(), 20, shift=4.0)
    assert len(one.prediction.compute_steps["cond"]) == 11
    below = carried(plan(), 20, shift=1.0)  # its last levels lie below the planned ones
    assert 19 in below.prediction.compute_steps["cond"]


def test_levels_are_kept_unless_the_speed_is_asked_for():
    levels, speed = (carried(plan(), 15, speed=speed) for speed in (False, True))
    assert speedup_flops(levels) < speedup_flops(speed) == pytest.approx(15 / 8)


@pytest.mark.parametrize("steps", [12, 20, 30, 40])
@pytest.mark.parametrize("name", SPEEDUPS)
def test_presets_named_by_their_speed_keep_it(name, steps):
    for model in ("wan2.1-t2v-14B", "hunyuan-video-t2v-720p"):
        preset = load_preset(model, name)
        one = regrid(preset, grid(steps, preset.shift), solver=preset.solver, shift=preset.shift)
        count = round(preset.steps // SPEEDUPS[name] / preset.steps * steps)
        assert len(one.prediction.compute_steps["cond"]) == count
        assert one.notes[0].endswith("its speed is kept")


def test_a_searched_plan_keeps_the_speed_that_its_provenance_names_whatever_its_name():
    named = plan().provenance.model_copy(update={"settings": {"speedup": 20 / 11}})
    own = plan().model_copy(update={"provenance": named})
    assert own.name not in SPEEDUPS
    one = regrid(own, grid(40), **WAN)
    assert speedup_flops(one) == pytest.approx(20 / 11) and "its speed is kept" in one.notes[0]


@pytest.mark.parametrize("preset", ["paper", "balanced"])
@pytest.mark.parametrize("model", [MINI, "hunyuan-video-t2v-mini"])
def test_below_twelve_steps_a_plan_computes_everything_and_says_why(model, preset):
    own = load_preset(model, preset)
    for steps in (1, 4, 11):
        one = regrid(own, grid(steps, own.shift), solver=own.solver, shift=own.shift)
        assert speedup_flops(one) == 1 and one.branches == own.branches
        assert "a run of few steps has nothing to skip" in one.notes[0]
        assert one.notes[-1] == (
            f"the ideal speed-up is 1.00x there instead of {speedup_flops(own):.2f}x"
        )


def test_a_plan_made_for_few_steps_runs_on_them():
    own = plan((0, 2, 4, 6), steps=8)
    assert regrid(own, grid(8), **WAN).sites == own.sites
    assert regrid(own, grid(8, first=1.0), solver="dpm++", shift=5.0).sites == own.sites


@pytest.mark.parametrize("name", ["paper", "release", "toy", "balanced"])
def test_plans_of_explicit_steps_keep_their_noise_levels(name):
    own = load_preset(MINI, name) if name in ("paper", "release") else plan()
    own = own.model_copy(update={"name": name})  # a name alone means nothing
    one = regrid(own, grid(30), solver="unipc", shift=5.0)
    assert one.sites == regrid(own, grid(30), **WAN, keep_speed=False).sites
    assert one.sites != regrid(own, grid(30), **WAN, keep_speed=True).sites
    assert one.notes[0].endswith("its noise levels are kept")


def test_one_computed_step_stays_one():
    assert carried(plan((0,)), 14).prediction.compute_steps["cond"] == (0,)


@pytest.mark.parametrize("name", ["paper", "release"])
def test_intervals_keep_their_speed_too(name):
    preset = load_preset(MINI, name)
    one = regrid(preset, grid(30), solver="unipc", shift=5.0, keep_speed=True)
    assert speedup_flops(one) == pytest.approx(speedup_flops(preset), rel=0.1)


def test_intervals_beside_a_prediction_stay_within_its_steps():
    document = plan().model_dump(mode="json", exclude={"expected"})
    steps = {branch: [0, 2, 4, 9, 18] for branch in ("cond", "uncond")}
    document["sites"].append(
        {
            "kind": "intervals",
            "block_list": "blocks",
            "intervals": [[2, 5]],
            "skip": "hold",
            "compute_steps": steps,
        }
    )
    one = carried(CachePlan.from_dict(document), 30)
    visited = set(one.prediction.compute_steps["cond"])
    inner = set(one.interval_sites[0].compute_steps["cond"])
    assert inner < visited and 0 in inner


def test_the_log_says_how_to_search_for_the_grid():
    notes = carried(plan(), 15, shift=3.0).notes
    assert (
        "profiling-dit plan --profile PROFILE --speedup 1.82 --for-steps 15 "
        "--for-shift 3 -o PLAN.json" in notes[1]
    )
    paper = load_preset(MINI, "paper")
    other = regrid(paper, grid(30), solver="unipc", shift=5.0)
    assert not any("--for-steps" in note for note in other.notes)  # not a plan of the search


def kept(steps: int, shift: float = 5.0) -> CachePlan:
    """The shipped `balanced` under another name, which keeps its noise levels."""
    shipped = load_preset("wan2.1-t2v-14B", "balanced").model_copy(update={"name": "explicit"})
    return carried(shipped, steps, shift, speed=False)


def test_neighbouring_solver_grid_keeps_the_steps_and_says_so():
    release = load_preset("wan2.1-t2v-14B", "release")
    one = regrid(release, grid(50, first=1.0), solver="dpm++", shift=5.0)
    assert one.sites == release.sites
    assert "made for 50 unipc steps, shift 5; on 50 dpm++ steps" in one.notes[0]


@pytest.mark.parametrize(("steps", "shift"), [(25, 5.0), (100, 5.0), (50, 3.0), (50, 16.0)])
def test_computed_noise_levels_are_the_nearest_ones_of_the_new_grid(steps, shift):
    own, one = load_preset("wan2.1-t2v-14B", "balanced"), kept(steps, shift)
    sigmas = grid(steps, shift)
    computed = one.prediction.compute_steps["cond"]
    assert computed[0] == 0 and one.steps == steps
    for planned in own.solver_steps:
        distance = min(abs(sigmas[s] - own.sigmas[planned]) for s in computed)
        assert distance == min(abs(s - own.sigmas[planned]) for s in sigmas)
    assert one.expected.block_runs == 2 * 40 * len(computed)
    assert one.expected.predicted_error is None


def test_levels_outside_the_planned_range_are_computed_with_a_warning():
    one = kept(50, shift=1.0)  # reaches down to 0.02, the plan to 0.09
    outside = [s for s, sigma in enumerate(one.sigmas) if sigma < 0.05]
    assert outside and set(outside) <= set(one.prediction.compute_steps["cond"])
    assert any("outside the planned range" in note for note in one.notes)


def test_changed_cost_is_logged():
    assert "there instead of 2.00x" in kept(30).notes[-1]


def test_grid_without_distinct_levels_is_refused_in_one_line():
    paper = load_preset("wan2.1-t2v-14B", "paper")
    with pytest.raises(PlanError, match=r"plan 'paper' on 3 unipc steps.*sigmas must fall") as e:
        regrid(paper, (1.0, 1.0, 0.5), solver="unipc", shift=1.0)
    assert "\n" not in str(e.value)


def test_a_fitted_plan_runs_as_plain_jumps_on_another_grid_and_says_so():
    document = plan().model_dump(mode="json", exclude={"expected"}, exclude_none=True)
    weights = {str(step): [0.1, 0.2, 0.3] for step in DENSE_ENDS}
    document["sites"][0]["solver_weights"] = weights
    one = CachePlan.from_dict(document)
    assert regrid(one, one.sigmas, **WAN) is one and len(one.solver_weights) == len(DENSE_ENDS)
    near = regrid(one, tuple(s * 0.999 for s in one.sigmas), **WAN)
    others = [
        near,
        carried(one, 30),
        carried(one, 6),
        regrid(one, one.sigmas, solver="dpm++", shift=5.0),
    ]
    for other, like in zip(
        others[:3], (plan(), carried(plan(), 30), carried(plan(), 6)), strict=True
    ):
        assert other.sites == like.sites
    assert plain_jumps(one).sites == plan().sites and plain_jumps(plan()) == plan()
    for other in (*others, plain_jumps(one)):
        assert not other.solver_weights and any("are plain jumps here" in n for n in other.notes)


def steps_of(one: CachePlan) -> list[int]:
    return list(one.prediction.compute_steps["cond"])


@pytest.mark.parametrize("name", SPEEDUPS)
@pytest.mark.parametrize("model", ["wan2.1-t2v-14B", "hunyuan-video-t2v-720p"])
def test_parts_of_a_run_compute_what_the_one_run_does_and_their_first_step(model, name):
    preset = load_preset(model, name)
    own = {"solver": preset.solver, "shift": preset.shift}
    for whole_run in (preset.sigmas, grid(40, 8.0)):
        whole = regrid(preset, whole_run, **own)
        for cut in (1, 13, 20, 27):
            first = regrid(preset, whole_run[:cut], **own, whole_run=whole_run)
            second = regrid(preset, whole_run[cut:], **own, whole_run=whole_run)
            found = steps_of(first) + [cut + step for step in steps_of(second)]
            assert found == sorted({*steps_of(whole), cut})
            assert f"takes steps {cut} to {len(whole_run) - 1} of" in second.notes[-1]
            if whole_run == preset.sigmas:  # recognised by the levels
                alone = regrid(preset, whole_run[:cut], **own, end=whole_run[cut])
                assert alone.sites == first.sites
                assert regrid(preset, whole_run[cut:], **own).sites == second.sites


@pytest.mark.parametrize("speed", [True, False])
@pytest.mark.parametrize(("steps", "shift"), [(40, 5.0), (30, 8.0), (64, 5.0)])
def test_a_part_keeps_levels_and_speed_of_the_run_where_only_its_levels_are_known(
    steps, shift, speed
):
    preset, levels = load_preset("wan2.1-t2v-14B", "balanced"), grid(steps, shift)
    whole = steps_of(regrid(preset, levels, **WAN, keep_speed=speed))
    for cut in (steps // 3, steps // 2, 2 * steps // 3):
        parts = (
            ([s for s in whole if s < cut], {"sigmas": levels[:cut], "end": levels[cut]}),
            ([s - cut for s in whole if s >= cut], {"sigmas": levels[cut:]}),
        )
        for expected, part in parts:
            found = steps_of(regrid(preset, **part, **WAN, keep_speed=speed))
            assert found[0] == 0 and abs(len(found) - len(expected)) <= 2
            for k in range(len(part["sigmas"])):  # and as many of them before every step
                before = sum(s < k for s in found) - sum(s < k for s in expected)
                assert abs(before) <= 2, (found, expected)


def test_a_plan_that_computes_everything_does_so_on_every_grid_and_part():
    full = plan(tuple(range(20)))
    for levels in (grid(40), grid(14), grid(40, 3.0)[16:], grid(20)[8:], grid(50, 8.0)[:20]):
        for speed in (True, False):
            one = regrid(full, levels, **WAN, keep_speed=speed)
            assert steps_of(one) == list(range(len(levels)))


def test_a_run_counts_as_one_of_few_steps_by_all_of_its_steps():
    balanced = load_preset("wan2.1-t2v-14B", "balanced")
    assert speedup_flops(regrid(balanced, grid(24)[14:], **WAN)) > 1.2
    assert speedup_flops(regrid(balanced, grid(11)[5:], **WAN)) == 1
    for whole_run, sped_up in ((grid(24), True), (grid(11), False)):
        one = regrid(balanced, whole_run[5:], **WAN, whole_run=whole_run)
        assert (speedup_flops(one) > 1) is sped_up


def test_levels_that_are_no_part_of_the_whole_run_are_refused_in_one_line():
    own = plan()
    for levels in (grid(20, 3.0)[4:], (*grid(20)[:5], 0.1), (*grid(20)[5:], 0.01)):
        with pytest.raises(PlanError, match=r"levels from .* are no part of the whole run's 20"):
            regrid(own, levels, **WAN, whole_run=grid(20))


def test_a_part_of_a_fitted_plan_runs_as_plain_jumps():
    document = plan().model_dump(mode="json", exclude={"expected"}, exclude_none=True)
    document["sites"][0]["solver_weights"] = {str(step): [0.1, 0.2, 0.3] for step in DENSE_ENDS}
    one = CachePlan.from_dict(document)
    for more in ({}, {"whole_run": grid(20)}):
        part = regrid(one, grid(20)[9:], **WAN, **more)
        assert not part.solver_weights and any("are plain jumps here" in n for n in part.notes)
        assert steps_of(part) == [0, 4, 8, 9, 10]

"""Plans on some of their steps and for other branches."""

import pytest

from profiling_core.errors import PlanError
from profiling_core.plan.regrid import regrid
from profiling_core.plan.restrict import for_both_branches, on_steps, on_visited_steps
from profiling_core.plan.site_schedule import corrections, forecasts, line
from toys import both, intervals, prediction, toy_plan

COMPUTED = (0, 1, 4, 6, 9)


def test_a_plan_that_jumps_keeps_its_intervals_on_the_visited_levels() -> None:
    sites = [prediction(both(*COMPUTED), "jump"), intervals(both(0, 4, 9), [[1, 2]])]
    plan = toy_plan(sites)
    left = on_visited_steps(plan)
    assert left.sigmas == tuple(plan.sigmas[step] for step in COMPUTED)
    assert [site.kind for site in left.sites] == ["intervals"]
    assert left.sites[0].compute_steps == {"cond": (0, 2, 4), "uncond": (0, 2, 4)}
    held = toy_plan([prediction(both(*COMPUTED))])
    assert on_visited_steps(held) is held


def test_a_part_computes_its_first_step_and_forecasts_from_its_own_anchors() -> None:
    plan = toy_plan([prediction(both(*COMPUTED), "linear")])
    part = on_steps(plan, range(5, 12))
    assert part.steps == 7 and part.sigmas == plan.sigmas[5:]
    assert part.prediction.compute_steps["cond"] == (0, 1, 4)  # 5, 6 and 9 of the plan
    found = forecasts(part, part.prediction, "cond")
    assert found[2] == line(part, 2, [0, 1]) and set(found) == {2, 3, 5, 6}
    assert on_steps(plan, range(12)) is plan


def test_the_last_step_of_a_part_is_corrected_as_in_the_whole_run() -> None:
    plan = toy_plan([prediction(both(*COMPUTED), "corrected")])
    part = on_steps(plan, range(10))  # its step 9 corrects two others and leads to level 10
    assert part.end == plan.sigmas[10] and on_steps(plan, range(5, 12)).end is None
    assert 9 in corrections(part, "cond") and corrections(part, "cond") == corrections(plan, "cond")
    other = [sigma * 0.999 for sigma in part.sigmas]
    euler = {"solver": "euler", "shift": 1.0}
    assert regrid(plan, other, **euler, end=0.2).end == 0.2
    for whole_run, found in ((plan.sigmas, part.end), (None, None)):
        assert regrid(plan, part.sigmas, **euler, whole_run=whole_run).end == found
        # a sampler may end a part of the run at another level, or denoise it fully
        for end in (0.2, 0.0):
            assert regrid(plan, part.sigmas, **euler, whole_run=whole_run, end=end).end == (
                end or None
            )
    assert regrid(part, part.sigmas, **euler).end is None
    assert regrid(part, part.sigmas, **euler, end=part.end) is part
    with pytest.raises(PlanError, match=r"end 0\.9 does not lie below the last of sigmas"):
        part.replace(end=0.9)


def test_one_branch_becomes_two_with_the_same_steps() -> None:
    single = toy_plan([prediction({"cond": COMPUTED}, "corrected")])
    double = for_both_branches(single)
    assert double.branches == ("cond", "uncond")
    assert corrections(double, "uncond") == corrections(single, "cond")
    assert for_both_branches(double) is double
    bare = toy_plan([])
    assert for_both_branches(bare) is bare


def test_what_goes_with_a_plan_stays() -> None:
    plan = toy_plan([prediction({"cond": COMPUTED})], predicted_error=0.01, storage="bfloat16")
    plan = plan.model_copy(update={"notes": ("carried",)})
    double = for_both_branches(plan)
    assert double.expected.predicted_error == 0.01
    assert (double.storage, double.notes, double.name) == ("bfloat16", ("carried",), plan.name)

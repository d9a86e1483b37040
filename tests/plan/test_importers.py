"""Other schemes as plans: the decisions are those of the scheme, and the plans are valid."""

import pytest

from profiling_core.errors import PlanError
from profiling_core.plan.importers import (
    from_magnitude_ratios,
    from_mask,
    from_shrinking,
    from_steps,
)
from profiling_core.plan.schedule import stepwise
from toys import toy_plan


def test_mask_and_step_list_agree():
    mask = [1, 1, 0, 0, 1, 0]
    assert from_mask(mask) == from_steps(6, [0, 1, 4])
    plan = toy_plan(from_mask(mask, ("cond", "uncond"), "linear"), steps=6)
    assert plan.prediction.compute_steps["uncond"] == (0, 1, 4)


def test_shrinking_is_the_papers_schedule():
    sites = from_shrinking("blocks", [(0, 1), (3, 3)])
    plan = toy_plan(sites, steps=50)
    assert plan.interval_sites[0].compute_steps["cond"] == stepwise()


def test_magnitude_rule_skips_while_the_summed_error_is_small():
    # ratios of 0.9 add 0.1, 0.19, 0.271, ...: with a threshold of 0.3 two steps are skipped
    # (0.1 + 0.19 < 0.3 <= 0.1 + 0.19 + 0.271), with at most one skip only one is
    ratios = {"cond": [1.0] * 2 + [0.9] * 8}
    steps = from_magnitude_ratios(ratios, threshold=0.3, most_skips=4)[0]["compute_steps"]
    assert steps["cond"] == [0, 1, 4, 7]
    steps = from_magnitude_ratios(ratios, threshold=0.3, most_skips=1)[0]["compute_steps"]
    assert steps["cond"] == [0, 1, 3, 5, 7, 9]


def test_magnitude_rule_without_retention_still_computes_step_0():
    sites = from_magnitude_ratios({"cond": [1.0] * 4}, threshold=1.0, most_skips=9, retention=0.0)
    assert sites[0]["compute_steps"]["cond"] == [0]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: from_mask([1, 2]), r"mask\[1\] is 2, expected 0 or 1"),
        (lambda: from_shrinking("blocks", [(0, 1)], shape="wild"), "shape 'wild' is unknown"),
    ],
)
def test_bad_values_are_named(call, text):
    with pytest.raises(PlanError, match=text):
        call()

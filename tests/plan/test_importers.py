"""Other schemes as plans: the decisions are those of the scheme, and the plans are valid."""

import numpy as np
import pytest

from profiling_core.commands.main import main
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.importers import (
    from_magnitude_ratios,
    from_mask,
    from_shrinking,
    from_steps,
    public_document,
)
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import public_plan
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


def test_every_source_has_a_licence_and_every_list_rises_from_0():
    document = public_document()
    for source in ("lemica", "golden-path", "flux"):
        assert document["sources"][source]["licence"] in ("MIT", "Apache License 2.0")
    for source in ("lemica", "golden-path"):
        for model, lists in document[source].items():
            for name, steps in lists.items():
                assert steps[0] == 0 and steps == sorted(set(steps)), name
                assert len(steps) == int(name.rpartition("-")[2])
                assert steps[-1] < document["grids"][model]["steps"]
    assert len(document["flux"]["flux.1-dev"]) == 64


def test_the_grids_of_the_lists_are_the_official_ones():
    for model in ("wan2.1-t2v-14B", "wan2.1-i2v-14B", "hunyuan-video-t2v-720p"):
        grid = public_document()["grids"][model]
        level = np.linspace(grid["first_level"], 0, grid["steps"] + 1)[:-1]
        sigma = grid["shift"] * level / (1 + (grid["shift"] - 1) * level)
        assert MODELS[model].sigmas(grid["steps"]) == pytest.approx(sigma, abs=1e-6)


def test_a_public_list_is_imported_as_published_and_held(tmp_path, capsys):
    command = ["import", "lemica-17", "--model", "wan2.1-t2v-1.3B", "-o", str(tmp_path / "p.json")]
    assert main(command) == 0
    plan = CachePlan.load(tmp_path / "p.json")
    steps = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 18, 25, 32, 39, 46, 49)
    assert plan.prediction.skip == "hold"
    assert plan.prediction.compute_steps == {"cond": steps, "uncond": steps}
    assert "UnicomAI/LeMiCa" in plan.provenance.source and "Apache" in plan.provenance.source
    assert main(command) == 2 and "exists already" in capsys.readouterr().err


def test_lists_of_image_to_video_are_for_both_of_its_grids():
    found = [public_plan(MODELS[f"wan2.1-i2v-14B{end}"], "lemica-14") for end in ("", "-720P")]
    assert [(plan.steps, plan.shift) for plan in found] == [(40, 3), (40, 5)]
    assert {plan.prediction.compute_steps["cond"][-2:] for plan in found} == {(37, 39)}


def test_a_wrong_list_is_refused_with_those_of_the_model(tmp_path, capsys):
    command = ["import", "lemica-24", "-o", str(tmp_path / "plan.json")]
    assert main(command) == 2 and not list(tmp_path.iterdir())
    error = capsys.readouterr().err
    assert "no public list 'lemica-24' for wan2.1-t2v-14B: there are lemica-25," in error

"""Other schemes as plans: the decisions are those of the scheme, and the plans are valid."""

import json

import numpy as np
import pytest

from profiling_core.commands.main import main
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.importers import (
    from_document,
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


MASK = [1, 1, 0, 0, 1, 0]
SIGMAS = [1.0, 0.9, 0.8, 0.6, 0.4, 0.2]
RATIOS = {  # sums since step 1: 0.1, 0.29, 0.561
    "mag_ratios": [1.0, 1.0, 0.9, 0.9, 0.9, 0.9],
    "threshold": 0.3,
    "max_skip_steps": 4,
    "retention_ratio": 0.34,
}


def read(document):
    sites, _ = from_document(document, SIGMAS, ("cond", "uncond"), "file x")
    return {branch: list(steps) for branch, steps in sites[0]["compute_steps"].items()}


@pytest.mark.parametrize(
    "document",
    [
        MASK,
        [bool(value) for value in MASK],
        [0, 1, 4],
        {"cache_config": {"steps_computation_mask": MASK, "Fn_compute_blocks": 8}},
        {"caching_records": [bool(value) for value in MASK]},
        RATIOS | {"num_inference_steps": 6, "calibrate": False},
        RATIOS | {"mag_ratios": [ratio for ratio in RATIOS["mag_ratios"] for _ in range(2)]},
    ],
)
def test_files_of_other_engines_are_recognised_by_their_content(document):
    assert read(document) == {"cond": [0, 1, 4], "uncond": [0, 1, 4]}


def test_lists_with_all_steps_and_lists_of_0_and_1_are_not_mixed_up():
    assert read([0, 1])["cond"] == [0, 1] and read([0])["cond"] == [0]
    assert read([0, 1, 2, 3, 4, 5])["cond"] == read([1] * 6)["cond"] == [0, 1, 2, 3, 4, 5]


def test_the_authors_ratios_of_cond_and_uncond_take_turns():
    uncond = [1.0] * 6
    turns = [r for pair in zip(RATIOS["mag_ratios"], uncond, strict=True) for r in pair]
    assert read(RATIOS | {"mag_ratios": turns}) == {"cond": [0, 1, 4], "uncond": [0, 1]}
    named = {"cond": RATIOS["mag_ratios"], "uncond": uncond}
    assert read(RATIOS | {"mag_ratios": named}) == {"cond": [0, 1, 4], "uncond": [0, 1]}


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (MASK[:5], "the mask has 5 entries, but the run has 6 steps"),
        ([1, 1, 0, 2, 1, 0], r"mask\[3\] is 2, expected 0 or 1"),
        ([0, 1, 0, 0, 1, 0], "step 0 is not computed"),
        ([1, 4], "step 0 is not computed"),
        ([], "step 0 is not computed"),
        ([0, 6], r"compute step 6 lies outside 0\.\.5"),
        ([0, 4, 3], "compute steps must ascend, but 3 follows 4"),
        ([0, 1.5], r"entry 1 is 1\.5, expected whole numbers"),
        ([0, [1]], r"entry 1 is \[1\], expected"),
        ("steps", "expected a JSON list or object, found str"),
        ({"format": 1}, "not known here: expected a list of steps, a 0/1 mask, or an object with"),
        ({"schema": "sglang-dpcache-schedule-v1"}, "'sglang-dpcache-schedule-v2', found .*-v1'"),
        ({"cache_config": {}}, "cache_config.steps_computation_mask: missing"),
        ({"cache_config": {"steps_computation_mask": "fast"}}, "steps_computation_mask: .*'fast'"),
        ({"caching_records": [1, 0]}, r"caching_records\[0\]: .* boolean, found '1'"),
        ({"caching_records": [True] * 6, "caching_records_2": [True]}, "a list has 1 entries"),
        (RATIOS | {"mag_ratios": [1.0] * 5}, "mag_ratios has 5 entries, but the run has 6"),
        (RATIOS | {"num_inference_steps": 50}, "num_inference_steps is 50, but the run has 6"),
        (RATIOS | {"mag_ratios": [1.0, -0.5]}, r"mag_ratios.both\[1\]: .* greater than 0"),
        (RATIOS | {"mag_ratios": {"cond": [1.0] * 6}}, "mag_ratios of cond: expected cond, uncond"),
        (RATIOS | {"threshold": -1}, "threshold: .* greater than or equal to 0, found '-1'"),
        (RATIOS | {"K": 2}, "K: unknown key"),
        ({"mag_ratios": [1.0] * 6}, "threshold: missing"),
    ],
)
def test_wrong_files_are_refused_with_the_place(document, text):
    with pytest.raises(PlanError, match=f"^file x: .*{text}"):
        read(document)


def test_a_file_is_put_on_the_models_grid_or_on_the_one_that_is_asked_for(tmp_path, capsys):
    file, plan = tmp_path / "mine.json", tmp_path / "plan.json"
    file.write_text(json.dumps(MASK))
    command = ["import", str(file), "--model", "wan2.1-t2v-1.3B", "-o", str(plan)]
    assert main(command) == 2
    assert "the mask has 6 entries, but the run has 50 steps" in capsys.readouterr().err
    assert main([*command, "--steps", "6", "--shift", "3"]) == 0
    found = CachePlan.load(plan)
    assert (found.name, found.steps, found.shift) == ("mine", 6, 3.0)
    assert found.sigmas[3] == pytest.approx(3 * 0.4995 / (1 + 2 * 0.4995), abs=1e-6)
    assert found.provenance.source == "a mask in mine.json, held"


@pytest.mark.parametrize(
    ("content", "more", "text"),
    [
        (None, (), "No such file"),
        ('{"mag_ratios": [NaN], "threshold": 1, "max_skip_steps": 1}', (), "NaN is not a number"),
        ("[0, 1", (), "not JSON"),
        ("[0, 1]", ("--shift", "nan"), "shift nan: expected a number above 0"),
        ("[0, 1]", ("--steps", "0"), "expected at least 1"),
    ],
)
def test_unreadable_files_and_grids_are_one_line(tmp_path, capsys, content, more, text):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    before = list(tmp_path.iterdir())
    assert main(["import", str(file), "-o", str(tmp_path / "plan.json"), *more]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == before


def test_a_public_list_has_its_own_grid(tmp_path, capsys):
    assert main(["import", "lemica-25", "--steps", "30", "-o", str(tmp_path / "p.json")]) == 2
    assert "a public list has a grid of its own" in capsys.readouterr().err

"""Plans: checks with the place in the file, JSON round trip, cost, carry-over."""

import json
import os
import random
import re
import subprocess
import sys
from math import log

import pytest
from hypothesis import given

from made_plans import plans
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import held_anchors
from profiling_core.plan.describe import picture
from profiling_core.plan.presets import available, load_preset
from profiling_core.plan.site_schedule import computes, forecasts
from profiling_core.runtime.options import resolve_plan
from toys import both, intervals, prediction, toy_plan


def document() -> dict:
    return json.loads(load_preset("wan2.1-t2v-14B", "paper").dumps())


def test_linear_prediction_holds_two_latents_per_branch():
    plan = toy_plan([prediction(both(0, 1, 4, 8), "linear")])
    assert (held_anchors(plan).deltas, held_anchors(plan).predictions) == (0, 4)


def test_linear_weights_extrapolate_a_straight_line_in_log_snr():
    plan = toy_plan([prediction(both(0, 2, 5), "linear")])
    assert plan.sigmas[0] == 1  # where log-SNR is minus infinity: a line from there is flat
    for step, forecast in forecasts(plan, plan.prediction, "cond").items():
        assert sum(w for _, w in forecast) == pytest.approx(1)
        if step < 5:
            assert forecast == ((0 if step < 2 else 2, 1.0),)
        else:
            there = {n: log(1 / plan.sigmas[n] - 1) for n in (2, 5, step)}
            value = sum(w * (3 * there[a] + 1) for a, w in forecast)
            assert value == pytest.approx(3 * there[step] + 1)


def test_interval_reuse_counts_only_where_the_prediction_is_computed():
    plan = toy_plan([prediction(both(0, 1, 2, 4, 6)), intervals(both(0, 4), [[1, 3]])], steps=8)
    assert set(forecasts(plan, plan.interval_sites[0], "cond")) == {1, 2, 6}
    assert plan.expected.block_runs == 2 * (5 * 6 - 3 * 3)


def test_picture_shows_both_branches_once_when_they_agree():
    plan = toy_plan([intervals(both(0, 4, 8), [[1, 3], [5, 5]])])
    lines = picture(plan)
    assert lines[1] == "blocks 1-3  #...#...#..."
    assert lines[2] == "blocks 5    #...#...#..."
    apart = toy_plan([prediction({"cond": [0, 6], "uncond": [0, 3, 6]})])
    assert [line.split() for line in picture(apart)[1:3]] == [
        ["prediction", "cond", "#.....#....."],
        ["prediction", "uncond", "#..#..#....."],
    ]


def change(path: str, value: object):
    def apply(doc: dict) -> None:
        *parents, last = path.split("/")
        for part in parents:
            doc = doc[int(part)] if isinstance(doc, list) else doc[part]
        if isinstance(doc, list):
            doc[int(last)] = value
        elif value is ...:
            del doc[last]
        else:
            doc[last] = value

    return apply


STEPS = "sites/0/compute_steps/cond"


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        (change("format", 7), "plan format 7 is not known here; this version reads format 1"),
        (change("extra", 1), "extra: unknown key"),
        (change("solver", ...), "solver: missing"),
        (change("sites/0/kind", "tokens"), r"sites\[0\]: "),
        (change("steps", 40), "50 sigmas for 40 steps"),
        (change("sigmas/3", 0.5), r"sigmas must fall, but sigmas\[4\]"),
        (change("sigmas/3", "high"), r"sigmas\[3\]: .* found 'high'"),
        (change(STEPS, [0, 5, 3]), r"sites\[0\]\.compute_steps\.cond: .* 3 follows 5"),
        (change(STEPS, [0, 50]), r"compute_steps\.cond: compute step 50"),
        (change(STEPS, []), "step 0 must be computed"),
        (change(STEPS, [0, True]), r"sites\[0\]\.compute_steps\.cond\[1\]"),
        (change("sites/0/compute_steps", {"uncond": [0]}), "cond first"),
        (change("sites/0/compute_steps", {"third": [0]}), r"compute_steps\.third"),
        (change("sites/0/intervals", [[5, 3]]), r"interval \[5, 3\] ends before it starts"),
        (change("sites/0/intervals", [[0, 3], [3, 5]]), "sorted and apart: 3 follows 3"),
        (change("sites/0/intervals", [[38, 40]]), "block 40 of 40 blocks"),
        (change("sites/0/block_list", "layers"), "'layers' is not one of blocks"),
        (change("sites/0/skip", "guess"), r"sites\[0\]\.skip: .* found 'guess'"),
        (change("model/width", 0), r"model\.width"),
        (change("model/block_lists", {}), r"model\.block_lists: .* at least 1 item"),
        (change("model/block_cost", {"blocks": 2.0}), "model: block_cost .* counts the same"),
        (change("provenance/settings", {"a": float("inf")}), r"provenance\.settings\.a"),
        (change("expected/block_runs", 12), "the file says 12, its steps give 1984"),
    ],
)
def test_mistakes_are_refused_with_their_place(mistake, text):
    doc = document()
    mistake(doc)
    with pytest.raises(PlanError, match=text):
        CachePlan.from_dict(doc)


def test_forecast_weights_of_older_files_are_refused():
    doc = document()
    doc["sites"][0] |= {"skip": "weights", "weights": {"cond": {"1": [1.0]}}}
    with pytest.raises(PlanError, match=r"sites\[0\].skip: 'weights' was removed in version 0.2"):
        CachePlan.from_dict(doc)


def test_an_empty_block_cost_of_older_files_loads_and_is_not_written_again():
    doc = document()
    plain = CachePlan.from_dict(doc)
    doc["model"]["block_cost"] = {}
    older = CachePlan.from_dict(doc)
    assert older == plain and "block_cost" not in older.dumps()


@pytest.mark.parametrize(
    ("sites", "text"),
    [
        ([intervals(both(0), [[1, 3]]), intervals(both(0), [[3, 4]])], "blocks 3 is in sites"),
        ([prediction(both(0)), prediction(both(0))], "more than one prediction site"),
        ([prediction(both(0, 6)), intervals(both(0, 3), [[1, 2]])], "step 3 is a reuse step"),
        ([prediction({"cond": [0, 4], "uncond": [0, 5]}, "jump")], "for all branches"),
    ],
)
def test_sites_that_do_not_go_together_are_refused(sites, text):
    with pytest.raises(PlanError, match=text):
        toy_plan(sites)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"skip": "hold"}, "solver_weights: go with skip 'jump' .* found 'hold' and unipc"),
        ({"compute_steps": both(0, 2)}, "expected the compute steps, step 3 is missing or no"),
        ({"solver_weights": {"0": [0.0, 0.0]}}, r"sites\[0\]\.solver_weights\.0"),
        ({"solver_weights": {"0": [0.0, 0.0, float("nan")]}}, r"sites\[0\]\.solver_weights\.0"),
    ],
)
def test_weights_of_the_solver_belong_to_the_compute_steps_of_a_jump(changes, text):
    weights = {"0": [0.0, 0.0, 0.0], "2": [0.1, 0.0, 0.2], "3": [0.1, 0.3, 0.2]}
    site = {**prediction(both(0, 2, 3), "jump"), "solver_weights": weights}
    plain = toy_plan([prediction(both(0, 2, 3), "jump")], steps=5)
    document = plain.model_dump(mode="json", exclude={"expected"}) | {"solver": "unipc"}
    plan = CachePlan.from_dict(document | {"sites": [site]})
    assert plan.solver_weights == ((0.0, 0.0, 0.0), (0.1, 0.0, 0.2), (0.1, 0.3, 0.2))
    assert CachePlan.loads(plan.dumps()) == plan and not plain.solver_weights
    with pytest.raises(PlanError, match=text):
        CachePlan.from_dict(document | {"sites": [site | changes]})
    for solver in ("euler", "dpm++"):
        with pytest.raises(PlanError, match=re.escape(f"found 'jump' and {solver}: search a plan")):
            CachePlan.from_dict(document | {"sites": [site], "solver": solver})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"format": 1, "format": 1}', "key 'format' twice"),
        ('{"format": 1, "shift": NaN}', "NaN is not a number that a plan may hold"),
        ("[" * 200_000, "not JSON|nested too deeply"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"\x02\0\0\0\0\0\0\0{}", "this is no plan but a profile; make a plan from it"),
    ],
)
def test_text_that_is_no_plan_is_refused(text, message):
    with pytest.raises(PlanError, match=message):
        CachePlan.loads(text)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(PlanError, match=r"nowhere\.json: No such file"):
        CachePlan.load(tmp_path / "nowhere.json")
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path, tmp_path / "pipe.json"):
        with pytest.raises(PlanError, match="not a regular file"):
            CachePlan.load(path)


def test_failed_save_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("profiling_core.plan.plan.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        load_preset("wan2.1-t2v-14B", "paper").save(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []


def test_option_value_is_a_preset_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = "wan2.1-t2v-14B"
    assert resolve_plan(None, model) is None
    assert resolve_plan("paper", model).name == "paper"
    toy_plan([], name="mine").save(tmp_path / "mine.json")
    assert resolve_plan("mine.json", model).name == "mine"
    with pytest.raises(PlanError, match=r"no preset 'fastest' for .*: there are paper, release"):
        resolve_plan("fastest", model)
    with pytest.raises(PlanError, match=r"other\.json: No such file"):
        resolve_plan("other.json", model)
    assert available(model) == ["paper", "release", "quality", "balanced", "fast"]


def test_model_with_another_depth_or_width_is_refused():
    plan = load_preset("wan2.1-t2v-14B", "paper")
    plan.check_model({"blocks": 40}, 5120)
    with pytest.raises(PlanError, match="14B has 40 blocks, this model 30"):
        plan.check_model({"blocks": 30}, 5120)
    with pytest.raises(PlanError, match="hidden width 5120, this model 1536"):
        plan.check_model({"blocks": 40}, 1536)


def test_a_label_tells_plans_of_one_name_apart():
    plan = load_preset("wan2.1-t2v-14B", "paper")
    assert plan.label == load_preset("wan2.1-t2v-14B", "paper").label
    assert plan.label.startswith("paper (sha256 ")
    site = plan.sites[0].model_copy(update={"skip": "linear"})
    assert plan.model_copy(update={"sites": (site,)}).label != plan.label


# -- random plans and damaged files


@given(plans())
def test_json_round_trip_changes_nothing(plan):
    assert CachePlan.loads(plan.dumps()) == plan


@given(plans())
def test_lifetimes_cover_every_reuse_and_cost_is_within_the_full_run(plan):
    assert 0 < plan.expected.block_runs <= plan.expected.block_runs_full
    for site in plan.sites:
        for branch in plan.branches:
            computed = computes(plan, site, branch)
            for step, forecast in forecasts(plan, site, branch).items():
                assert step not in computed
                assert forecast and all(a in computed and a < step for a, _ in forecast)


def test_texts_with_brackets_survive_the_list_formatting():
    plan = toy_plan([], name="list [1,  2]  and [[3]]")
    assert CachePlan.loads(plan.dumps()).name == plan.name


def mutate(text: str, rng: random.Random) -> str | bytes:
    """One random damage: to the bytes, to a token, or to the document's structure."""
    kind = rng.randrange(4)
    if kind == 0:
        data = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if kind == 1:
        start = rng.randrange(len(text))
        return text[:start] + text[start + rng.randint(1, 200) :]
    doc = json.loads(text)
    parent, node = None, doc
    key = None
    while isinstance(node, dict | list) and node and (parent is None or rng.random() < 0.8):
        keys = list(node) if isinstance(node, dict) else range(len(node))
        parent, key = node, rng.choice(list(keys))
        node = node[key]
    strange = [None, True, -1, 0, 10**30, 1e308, -0.5, "", "0", [], {}, [[]], "hold", 3.5]
    if kind == 2:
        parent[key] = rng.choice(strange)
    elif isinstance(parent, dict):
        parent[str(rng.choice(strange))] = parent.pop(key)
    else:
        parent.insert(key, rng.choice([*strange, node]))
    return json.dumps(doc)


def test_six_hundred_mutations_of_a_shipped_plan_never_end_in_a_traceback():
    rng = random.Random(7)
    names = ("paper", "release", "balanced")
    texts = [load_preset("wan2.1-t2v-1.3B", preset).dumps() for preset in names]
    refused = 0
    for number in range(600):
        try:
            loaded = CachePlan.loads(mutate(texts[number % 3], rng))
        except PlanError as error:
            refused += 1
            assert str(error) and "\n" not in str(error)
        else:
            assert CachePlan.loads(loaded.dumps()) == loaded
    assert refused > 300


def test_plans_need_no_torch():
    modules = "plan, plan.importers, plan.presets, runtime.options, __main__".split(", ")
    imports = "; ".join(f"import profiling_core.{module}" for module in modules)
    code = f"import sys; {imports}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

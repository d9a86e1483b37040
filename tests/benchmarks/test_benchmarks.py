"""The benchmarks run: at toy sizes on the CPU, so that the GPU scripts do not rot unseen."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.compare import shipped_plans
from benchmarks.lib import calibrate, clips, timing, upstream
from benchmarks.lib import rows as row_files
from benchmarks.lib.subjects import random_model
from benchmarks.speed import beside_load, call, engine, traffic
from benchmarks.speed import demo as demo_rows
from examples import demo
from gpu_toys import TOY_HUNYUAN, TOY_WAN, TOYS
from hunyuan_toys import TINY as TINY_HUNYUAN
from hyvideo.config import CONFIGS as HUNYUAN_CONFIGS
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import HUNYUAN, MODELS, WAN, Clip, PlannedModel
from profiling_core.plan.presets import ORDER, build_preset, load_preset, presets_of
from profiling_core.plan.schema import ModelFingerprint
from profiling_core.profile.profile import Profile, Settings
from profiling_core.runtime import options
from profiling_core.trees.tree_model import ModelRequest
from tiny_trees import tiny_configs
from wan.configs import WAN_CONFIGS

CPU = torch.device("cpu")
PRESETS = {TOY_WAN: ["release", "paper", "balanced"], TOY_HUNYUAN: list(timing.PLANS)}


def toy(name: str) -> timing.Subject:
    return TOYS[name].subject(name, CPU)


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Reads what a benchmark appended."""
    monkeypatch.setattr(row_files, "RESULTS", tmp_path)
    return lambda name: [
        json.loads(s) for s in (tmp_path / f"{name}.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def run(monkeypatch):
    """Runs a benchmark's main with arguments."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
        return script.main()

    return run


def test_release_of_hunyuan_has_calls_that_reuse_one_list_and_keep_the_other():
    plan = load_preset("hunyuan-video-t2v-720p", "release")
    kinds = timing.kinds(plan, "cond")
    assert (kinds[0], kinds[6], kinds[7]) == ("run", "keep", "reuse")
    assert (kinds[12], kinds[26]) == ("keep+reuse", "reuse+keep")
    assert [kinds[step] for step in (18, 42, 48, 49)] == ["keep"] * 3 + ["reuse"]
    steps = timing.visit(plan, "cond", set(kinds.values()) - {"run"})
    assert steps == [6, 7, 12, 18, 24, 26]


def test_loop_is_put_together_from_the_plans_own_counts():
    costs = timing.CallCosts(
        bare=4.0,
        seconds={"keep": 5.0, "reuse": 1.0},
        counts={"run": 2, "keep": 2, "reuse": 6},
        calls=10,
        attached_over_bare=1.0,
        ideal=2.0,
    )
    assert costs.achieved == pytest.approx(10 * 4.0 / (2 * 4 + 2 * 5 + 6 * 1))
    assert costs.as_row()["kinds"]["run"] == {"calls": 2, "seconds": 4.0}
    assert (costs.keeping, costs.reusing) == (5.0, 1.0)


@pytest.mark.parametrize("name", TOYS)
def test_linear_plan_is_measured_with_both_of_its_anchors(name):
    subject = toy(name)
    base = subject.plan("paper").model_dump(mode="json", exclude_none=True)
    for site in base["sites"]:
        site["skip"] = "linear"
    fields = {k: v for k, v in base.items() if k not in ("format", "expected")}
    plan = CachePlan.build(**fields)
    held, formula = timing.measured_bytes(subject, plan, CPU)
    runs = sum(len(site.intervals) for site in plan.sites)
    itemsize = timing.formula_sizes(subject)["stream_itemsize"]
    tokens = subject.planned.clip.tokens
    assert held == formula == 2 * runs * len(plan.branches) * tokens * 48 * itemsize
    assert timing.measure(subject, plan, 1, CPU).reusing > 0


@pytest.mark.parametrize("tree", row_files.TREES)
def test_engine_benchmark_measures_the_mid_sizes(tree, monkeypatch, rows, run, capsys):
    """At a toy width; in bf16 only where the processor has it."""
    small = {"dim": 48, "num_heads": 2, "ffn_dim": 64}
    monkeypatch.setattr(engine, "MID_WAN", {**engine.MID_WAN, **small})
    small = {"hidden_size": 48, "heads_num": 2, "rope_dim_list": (8, 8, 8)}
    monkeypatch.setattr(engine, "MID_HUNYUAN", {**engine.MID_HUNYUAN, **small})
    monkeypatch.setattr(engine, "MID_LATENT", (16, 2, 4, 4))
    monkeypatch.setattr(engine, "has_bf16", lambda device: False)
    assert run(engine, "--trees", tree, "--models", "mid", "--rounds", 1) == 0
    found = rows("engine")
    assert [row["plan"] for row in found] == PRESETS[{"wan": TOY_WAN, "hunyuan": TOY_HUNYUAN}[tree]]
    assert {(row["tree"], row["model"]) for row in found} == {(tree, "mid-size, float32")}
    assert all(row["bytes"] == row["bytes_formula"] for row in found)
    assert "mid-size, bfloat16 left out: no bf16 instructions here" in capsys.readouterr().err
    options = ("--rounds", 1, "--plans", "release", "--store", "bfloat16")
    assert run(engine, "--trees", tree, "--models", "mid", *options) == 0
    *_, half = rows("engine")
    (full,) = [row for row in found if row["plan"] == "release"]
    assert (half["plan"], half["storage"], full["storage"]) == ("release", "bfloat16", "stream")
    assert half["bytes"] == half["bytes_formula"] == full["bytes"] / 2


def test_engine_benchmark_measures_the_wan_miniature_as_its_pipeline_runs_it():
    subject = engine.miniature("wan", CPU, bf16=False)
    assert subject.plan("paper").sites == load_preset("wan2.1-t2v-mini", "paper").sites
    assert subject.planned.clip.tokens == MODELS["wan2.1-t2v-mini"].clip.tokens


def test_engine_benchmark_measures_the_hunyuan_miniature_as_its_pipeline_runs_it(
    hunyuan_checkpoint, monkeypatch
):
    config = replace(TINY_HUNYUAN, model_base=hunyuan_checkpoint)
    monkeypatch.setitem(HUNYUAN_CONFIGS, "HYVideo-mini", config)
    subject = engine.miniature("hunyuan", CPU, bf16=False)
    assert {p.dtype for p in subject.model.parameters()} == {torch.float32}
    assert subject.planned.clip.tokens == 2 * 2 * 2 + 12
    assert timing.formula_sizes(subject)["stream_itemsize"] == 4


@pytest.fixture
def tiny_trees(checkpoint, hunyuan_checkpoint, monkeypatch):
    """Both trees on tiny random checkpoints, with the presets of their sizes."""
    wan, hunyuan = tiny_configs(checkpoint, hunyuan_checkpoint, 50)
    planned = {
        wan.plan_model: _planned(WAN, "wan2.1", {"blocks": 3}),
        hunyuan.plan_model: _planned(
            HUNYUAN, "hunyuan-video", {"double_blocks": 2, "single_blocks": 3}
        ),
    }
    monkeypatch.setitem(WAN_CONFIGS, "t2v-mini", wan)
    monkeypatch.setitem(HUNYUAN_CONFIGS, "HYVideo-mini", hunyuan)
    monkeypatch.setattr(shipped_plans, "available", lambda model: presets_of(planned[model]))
    monkeypatch.setattr(
        options,
        "resolve_plan",
        lambda value, model: build_preset(planned[model], value) if value else None,
    )
    return planned


def _planned(family, name, lists):
    fingerprint = ModelFingerprint(family=name, name="tiny", block_lists=lists, width=48)
    return PlannedModel(family, fingerprint, Clip("tiny", 8, 512))


def test_demo_writes_clips_and_a_sheet_of_both_trees(tiny_trees, tmp_path, run, capsys):
    out = tmp_path / "demo"
    assert run(demo, "--out", out) == 0
    names = [f"{tree}_{what}.mp4" for tree in row_files.TREES for what in demo.RUNS]
    sheets = [f"{tree}_contact_sheet.png" for tree in row_files.TREES]
    assert sorted(path.name for path in out.iterdir()) == sorted(names + sheets)
    said = capsys.readouterr()
    assert all(repr(prompt) in said.out for prompt in demo.PROMPTS.values())
    assert said.out.count("\nwan ") == said.out.count("\nhunyuan ") == 3
    lines = said.err.splitlines()
    assert sum(line.startswith("hunyuan paper, 1/1: ") for line in lines) == 1


def test_demo_marks_a_ratio_above_the_ideal_as_noise(made_runs):
    full, quick, slow = made_runs(10.0, 4.0, 5.1)
    lines = [demo.cells("wan", one, full) for one in (full, quick, slow)]
    assert [line[3] for line in lines] == ["1.00x", "2.50x*", "1.96x"]
    assert demo.NOISE in demo.table(lines)
    assert demo.NOISE not in demo.table([lines[0], lines[2]])


@pytest.fixture
def made_runs():
    """Runs of so many seconds; all but the first skip half of the blocks."""

    def make(*seconds):
        video = torch.zeros(3, 1, 8, 8)
        stats = [
            SimpleNamespace(
                denoise_seconds=s,
                block_runs=50 if n else 100,
                block_runs_full=100,
                peak_bytes=0,
            )
            for n, s in enumerate(seconds)
        ]
        return [demo.Run("run", video, one) for one in stats]

    return make


def test_rows_of_the_demo_are_recorded_by_a_benchmark(tiny_trees, rows, run):
    assert run(demo_rows, "--rounds", 1) == 0
    found = rows("demo")
    assert [(row["tree"], row["run"]) for row in found] == [
        (tree, run) for tree in row_files.TREES for run in demo.RUNS
    ]
    assert [row["solver"] for row in found] == ["unipc"] * 3 + ["euler"] * 3
    assert found[2]["ideal"] == found[5]["ideal"] == 2.0
    assert all(0 < row["psnr_frames"] <= 100 for row in found if row["run"] != "full")


def test_policies_put_as_many_plain_steps_beside_each_plan(tiny_trees, rows, run, capsys):
    assert run(shipped_plans, "--prompts", 1, "--solvers", "unipc", "euler") == 0
    found = rows("policies")
    assert {(row["tree"], row["solver"]) for row in found} == {
        ("wan", "unipc"),
        ("hunyuan", "euler"),
    }
    for tree in row_files.TREES:
        shares = {row["policy"]: row["block_share"] for row in found if row["tree"] == tree}
        plans = [policy for policy in shares if policy in ORDER]
        plain = [share for policy, share in shares.items() if policy not in ORDER]
        assert len(plans) == {"wan": 5, "hunyuan": 8}[tree]
        assert all(min(abs(shares[plan] - share) for share in plain) <= 0.0101 for plan in plans)
    assert capsys.readouterr().out.count("\nhunyuan ") == len(
        {row["policy"] for row in found if row["tree"] == "hunyuan"}
    )


def test_parts_of_a_calibration_make_one_profile(tiny_trees, tmp_path, run, monkeypatch):
    monkeypatch.setattr(calibrate, "PROMPTS", 3)
    monkeypatch.setattr(calibrate, "SETTINGS", Settings(attention_every=0))
    monkeypatch.setattr(clips, "MODELS", tiny_trees)
    for part in range(2):
        options = ("--trees", "hunyuan", "--out", tmp_path, "--parts", 2, "--part", part)
        assert run(calibrate, *options) == 0
    found = Profile.load(tmp_path / "hunyuan.profile")
    assert {run.prompt for run in found.runs} == set(calibrate.calibration_prompts(3))
    assert sorted(run.seed for run in found.runs) == [7, 8, 9]


def test_alternating_rounds_turn_their_order_and_drop_the_first():
    order = []
    variants = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = timing.alternate(variants, 3, CPU)
    assert "".join(order) == "baabbaab" and {len(s) for s in seconds.values()} == {3}
    assert timing.paired_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == 2.0


def test_random_weights_are_the_same_for_every_type():
    build = lambda: torch.nn.Linear(4, 4)  # noqa: E731
    one, other = (random_model(build, dtype, CPU) for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(one.weight.to(torch.bfloat16), other.weight)


def test_a_loaded_pipeline_is_kept(tiny_trees, monkeypatch):
    first = clips.load("wan")
    kind = type(first)
    second = kind(ModelRequest(model=kind.miniature), "a prompt")
    assert second.pipeline is None
    with second.loaded():
        made = second.pipeline
    assert made is not None and made is not first.pipeline
    monkeypatch.setattr(kind, "load", None)
    with second.loaded():
        assert second.pipeline is made


def test_beside_load_keeps_a_row_of_each_way_to_wait(rows, run, monkeypatch, capsys):
    taken = {(): (1.0, 1.1), ("GOMP_SPINCOUNT",): (1.0, 3.0)}
    monkeypatch.setattr(
        beside_load, "run_seconds", lambda threads, waiting, busy: taken[tuple(waiting)][busy]
    )
    monkeypatch.setattr(beside_load.os, "sched_setaffinity", lambda *_: None, raising=False)
    assert run(beside_load, "--rounds", 2) == 0
    found = [(row["waiting"], row["threads"], row["ratio"]) for row in rows("beside_load")]
    assert found == [("passive", 2, 1.1), ("spinning", 2, 3.0)]
    assert "spinning  1.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "terabytes", "peak"),
    [("wan2.1-t2v-14B, 480p", 1.11, 16.4), ("hunyuan-video, 540p", 1.59, 28.2)],
)
def test_elementwise_work_of_a_full_size_call_stays_below_its_ceiling(model, terabytes, peak):
    row = traffic.traffic_of(*traffic.MODELS[model])
    assert 0.9 * terabytes < row["terabytes"] <= terabytes
    assert 0.9 * peak < row["peak_bytes_per_value"] <= peak


def test_traffic_counts_what_is_read_and_written_and_what_is_alive():
    with FakeTensorMode(), torch.no_grad():
        x, one = torch.empty(10, 8), torch.empty(8)
        with traffic.Traffic() as seen, traffic.Fused(seen):
            y = x * one
            y.add_(x)
            half = torch.empty(10, 8, dtype=torch.bfloat16)
            torch.add(y, one, out=half)
            torch.nn.functional.rms_norm(half, (8,))
            half @ half.T
    assert seen.bytes == {
        "mul": 320 + 32 + 320,
        "add_": 320 + 320 + 320,
        "add": 320 + 32 + 160,
        "rms_norm": 160 + 160,
    }
    assert seen.peak == 320 + 160 + 200


@pytest.mark.parametrize("tree", row_files.TREES)
def test_a_call_is_timed_beside_diffusers_and_a_loop_beside_its_calls(
    tree, monkeypatch, rows, run, capsys
):
    monkeypatch.setattr(call, "LATENT", (16, 1, 4, 4))
    monkeypatch.setattr(call, "STEPS", 2)
    monkeypatch.setattr(call, "has_bf16", lambda device: False)
    monkeypatch.delenv(upstream.CHECKOUTS[tree], raising=False)
    assert run(call, "--trees", tree, "--models", "width 384", "--rounds", 1) == 0
    other, loop = rows("call")
    assert (other["beside"], other["model"], other["dtype"]) == ("diffusers", "width 384", "fp32")
    assert other["ratio"] == pytest.approx(other["seconds"] / other["beside_seconds"], rel=0.1)
    assert 0 < other["cpu_ratio"] and "cpu_ratio" not in loop
    assert (loop["beside"], loop["steps"]) == ("its calls", 2) and 1 < loop["ratio"] < 1.5
    said = capsys.readouterr().err
    assert "bf16 left out: no bf16 instructions here" in said
    assert f"upstream left out: {upstream.CHECKOUTS[tree]} names no checkout" in said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tree", row_files.TREES)
def test_the_classes_that_are_timed_together_predict_the_same(tree, dtype, monkeypatch):
    monkeypatch.setattr(call, "LATENT", (16, 1, 4, 4))
    for _, ours, other in call.pairs(tree, "width 384", dtype):
        found = [
            torch.utils._pytree.tree_leaves(one())[0].float().squeeze() for one in (ours, other)
        ]
        error = (found[0] - found[1]).norm() / found[1].norm()
        assert error < (1e-4 if dtype == torch.float32 else 0.03)

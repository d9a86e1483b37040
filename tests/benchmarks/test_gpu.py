"""Plans and policies on full-size models: the script runs at toy sizes on the CPU."""

import subprocess
import sys

import pytest
import torch

from benchmarks.lib import ROOT, timing
from benchmarks.lib import rows as row_files
from benchmarks.lib.timing import Subject
from benchmarks.speed import gpu
from gpu_toys import TOY_HUNYUAN as HUNYUAN
from gpu_toys import TOY_WAN as WAN
from gpu_toys import TOYS
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import load_preset

CPU = torch.device("cpu")
CALLS = {WAN: 100, HUNYUAN: 50}
PEERS = ["TeaCache", "MagCache", "EasyCache", "DiCache"]
UNIFORM, PUBLISHED = ("uniform hold", "uniform linear"), ("paper", "release")
PLANS = {
    WAN: [*UNIFORM, "ours jump", "ours linear", *PUBLISHED],
    HUNYUAN: [*UNIFORM, "ours linear", "ours corrected", *PUBLISHED],
}
PRESETS = {WAN: ["release", "paper", "balanced"], HUNYUAN: list(timing.PLANS)}


@pytest.fixture(scope="module", params=list(TOYS))
def subject(request) -> Subject:
    return TOYS[request.param].subject(request.param, CPU)


@pytest.fixture(scope="module")
def rows(subject) -> list[dict]:
    return gpu.compare(subject, (1.9, 3.0), gpu.NAMES, 1, CPU)


def policy(subject: Subject, name: str) -> gpu.Policy:
    return next(each for each in gpu.policies(subject) if each.name == name)


def test_plans_part_counts_what_the_plans_say(subject, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(row_files, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "MODELS", TOYS)
    args = gpu.build_parser().parse_args(["--rounds", "1", "--whole-loop", subject.name])
    gpu.run_plans(subject.name, args, CPU)
    found = row_files.load_rows("gpu_step")
    assert [row["plan"] for row in found] == PRESETS[subject.name] == subject.presets
    for row in found:
        plan = subject.plan(row["plan"])
        assert row["bytes"] == row["bytes_formula"]
        assert (row["bytes"] == 0) == (subject.name == WAN and row["plan"] == "balanced")
        assert row["ideal"] == pytest.approx(plan.expected.speedup_flops, rel=1e-4)
        assert row["bare"] > 0 and row["achieved"] > 0 and row["loop"]["ratio"] > 0
        calls = len(plan.solver_steps) * len(plan.branches)
        assert sum(kind["calls"] for kind in row["kinds"].values()) == calls
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(found)


@pytest.mark.parametrize(
    ("name", "official"),
    [
        ("wan2.1-t2v-1.3B", "wan2.1-t2v-1.3B"),
        ("wan2.1-t2v-14B", "wan2.1-t2v-14B"),
        ("hunyuan-video-720p", "hunyuan-video-t2v-720p"),
    ],
)
def test_full_sizes_are_those_that_plans_are_shipped_for(name, official, monkeypatch) -> None:
    def on_meta(build, dtype, device):
        with torch.device("meta"):
            return build().to(dtype)

    monkeypatch.setattr(gpu, "random_model", on_meta)
    subject, shipped = gpu.MODELS[name].subject(name, CPU), MODELS[official]
    assert subject.planned.clip.tokens == shipped.clip.tokens
    assert subject.planned.clip.latent == shipped.clip.latent
    for preset in subject.presets:
        assert subject.plan(preset).sites == load_preset(official, preset).sites
    assert subject.planned.fingerprint.width == shipped.fingerprint.width


def test_every_policy_has_a_row_for_every_budget(subject, rows) -> None:
    found = {(row["policy"], row["budget"]) for row in rows}
    named = ["fewer steps", *PLANS[subject.name], *PEERS]
    budgets = {name: [None] if name == "release" else [1.9, 3.0] for name in named}
    assert found == {(name, budget) for name in named for budget in budgets[name]}
    assert list(dict.fromkeys(row["policy"] for row in rows)) == named
    assert len(gpu.shown(rows).splitlines()) == 2 + len(rows)


def test_calls_are_those_of_a_clip_and_meet_the_budget(subject, rows) -> None:
    for row in rows:
        calls = sum(row["calls"].values())
        skips = row["policy"] in ("fewer steps", "ours jump")
        assert calls < CALLS[subject.name] if skips else calls == CALLS[subject.name]
        assert all(row["seconds"][kind] > 0 for kind in row["calls"])
        if row["policy"] not in ("paper", "release"):
            assert row["ideal"] == pytest.approx(row["budget"], rel=0.03)
        loop = sum(count * row["seconds"][kind] for kind, count in row["calls"].items())
        assert row["loop_seconds"] == pytest.approx(loop, abs=1e-3)


def test_decisions_are_paid_for_by_peers_alone(rows) -> None:
    for row in rows:
        assert ("decision" in row["parts"]) == (row["policy"] in PEERS)


def test_bytes_held_are_those_of_all_branches(subject, rows) -> None:
    held = {row["policy"]: row["bytes_held"] for row in rows}
    clip, branches = subject.planned.clip, CALLS[subject.name] // 50
    wide = subject.model.patch_embedding.weight if subject.name == WAN else None
    latent = clip.latent * (4 if subject.name == WAN else 2)
    assert held["uniform hold"] == branches * latent
    assert held["ours linear"] == 2 * branches * latent
    assert held["fewer steps"] == 0
    image = 2 * 2 * 2 * 48 * (2 if wide is None else 4)
    assert held["MagCache"] == branches * image
    assert held["DiCache"] >= 5 * branches * image


def test_the_papers_plan_comes_as_near_to_the_budget_as_it_can(subject) -> None:
    for budget in (1.5, 1.9):
        plan = gpu.paper(subject, budget)
        assert speedup_flops(plan) == pytest.approx(budget, rel=0.03)
        lists = {site.block_list for site in plan.interval_sites}
        assert lists == set(subject.planned.fingerprint.block_lists)


def test_a_correcting_call_is_a_kind_of_its_own() -> None:
    subject = TOYS[HUNYUAN].subject(HUNYUAN, CPU)
    plan = gpu.whole(subject, "corrected", False, 3.0)
    kinds = gpu.kinds_of(plan, "cond")
    steps = gpu.walked(plan, "cond")
    assert [kinds[step] for step in steps][-3:] == ["reuse", "reuse", "correct"]
    costs = policy(subject, "ours corrected").costs(1, CPU)
    assert {"run", "keep", "reuse", "correct"} <= costs.seconds.keys()


def test_a_forced_rule_gives_the_forced_answer(subject) -> None:
    """On a reused call the blocks behind the decision do not run."""
    runs = []
    hooks = [
        block.register_forward_pre_hook(lambda *_: runs.append(1))
        for name in subject.planned.fingerprint.block_lists
        for block in getattr(subject.model, name)
    ]
    depth, before = len(hooks), subject.model.__dict__.copy()
    for name in PEERS:
        one = policy(subject, name)
        rule = gpu.forced_rule(one, gpu.Clock(CPU))
        driven, counts = gpu.Driven(subject, rule), []
        for step, reusing in ((0, False), (1, False), (20, True), (21, False)):
            runs.clear()
            driven.call(step, "cond", reusing=reusing)
            counts.append(len(runs))
        assert counts == [depth, depth, 1 if name == "DiCache" else 0, depth], name
    for hook in hooks:
        hook.remove()
    assert subject.model.__dict__.keys() == before.keys()


def test_torch_numpy_and_pydantic_alone_are_needed() -> None:
    others = ("transformers", "diffusers", "loguru", "safetensors", "tqdm", "matplotlib", "skimage")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({others!r}))"
    command = f"{blocked}; import benchmarks.speed.gpu"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=ROOT)


def test_without_a_gpu_it_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    assert capsys.readouterr().err == "error: no CUDA device: this benchmark measures a GPU\n"

"""Ten minutes on one GPU: timetable, budget and resuming, on stand-ins for models and clock."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lib import ROOT, timing
from benchmarks.lib.rows import load_rows
from benchmarks.lib.timing import Subject
from benchmarks.speed import gpu
from benchmarks.speed.full_models import MODELS, TOYS
from benchmarks.speed.gpu import CPU, HUNYUAN, HUNYUAN_LARGE, WAN, WAN_SMALL, Item, Session
from benchmarks.speed.single_calls import AttentionKernels, loop_seconds
from profiling_core.plan.cost import block_runs
from profiling_core.plan.presets import load_preset

NEEDED = (  # what torch, NumPy and pydantic import
    "torch numpy pydantic pydantic_core annotated_types typing_extensions typing_inspection sympy "
    "mpmath networkx jinja2 markupsafe filelock fsspec triton functorch torchgen setuptools "
    "pkg_resources"
)
OURS = "benchmarks profiling_core wan hyvideo"
ALONE = f"""
import sys
allowed = sys.stdlib_module_names | set({(NEEDED + " " + OURS).split()!r})
class Only:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed or top.startswith("_"):
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Only, sys.meta_path)
for other in ("loguru", "diffusers", "ftfy", "transformers", "safetensors"):
    try:
        __import__(other)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{{other}} was not blocked")
from benchmarks.speed import gpu
sys.exit(gpu.main(sys.argv[1:]))
"""


@dataclass
class Card:
    """A GPU whose models are numbers: seconds of a call as estimated and as it takes them."""

    folder: Path
    real: float = 1.0  # seconds of a call over what was estimated
    now: float = 0.0
    built: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def spec(self, weights: str, seconds: float) -> SimpleNamespace:
        facts = {"weights": weights, "dtype": torch.bfloat16, "latent": (1,)}

        def call() -> None:
            self.now += seconds * self.real

        def subject(name: str, device: torch.device, model: object = None) -> Subject:
            self.built += [] if model else [weights]
            planned = SimpleNamespace(clip=SimpleNamespace(tokens=1))
            return Subject(name, model or object(), call, planned, "a kernel")

        return SimpleNamespace(**facts, subject=subject, flops=lambda: seconds * gpu.ASSUMED_FLOPS)

    def timed(self, call: Callable[[], object], device: torch.device) -> float:
        begun = self.now
        call()
        return self.now - begun

    def measurements(self, subject: Subject, part: str) -> list[SimpleNamespace]:
        """Rows named by the calls they take; "broken" fails in its first."""

        def row(name: str) -> dict:
            for _ in range(1 if name == "broken" else int(name)):
                subject.call()
            if name == "broken":
                raise RuntimeError("no such kernel\nsecond line")
            self.ran.append(f"{subject.name} {name}")
            return {"seconds": {"run": self.timed(subject.call, CPU)}}

        return [
            SimpleNamespace(name=name, row=lambda *_, name=name: row(name))
            for name in ("broken", *map(str, range(1, 100)))
        ]

    def session(self, *items: tuple[str, str], seconds: float, commit: str = "c0") -> Session:
        models = {
            WAN: self.spec("14B", 4.0),
            HUNYUAN: self.spec("hunyuan", 10.0),
            HUNYUAN_LARGE: self.spec("hunyuan", 30.0),
        }
        found = [
            Item("plan", model, name, lambda rounds, n=name: int(n) + 1 if n.isdigit() else 1)
            for model, name in items
        ]
        about = {"commit": commit, "device": "a card"}
        return Session(models, found, seconds, self.folder, about, CPU, lambda: self.now)

    def rows(self) -> list[dict]:
        return load_rows("gpu", self.folder)


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card(tmp_path)
    monkeypatch.setattr(gpu, "measurements", made.measurements)
    monkeypatch.setattr(gpu, "timed", made.timed)
    monkeypatch.setattr(gpu, "OPENING", 0.0)
    return made


def test_what_fits_is_measured_model_by_model_and_the_rest_is_named(card, capsys) -> None:
    items = [(WAN, "2"), (HUNYUAN, "3"), (WAN, "40"), (WAN, "4"), (HUNYUAN_LARGE, "1")]
    session = card.session(*items, seconds=180)
    assert "of 180 s" in session.timetable()
    assert session.run() == 0
    assert card.ran == [f"{WAN} 2", f"{WAN} 4", f"{HUNYUAN} 3", f"{HUNYUAN_LARGE} 1"]
    assert card.built == ["14B", "hunyuan"]  # the weights of both sizes once
    assert card.now == 4 * (1 + 3 + 5) + 10 * (1 + 4) + 30 * (1 + 2) <= 180
    error = capsys.readouterr().err
    assert f"left out: {WAN} plan: 40 168" in error and "176 s; rows are in" in error
    row = card.rows()[0]
    assert (row["row_seconds"], row["kernel"], row["rounds"]) == (12.0, "a kernel", 1)
    assert row["full_call_tflops_per_second"] == gpu.ASSUMED_FLOPS / 1e12


@pytest.mark.parametrize("real", [0.5, 3.0])
def test_the_first_call_says_what_fits_on_this_card(card, real) -> None:
    card.real = real
    items = [(WAN, "2"), (WAN, "9"), (WAN, "10"), (WAN, "1")]
    assert card.session(*items, seconds=90).run() == 0
    fits = {0.5: [2, 9, 10, 1], 3.0: [2, 1]}[real]
    assert card.ran == [f"{WAN} {name}" for name in fits]
    assert card.now <= 90


def test_a_budget_is_overrun_by_one_call_at_most(card, capsys) -> None:
    """The card becomes slower after its first call, as no estimate could know."""
    session = card.session((WAN, "7"), (HUNYUAN, "1"), seconds=80)
    plain = card.timed

    def slower(call, device):
        taken = plain(call, device)
        card.real = 5.0
        return taken

    gpu.timed = slower  # the fixture's patch is undone at its end
    assert session.run() == 0
    assert 80 < card.now <= 80 + 5 * 4
    assert not card.ran and not card.rows()
    assert f"left out: {WAN} plan: 7" in capsys.readouterr().err


def test_a_second_call_measures_what_has_no_row_of_this_commit_and_device(card) -> None:
    items = [(WAN, "2"), (WAN, "3")]
    assert card.session(items[0], seconds=100).run() == 0
    again = card.session(*items, seconds=100)
    assert "rows that are there already: 1" in again.timetable()
    assert again.run() == 0 and card.ran == [f"{WAN} 2", f"{WAN} 3"]
    built, last = len(card.built), card.session(*items, seconds=100)
    assert last.timetable() == "all 2 rows are there already"
    assert last.run() == 0 and len(card.built) == built and len(last.rows) == 2
    assert card.session(*items, seconds=100, commit="c1").done == 0
    card.session(items[0], seconds=100, commit="unknown").run()
    assert card.session(*items, seconds=100, commit="unknown").done == 0


def test_a_row_that_fails_is_written_and_measured_again(card) -> None:
    items = [(WAN, "broken"), (WAN, "2")]
    assert card.session(*items, seconds=100).run() == 1
    assert card.rows()[0]["error"] == "RuntimeError: no such kernel"
    assert card.ran == [f"{WAN} 2"]
    assert card.session(*items, seconds=100).done == 1


def test_a_model_that_does_not_fit_into_memory_is_left_at_once(card, monkeypatch) -> None:
    session = card.session((WAN, "2"), (WAN, "3"), (HUNYUAN, "1"), seconds=100)

    def refuse(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(session.models[WAN], "subject", refuse)
    assert session.run() == 1
    assert [row.get("error") for row in card.rows()] == [
        "OutOfMemoryError: CUDA out of memory.",
        None,
    ]
    assert card.ran == [f"{HUNYUAN} 1"]


def test_without_a_gpu_it_says_what_it_would_do(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--results", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert lines[-1].endswith("sees no GPU: this is what it would do on an H200")
    measured = {tuple(line.split()[:2]) for line in lines[3:]}
    wanted = {("call", name) for name in MODELS} | {("plan", WAN), ("plan", HUNYUAN)}
    wanted |= {("plan", WAN_SMALL), ("policy", WAN), ("policy", HUNYUAN), ("attention", WAN)}
    assert {(name, part) for part, name in wanted} <= measured
    total = next(line for line in lines if line.startswith("in all"))
    assert "of 540 s" in total and int(total.split()[-2]) <= 540
    assert not list(tmp_path.iterdir())


def test_options_choose_models_parts_plans_and_seconds(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = [
        "--models",
        WAN,
        "--parts",
        "plan",
        "policy",
        "--presets",
        "paper",
        "--seconds",
        "50",
    ]
    assert gpu.main([*options, "--policies", "DiCache"]) == 0
    _, _, _, plan, total, left_out, *_ = capsys.readouterr().err.splitlines()
    assert plan.split()[:3] == [WAN, "plan", "paper"] and "of 50 s" in total
    assert left_out.startswith(f"left out: {WAN} policy: DiCache")
    with pytest.raises(SystemExit):
        gpu.main(["--presets", "papers"])


def test_a_full_call_of_720p_has_12_petaflop_and_one_of_540p_4() -> None:
    found = {name: spec.flops() / 1e15 for name, spec in MODELS.items()}
    expected = {WAN_SMALL: 0.283, WAN: 1.68, HUNYUAN: 4.28, HUNYUAN_LARGE: 12.1}
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", TOYS)
def test_flops_are_those_of_the_blocks_by_torchs_count(name: str) -> None:
    """Without the modulation, which is of one vector: nothing at full size."""
    subject = TOYS[name].subject(name, CPU)
    with FlopCounterMode(display=False, depth=9) as counter, sdpa_kernel(SDPBackend.MATH):
        subject.call()
    blocks = "|".join(subject.planned.fingerprint.block_lists)
    pattern = rf"\w+\.({blocks})\.\d+(\.img_mod|\.txt_mod|\.modulation)?"
    found = 0
    for key, counts in counter.get_flop_counts().items():
        if match := re.fullmatch(pattern, key):
            found += sum(counts.values()) * (-1 if match[2] else 1)
    assert TOYS[name].flops() == found


def test_the_loops_of_all_plans_follow_from_a_bare_call_and_one_reuse() -> None:
    """20 of 60 blocks reused: 4 s instead of 10 s for a third of the blocks, 18 s for all."""
    release = load_preset("hunyuan-video-t2v-720p", "release")
    total = loop_seconds(release, run=10.0, reuse=4.0, share=2 / 3)
    around = 10.0 - 3 * 6.0  # what stands around the blocks, here less than nothing
    assert total == pytest.approx(50 * around + 18.0 * block_runs(release) / 60)
    balanced = load_preset("wan2.1-t2v-14B", "balanced")
    assert loop_seconds(balanced, 10.0, 4.0, 0.5) == 10.0 * 2 * len(balanced.solver_steps)
    corrected = load_preset("hunyuan-video-t2v-720p", "balanced")
    assert loop_seconds(corrected, 10.0, 4.0, 0.5) == pytest.approx(10.0 * 25)


def test_every_kernel_at_hand_is_timed_and_the_others_are_named() -> None:
    subject = TOYS[WAN].subject(WAN, CPU)
    row = AttentionKernels(subject).row(1, CPU)
    assert row["shape"] == (1, 8, 2, 24)
    assert {"chosen", "torch SDPA, Flash"} <= set(row["seconds"])
    assert row["did_not_run"]["flash-attn 3"].startswith("ModuleNotFoundError")
    assert row["chosen_ran"].startswith("aten::")  # the longest: which one depends on the load
    assert len(row["seconds"]) + len(row["did_not_run"]) == 6


def test_torch_numpy_and_pydantic_alone_make_a_toy_row(tmp_path) -> None:
    options = ["--toy", "--models", HUNYUAN, "--parts", "call", "--results", str(tmp_path)]
    command = [sys.executable, "-c", ALONE, *options, "--commit", "c0"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (row,) = map(json.loads, (tmp_path / "gpu.jsonl").read_text().splitlines())
    assert row["commit"] == "c0" and row["seconds"].keys() == {"run", "keep", "reuse"}
    assert [loop["plan"] for loop in row["loops"]] == list(timing.PLANS)

"""When one of several processes fails: all end soon, that one says why, no file stays."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from forked import launched
from profiling_core.errors import ParallelError, PlanError
from profiling_core.parallel.degrees import Degrees, choose_degrees
from profiling_core.parallel.launch import fingerprint
from profiling_core.parallel.ranks import local_device
from profiling_core.plan.regrid import SPEEDUPS
from profiling_core.plan.restrict import plan_of_both
from profiling_core.profile.profile import Profile
from profiling_core.runtime import exit_codes as endings
from profiling_core.runtime.options import resolve_plan
from profiling_core.runtime.terminal import printable
from torchrun import torchrun
from tree_paths import ROOT
from wan_toys import write_language_model

FAILURES = ROOT / "tests" / "lib" / "parallel_failures.py"
SAYS = {
    "plan": "error: the processes were not given the same plan: 'balanced (sha256 ",
    "raise": "error: this rank has had enough",
    "kill": "SIGKILL",
}
SOON = 60.0  # seconds, imports and loading included, on a machine with other work


@pytest.mark.slow
@pytest.mark.parametrize("way", SAYS)
def test_one_failing_process_ends_all(tmp_path: Path, way: str) -> None:
    target = tmp_path / "clip.mp4"
    start = time.monotonic()
    result = torchrun(2, FAILURES, way, str(target))
    said = re.findall(r"^.*(error: .*)", result.stderr, flags=re.M)
    assert result.returncode != 0 and time.monotonic() - start < SOON
    assert SAYS[way] in (said[0] if way != "kill" else result.stderr)
    assert len(said) == (way != "kill"), said  # nobody else complains
    if way != "kill":  # torchrun's report ends with it
        assert said[0] in "".join(result.stderr.splitlines()[-2:])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_launch_without_degrees_and_seed_chooses_both_once_records_and_extends_its_prompt(
    tmp_path: Path,
) -> None:
    """The first process draws the seed and extends the prompt, for all."""
    target = tmp_path / "clip.mp4"
    write_language_model(tmp_path / "clip.mp4.qwen")
    first, _ = launched(2, FAILURES, "whole", target)
    assert target.stat().st_size
    (line,) = re.findall("2 processes share the clip.*", first.out)
    chosen = "--cfg_size 2 (two guidance branches), --ulysses_size 1 (divides the 2 heads)"
    assert line.endswith(f"chosen for them: {chosen}, --ring_size 1 (the rest)")
    (seed,) = re.findall(r"drew base_seed (\d+)", first.out)
    (run,) = Profile.load(tmp_path / "clip.mp4.profile").runs
    assert str(run.seed) == seed
    prompts = [Path(f"{target}.{rank}").read_bytes().decode() for rank in (0, 1)]
    assert prompts[0] == prompts[1] and len(prompts[0]) > len("red circle")
    (line,) = re.findall("extended prompt: (.*)", first.out)
    assert line == printable(prompts[0])


@pytest.mark.slow
def test_hunyuans_script_on_two_processes_writes_one_clip(tmp_path: Path) -> None:
    clip = ["--model", "HYVideo-mini", "--video-length", "5", "--infer-steps", "4"]
    clip += ["--prompt", "red circle", "--save-path", str(tmp_path), "--delta_cache"]
    first, second = launched(2, ROOT / "HunyuanVideo" / "sample_video.py", *clip)
    assert "2 processes share the clip" in first.out and not second.out
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


NAMES = ("--u", "--r", "--c")


@pytest.mark.parametrize(
    ("world", "given", "heads", "branches", "degrees", "line"),
    [
        (1, (None, None, None), 40, 2, Degrees(), ""),
        (2, (None, None, None), 40, 2, Degrees(cfg=2), "--c 2 (two guidance branches), --u 1"),
        (2, (None, None, None), 24, 1, Degrees(2), "--c 1 (one guidance branch), --u 2 (divides"),
        (8, (None, None, None), 40, 2, Degrees(4, 1, 2), "--u 4 (divides the 40 heads), --r 1"),
        (16, (None, None, None), 12, 2, Degrees(4, 2, 2), "12 heads), --r 2 (the rest)"),
        (3, (None, None, None), 2, 2, Degrees(1, 3), "--c 1 (no pairs of processes), --u 1"),
        (8, (2, None, None), 40, 2, Degrees(2, 2, 2), "for them: --c 2 (two guidance branches), -"),
        (8, (None, None, 1), 40, 2, Degrees(8), "for them: --u 8 (divides the 40 heads), --r 1"),
        (8, (8, None, None), 40, 2, Degrees(8), ""),
        (8, (2, 2, 2), 40, 2, Degrees(2, 2, 2), ""),
    ],
)
def test_degrees_that_are_not_given_are_chosen_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    world: int,
    given: tuple[int | None, ...],
    heads: int,
    branches: int,
    degrees: Degrees,
    line: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    found, said = choose_degrees(dict(zip(NAMES, given, strict=True)), heads, branches)
    assert found == degrees and found.world == world
    assert line in said and bool(said) is bool(line)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            (2, 3, 1),
            "--u 2 x --r 3 x --c 1 = 6 processes, but this run has 8: leave the degrees ou",
        ),
        ((3, None, None), "--u 3 = 3 processes, but this run has 8"),
        ((4, 1, 1), "--u 4 x --r 1 x --c 1 = 4 processes, but this run has 8"),
        ((None, 1, 1), "--u 4 x --r 1 x --c 1 = 4 processes, but this run has 8"),
        ((8, None, None), "--u 8 does not divide the model's 4 heads: take one of 1, 2, 4"),
        ((2, 0, 1), "--r 0 is no number of processes"),
        ((1, 1, 3), "--c 3: there are two guidance branches"),
    ],
)
def test_degrees_that_are_given_and_do_not_fit_are_errors(
    monkeypatch: pytest.MonkeyPatch, given: tuple[int | None, ...], says: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ParallelError) as caught:
        choose_degrees(dict(zip(NAMES, given, strict=True)), heads=4, branches=2)
    assert str(caught.value).startswith(says)


def test_a_local_rank_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ParallelError, match="local rank 2 has no GPU: this machine has 2"):
        local_device()


@pytest.mark.parametrize("preset", SPEEDUPS)
def test_a_plan_of_both_branches_skips_as_each_did(preset: str) -> None:
    plan = resolve_plan(preset, "wan2.1-t2v-mini")
    both = plan_of_both(plan)
    assert both.branches == ("cond",) and both.solver_steps == plan.solver_steps
    assert 2 * both.expected.block_runs == plan.expected.block_runs
    assert both.expected.predicted_error == plan.expected.predicted_error
    assert plan_of_both(both) is both


def test_a_plan_that_treats_the_branches_apart_is_refused() -> None:
    document = resolve_plan("release", "wan2.1-t2v-mini").model_dump(mode="json", exclude_none=True)
    document.pop("expected")
    document["sites"][0]["compute_steps"]["uncond"] = [0, 5]
    plan = type(resolve_plan("release", "wan2.1-t2v-mini")).from_dict(document)
    with pytest.raises(PlanError, match="treats cond and uncond differently"):
        plan_of_both(plan)


def test_files_are_told_apart_by_their_headers(tmp_path: Path) -> None:
    one, other = tmp_path / "a", tmp_path / "b" / "a"
    other.parent.mkdir()
    one.write_bytes(b"x" * 100)
    other.write_bytes(b"x" * 100)
    assert fingerprint(one) == fingerprint(other)
    other.write_bytes(b"x" * 99 + b"y")
    assert fingerprint(one) != fingerprint(other)


def test_an_echo_waits_and_one_process_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(endings.time, "sleep", slept.append)
    lost = RuntimeError("[gloo] Connection closed by peer")
    monkeypatch.setenv("WORLD_SIZE", "1")
    endings.wait_for_turn(lost)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, error in (("0", ValueError("x")), ("1", ValueError("x")), ("0", lost)):
        monkeypatch.setenv("RANK", rank)
        endings.wait_for_turn(error)
    assert slept == [endings.TURN, endings.ECHO]
    assert not endings.is_echo(ValueError("NCCL"))

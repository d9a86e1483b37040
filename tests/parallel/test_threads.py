"""Threads: every entry sets how they wait and how many there are, before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loguru import logger

from profiling_core.parallel import degrees
from profiling_core.parallel.degrees import thread_count, thread_settings, usable_cpus
from profiling_core.parallel.ranks import local_device
from profiling_core.runtime.command_line import init_logging
from tree_paths import ROOT

NAMES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")
LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
REPORTS = f"""
import json, os, sys
sys.stderr.write("seen " + json.dumps([os.getenv(name) for name in {NAMES}]))
os._exit(7)
"""  # what stands in for torch
CLIP = ("--prompt", "red circle")
ENTRIES = {
    "wan": (ROOT / "Wan2.1" / "generate.py", "--task", "t2v-mini", *CLIP),
    "hunyuan": (ROOT / "HunyuanVideo" / "sample_video.py", "--model", "HYVideo-mini", *CLIP),
    "demo": (ROOT / "examples" / "demo.py",),
    "batch": ("-m", "profiling_core", "batch", ROOT / "examples" / "jobs.jsonl", "--out", "out"),
}
DRAWN = ROOT / "miniatures" / "clips.py"  # needs no torch
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for folder in ("benchmarks", "miniatures")
    for path in (ROOT / folder).rglob("*.py")
    if path != DRAWN and "__main__" in path.read_text(encoding="utf-8")
)


def at_import(folder: Path, *command: object, **environment: str) -> list[str | None]:
    """Both variables as torch finds them when this command imports it."""
    (folder / "torch.py").write_text(REPORTS)
    path = os.pathsep.join(map(str, (folder, ROOT)))
    inherited = {k: v for k, v in os.environ.items() if k not in (*NAMES, *LAUNCH)}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**inherited, "PYTHONPATH": path, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    return json.loads(done.stderr.rpartition("seen ")[2])


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_waits_passively_before_torch_is_imported(tmp_path: Path, entry: str) -> None:
    waiting, _ = at_import(tmp_path, *ENTRIES[entry])
    assert waiting == "PASSIVE"


@pytest.mark.parametrize("module", MODULES)
def test_every_benchmark_and_training_waits_passively(tmp_path: Path, module: str) -> None:
    waiting, _ = at_import(tmp_path, "-m", module)
    assert waiting == "PASSIVE"


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    given = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3"}
    assert at_import(tmp_path, *ENTRIES["wan"], **given) == ["ACTIVE", "3"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """16 CPUs, and the file of a container's limit; nothing in the environment."""
    for name in (*NAMES, *LAUNCH):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(degrees, "_visible_cpus", lambda: 16)
    monkeypatch.setattr(degrees, "CPU_LIMIT", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


def test_processes_of_a_launch_share_the_cpus(machine: Path, monkeypatch) -> None:
    assert thread_settings() == {"OMP_WAIT_POLICY": "PASSIVE"}  # torch counts the same
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "OMP_NUM_THREADS" not in thread_settings()  # left over from another launch
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert thread_settings()["OMP_NUM_THREADS"] == "4"
    assert thread_settings(cpus=0.5)["OMP_NUM_THREADS"] == "1"  # a batch worker's


def test_a_container_s_limit_counts(machine: Path, monkeypatch) -> None:
    machine.write_text("max 100000\n")
    assert usable_cpus() == 16
    machine.write_text("250000 100000\n")
    assert usable_cpus() == 2 and thread_settings()["OMP_NUM_THREADS"] == "2"
    machine.write_text("50000 100000\n")
    assert usable_cpus() == 1


def test_the_count_of_the_environment_wins(machine: Path, monkeypatch) -> None:
    assert (thread_count(), thread_count(8)) == (16, 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert (thread_count(), thread_count(8)) == (3, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert thread_count(8) == 8


def test_a_left_over_rank_changes_nothing_for_a_single_process(
    machine: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device().index == 0
    monkeypatch.setenv("RANK", "3")
    init_logging()
    logger.info("heard")
    monkeypatch.setenv("WORLD_SIZE", "4")
    init_logging()
    logger.info("not the first of four")
    assert [line[22:] for line in capsys.readouterr().out.splitlines()] == ["INFO: heard"]

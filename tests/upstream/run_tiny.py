"""Run a patched checkout's own command on tiny random models, and check it against a naive walk.

    python tests/upstream/run_tiny.py ../Wan2.1
    python tests/upstream/run_tiny.py ../HunyuanVideo

The checkout is copied and the copy patched. Its generate.py or sample_video.py then runs on the CPU
in fp32, with its own pipelines, loops, schedulers and transformers, and with stand-ins for text
encoders, VAE and attention kernel (stand_ins.py). For every task and family of plans the result
must equal, bit for bit, the unpatched command with the blocks' forwards replaced by a second
implementation (naive_walk.py). Needs this project's environment; exit code 1 where
something differs.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from loguru import logger

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "patches"))

import anchors
import stand_ins
from anchors import load_upstreams
from profiling_core.errors import PlanError, ProfileError
from profiling_core.profile.profile import Profile
from profiling_core.search.search import Budget, PlanSearch
from tiny_upstreams import FAMILIES, TinyHunyuan, TinyRun, TinyWan
from trees import apply, read_tree


def check_task(run: TinyRun, task: str, say: Callable[[str], None]) -> int:
    """Every family on one task: the number of those that differ."""
    options, wrong = run.tasks[task], 0
    full = run.run(options)
    grid = run.grid(options)
    for family in FAMILIES:
        plan = run.plan(family, grid)
        found = run.by_plan(plan, options)
        expected = full if family == "all compute" else run.naively(plan, options)
        same, moved = torch.equal(found, expected), not torch.equal(found, full)
        good = same and (moved or family == "all compute") and torch.equal(run.run(options), full)
        good &= not any(run.vae.alive)
        wrong += not good
        say(f"{'ok   ' if good else 'WRONG'} {run.name} {task}: {family}")
    wrong += check_presets(run, options, full, say, task)
    wrong += check_profile(run, options, full, say, task)
    wrong += check_early(run, options, say, task)
    return wrong


def check_presets(
    run: TinyRun, options: list[str], full: torch.Tensor, say: Callable[[str], None], task: str
) -> int:
    """Named plans run and change something; nothing is held when the VAE decodes."""
    wrong = 0
    for preset in ("paper", "release", "balanced"):
        found = run.run([*options, "--delta_cache", preset])
        good = bool(found.isfinite().all()) and found.shape == full.shape
        wrong += not good
        say(f"{'ok   ' if good else 'WRONG'} {run.name} {task}: --delta_cache {preset}")
    return wrong


def check_profile(
    run: TinyRun, options: list[str], full: torch.Tensor, say: Callable[[str], None], task: str
) -> int:
    """A profile is recorded without a change, and a plan that is searched on it runs."""
    path = run.folder / f"{len(list(run.folder.glob('*.profile')))}.profile"
    if task == "rising levels":
        return check_refused(run, [*options, "--delta_profile", str(path)], say, task)
    found = run.run([*options, "--delta_profile", str(path)])
    search = PlanSearch(Profile.load(path))
    plan = search.plan(Budget(speedup=2.0))
    plan.save(run.folder / "searched.json")
    cached = run.run([*options, "--delta_cache", str(run.folder / "searched.json")])
    good = torch.equal(found, full) and not torch.equal(cached, full)
    say(f"{'ok   ' if good else 'WRONG'} {run.name} {task}: --delta_profile, search, run")
    return int(not good)


def check_refused(run: TinyRun, options: list[str], say: Callable[[str], None], task: str) -> int:
    """Noise is not recorded."""
    try:
        run.run(options)
    except ProfileError:
        say(f"ok    {run.name} {task}: --delta_profile refused")
        return 0
    say(f"WRONG {run.name} {task}: --delta_profile of noise")
    return 1


def check_early(run: TinyRun, options: list[str], say: Callable[[str], None], task: str) -> int:
    """A plan that is not there ends the command before a model is built."""
    run.model, good = None, False
    try:
        run.run([*options, "--delta_cache", "nowhere.json"])
    except PlanError:
        good = run.model is None
    say(f"{'ok   ' if good else 'WRONG'} {run.name} {task}: a plan that is not there")
    return int(not good)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="top directory of a checkout")
    parser.add_argument("--tasks", nargs="+", default=None, help="default: all")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    logger.remove()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary, stand_ins.missing_packages():
        copy = Path(temporary) / "checkout"
        shutil.copytree(
            args.folder, copy, ignore=shutil.ignore_patterns(".git", "assets", "examples")
        )
        tree = read_tree(copy, load_upstreams(Path(anchors.__file__).parent))
        if tree.untouched:
            apply(tree)
        sys.path.insert(0, str(copy))
        run = {"Wan2.1": TinyWan, "HunyuanVideo": TinyHunyuan}[tree.upstream.name](copy)
        say = lambda line: sys.stdout.write(f"{line}\n")  # noqa: E731
        wrong = sum(check_task(run, task, say) for task in args.tasks or run.tasks)
    say(f"{run.name}: {'everything as it should be' if not wrong else f'{wrong} WRONG'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

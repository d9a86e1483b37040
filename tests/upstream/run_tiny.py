"""Run a patched checkout's own command on tiny random models, and check it against a naive walk.

    python tests/upstream/run_tiny.py ../Wan2.1
    python tests/upstream/run_tiny.py ../HunyuanVideo

Wan2.2 and HunyuanVideo-I2V likewise. The checkout is copied and the copy patched. Its script then
runs on the CPU in fp32, with its own pipelines, loops, schedulers and transformers, and with
stand-ins for text encoders, VAE and attention kernel (stand_ins.py). For every task, family of
plans and preset the result must equal, bit for bit, the unpatched command with the blocks' forwards
replaced by a second implementation (naive_walk.py), and call attention as often as that one.
Needs this project's environment; exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from loguru import logger

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "patches"))

import anchors
import stand_ins
from anchors import load_upstreams
from profiling_core.errors import PlanError, ProfileError
from profiling_core.loops import official_repos
from profiling_core.plan import CachePlan
from profiling_core.plan.regrid import SPEEDUPS
from profiling_core.profile.profile import Profile
from profiling_core.search.search import Budget, PlanSearch
from tiny_upstreams import FAMILIES, TinyHunyuan, TinyHunyuanI2V, TinyRun, TinyWan, TinyWan22
from trees import apply, read_tree

RUNS = (TinyWan, TinyWan22, TinyHunyuan, TinyHunyuanI2V)


def check_task(run: TinyRun, task: str) -> Iterator[tuple[str, bool]]:
    """What is checked on one task, and whether it holds."""
    options = run.tasks[task]
    full = run.run(options)
    blocks = run.attended
    grid = run.grid(options)
    for family in FAMILIES:
        good = as_planned(run, options, run.plan(family, grid))
        yield family, good and torch.equal(run.run(options), full)
    for preset in ("paper", "release", *SPEEDUPS):
        good = as_planned(run, options, preset)
        fewer = blocks / run.attended
        good &= fewer >= 0.85 * SPEEDUPS.get(preset, 1.2)
        yield f"--delta_cache {preset}, 1/{fewer:.2f} of the attention", good
    if task in run.unrecorded:
        recording = [*options, "--delta_profile", str(run.folder / "noise.profile")]
        yield "--delta_profile refused", ends_with(ProfileError, "", run, recording)
    else:
        yield "--delta_profile, search, run", recorded(run, options, full)
    missing = [*options, "--delta_cache", "nowhere.json"]
    good = ends_with(PlanError, "nowhere.json", run, missing) and not run.models
    yield "a plan that is not there", good
    with mock.patch.object(official_repos, "_run_by"):  # as if the pipeline came from elsewhere
        good = ends_with(PlanError, "no run went by it", run, [*options, "--delta_cache"])
    yield "a plan that is not used", good


def as_planned(run: TinyRun, options: list[str], plan: CachePlan | str) -> bool:
    """A run by a plan is the naive walk: in its result, in what it computes; no anchor is left."""
    found = run.by_plan(plan, options)
    attended, held = run.attended, any(run.vae.alive)
    assert run.plan_used is not None
    expected = run.naively(run.plan_used, options)
    return torch.equal(found, expected) and attended == run.attended and not held


def recorded(run: TinyRun, options: list[str], full: torch.Tensor) -> bool:
    """A profile is recorded without a change, and a plan that is searched on it runs."""
    path = run.folder / f"{len(list(run.folder.glob('*.profile')))}.profile"
    found = run.run([*options, "--delta_profile", str(path)])
    plan = PlanSearch(Profile.load(path)).plan(Budget(speedup=2.0))
    return torch.equal(found, full) and as_planned(run, options, plan)


def ends_with(error: type[Exception], said: str, run: TinyRun, options: list[str]) -> bool:
    """The command ends with this error."""
    try:
        run.run(options)
    except error as raised:
        return said in str(raised)
    return False


def check_refused(run: TinyRun, task: str) -> Iterator[tuple[str, bool]]:
    """No plan is served for this task, and no model is built."""
    good = ends_with(PlanError, "--task", run, [*run.refused[task], "--delta_cache"])
    yield "refused", good and not run.models


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
        run = next(one for one in RUNS if one.name == tree.upstream.name)(copy)
        wrong = 0
        for task in args.tasks or (*run.tasks, *run.refused):
            check = check_task if task in run.tasks else check_refused
            for what, good in check(run, task):
                wrong += not good
                sys.stdout.write(f"{'ok   ' if good else 'WRONG'} {run.name} {task}: {what}\n")
    end = "everything as it should be" if not wrong else f"{wrong} WRONG"
    sys.stdout.write(f"{run.name}: {end}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The two command-line options, shared by both trees, and what their values mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import overload

from profiling_core.errors import PlanError
from profiling_core.files import check_writable
from profiling_core.plan import CachePlan
from profiling_core.plan.presets import available, load_preset
from profiling_core.plan.regrid import SPEEDUPS
from profiling_core.profile.profile import Profile

DEFAULT_PRESET = "paper"
OURS = ("balanced", *(name for name in SPEEDUPS if name != "balanced"))  # the default first


def add_delta_options(parser: argparse.ArgumentParser) -> None:
    """Add `--delta_cache [PLAN]` and `--delta_profile FILE`."""
    parser.add_argument(
        "--delta_cache",
        nargs="?",
        const=DEFAULT_PRESET,
        default=None,
        metavar="PLAN",
        help="reuse features as planned: a preset (paper, release; quality, balanced, fast) or a "
        "plan file; alone it means 'paper', the published method. Absent: no caching.",
    )
    parser.add_argument(
        "--delta_profile",
        default=None,
        metavar="FILE",
        help="record what this full run does into a profile, from which plans are made; further "
        "runs (other prompts, other seeds) into the same file are added to it.",
    )


def check_profile_target(args: argparse.Namespace, clip: Path | None = None) -> None:
    """UserError for a `--delta_profile` that cannot work, before anything is loaded.

    clip: the file that the run saves.
    """
    if args.delta_profile is None:
        return
    if args.delta_cache is not None:
        raise PlanError(
            f"--delta_profile {args.delta_profile} with --delta_cache {args.delta_cache}: a "
            "profile needs a full run, leave one of the two out"
        )
    path = Path(args.delta_profile)
    check_writable(path, "--delta_profile")
    profile, saved = (Path(os.path.realpath(p)) for p in (path, clip or os.devnull))
    if profile in (saved, *saved.parents) or saved in profile.parents:
        raise PlanError(f"--delta_profile {path} and the clip {clip} exclude each other: name two")
    if path.exists():
        Profile.load(path)


def pointer_to_ours() -> str:
    """A line for the log of a run with the paper's plan: which others there are, how fast."""
    ours = ", ".join(f"--delta_cache {name} {SPEEDUPS[name]:g}x" for name in OURS)
    return (
        f"this is the paper's plan; ours, by block FLOPs: {ours}; on the bundled miniatures they "
        "stay nearer to the full run (docs/research/shipped-plans.md)"
    )


@overload
def resolve_plan(value: str, model: str) -> CachePlan: ...


@overload
def resolve_plan(value: None, model: str) -> None: ...


def resolve_plan(value: str | None, model: str) -> CachePlan | None:
    """The plan that `--delta_cache value` names for `model`; PlanError names what is wrong.

    A preset's name wins over a file of the same name in the working directory; write ./name for
    the file.
    """
    if value is None:
        return None
    if value in available(model):
        return load_preset(model, value)
    if value.endswith(".json") or "/" in value or os.path.exists(value):
        return CachePlan.load(value)
    return load_preset(model, value)  # raises, with the names that exist

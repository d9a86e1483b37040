"""The cache's one command-line option, shared by both trees, and what its value means."""

from __future__ import annotations

import argparse
import os

from profiling_core.plan import CachePlan
from profiling_core.presets import available, load_preset

DEFAULT_PRESET = "paper"


def add_delta_cache_option(parser: argparse.ArgumentParser) -> None:
    """Add `--delta_cache [PLAN]`: alone the paper's plan, else a preset or a plan file."""
    parser.add_argument(
        "--delta_cache",
        nargs="?",
        const=DEFAULT_PRESET,
        default=None,
        metavar="PLAN",
        help="reuse features as planned: a preset (paper, release, balanced) or a plan file; "
        "alone it means 'paper', the published method. Absent: no caching.",
    )


def resolve_plan(value: str | None, model: str) -> CachePlan | None:
    """The plan that `--delta_cache value` names for `model`; PlanError says what is wrong.

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

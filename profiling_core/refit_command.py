"""`python -m profiling_core plan --refit`: its option, passes on the real model, what they gave."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from profiling_core.plan import CachePlan, PlanError

if TYPE_CHECKING:
    from profiling_core.search import Budget, PlanSearch, Point

PASSES = 2


def add_refit_option(search: argparse._ArgumentGroup) -> None:
    """Add --refit to the options of a search."""
    search.add_argument(
        "--refit",
        type=int,
        nargs="?",
        const=PASSES,
        metavar="PASSES",
        help="fit forecast weights along cached runs of the profile's prompts: one run of each a "
        f"pass, and two to compare with ({PASSES} passes where no number is given)",
    )


def check_refit(passes: int | None) -> None:
    """PlanError for a number of passes that is none."""
    if passes is not None and passes < 1:
        raise PlanError(f"--refit {passes}: expected at least 1 pass")


def refit_plan(
    search: PlanSearch, point: Point, plan: CachePlan, budget: Budget, args: argparse.Namespace
) -> tuple[CachePlan, list[str]]:
    """The best of the plan and its refits as measured on the profile's prompts; how all fared."""
    from profiling_core.compare.command import tree_class
    from profiling_core.refit import clips_of, forms, refit, steps_of, with_facts
    from profiling_core.validation import asked_for

    profile = search.profile
    passes = forms(search, point, budget)[: args.refit]
    tree, asked = asked_for(profile, args.ckpt_dir, args.dit_weight)
    model = tree_class(tree)(asked, profile.runs[0].prompt)
    with model.at_work():
        model.load()
        clips = clips_of(profile, model, steps_of(passes), _tell)
        found = refit(clips, plan, passes, _tell)
    best, start = found[0], next(one for one in found if one.plan is plan)
    lines = ["measured  worst run  plan"]
    lines += [f"{one.error:>8.4f}  {one.errors.max():>9.4f}  {one.words}" for one in found]
    lines += [f"predicted before the refit {point.error:.4f}", ""]
    facts = {
        "refit": best.words,
        "refit_passes": len(passes),
        "measured_error": best.error,
        "measured_error_before": start.error,
    }
    return with_facts(best.plan, plan.name, **facts), lines


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")

"""`python -m profiling_core plan --refit`: its option, passes on the real model, what they gave.

Also which model `--refit` and `--validate` load: that of the profile.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from profiling_core.errors import PlanError, ProfileError
from profiling_core.plan import CachePlan
from profiling_core.profile.profile import Profile
from profiling_core.trees.registry import tree_class
from profiling_core.trees.tree_model import ModelRequest

if TYPE_CHECKING:
    from profiling_core.search.search import Budget, PlanSearch, Point

PASSES = 2
TREES = {"wan2.1": "wan", "hunyuan-video": "hunyuan"}
STRIDE = 8  # pixels of a latent's row or column, on both trees
FRAMES = 4  # frames of a latent's


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
    # here: torch takes seconds to import
    from profiling_core.refit.refit import clips_of, forms, refit, steps_of, with_facts

    profile = search.profile
    passes = forms(search, point, budget)[: args.refit]
    tree, request = asked_for(profile, args.ckpt_dir, args.dit_weight)
    model = tree_class(tree)(request, profile.runs[0].prompt)
    with model.loaded():
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


def asked_for(
    profile: Profile, ckpt_dir: str | None, dit_weight: str | None
) -> tuple[str, ModelRequest]:
    """The tree ("wan", "hunyuan") and what its command line is asked for: the profile's run."""
    subject, guidance = profile.recorded, {run.guidance for run in profile.runs}
    if len(guidance) > 1:
        raise ProfileError(f"the profile's runs have several guidance scales: {sorted(guidance)}")
    family, name = subject.model.family, subject.model.name
    if family not in TREES:
        raise PlanError(f"--validate: {family!r} is no tree of this project: {', '.join(TREES)}")
    _, frames, rows, columns = subject.latent
    tree, solver = TREES[family], subject.solver if family == "wan2.1" else None
    return tree, ModelRequest(
        model=_model(tree, name),
        ckpt_dir=ckpt_dir,
        dit_weight=dit_weight,
        size=f"{columns * STRIDE}*{rows * STRIDE}",
        frame_num=(frames - 1) * FRAMES + 1,
        steps=subject.steps,
        solver=solver,
        shift=subject.shift,
        guidance=guidance.pop(),
    )


def _model(tree: str, name: str) -> str:
    """The tree's word for the model of a fingerprint."""
    if tree == "wan":  # wan2.1-t2v-14B is t2v-14B
        return name.removeprefix("wan2.1-")
    return "HYVideo-mini" if re.search("mini$", name) else "HYVideo-T/2-cfgdistill"


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")

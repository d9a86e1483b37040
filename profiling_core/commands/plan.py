"""`profiling-dit plan`: a plan from a profile, by search or by the paper's method.

The best of a search can be refitted: with forecast weights fitted along cached runs of the
profile's prompts (--refit). That loads the model of the profile.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from profiling_core.commands.arguments import (
    add_log_options,
    add_overwrite_option,
    at_least,
    bytes_of,
    check_new,
    log,
    words_of,
)
from profiling_core.commands.report.frontier import (
    check_frontier,
    frontier_lines,
    save_frontier,
)
from profiling_core.errors import PlanError, ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.describe import picture, summary_lines
from profiling_core.plan.schema import Storage, StoragePlace
from profiling_core.profile.profile import Profile, holds_profile, load_profile
from profiling_core.refit import PASSES
from profiling_core.search.paper_method import BLOCKS, PATTERNS, paper_plan
from profiling_core.search.resample import on_grid
from profiling_core.search.search import Budget, PlanSearch, Point, undominated
from profiling_core.trees.registry import tree_class
from profiling_core.trees.tree_model import ModelRequest, TreeModel

STORE_OPTIONS = {"store": "storage", "store_on": "storage_place"}  # and the plan's fields
OWN_OPTIONS = {  # of one method alone, as fields of the parsed arguments
    "search": (
        *("speedup", "max_error", "max_bytes", "frontier", "modes"),
        *("refit", "ckpt_dir", "dit_weight"),
        *("for_steps", "for_shift", "for_solver"),
    ),
    "paper": ("share", "blocks", "pattern", "warmup", "tmax", "tmin"),
}
TREES = {"wan2.1": "wan", "hunyuan-video": "hunyuan"}
STRIDE = 8  # pixels of a latent's row or column, on both trees
FRAMES = 4  # frames of a latent's


def add_plan_command(commands: Any) -> None:
    """Add `plan` to the subcommands of the parser."""
    one = commands.add_parser(
        "plan",
        help="make a plan from a profile",
        usage="%(prog)s --profile FILE -o PLAN (--speedup X | --max-error E | --max-bytes B | "
        "--method paper) ...",
    )
    one.set_defaults(run=make_plan)
    _add_files(one.add_argument_group("input and output"))
    _add_budget(one.add_argument_group("budget"))
    _add_modes(one.add_argument_group("what may be reused"))
    _add_measured(one.add_argument_group("measured on the model, with the profile's prompts"))
    _add_grid(one.add_argument_group("another grid than the profile's"))
    _add_paper(one.add_argument_group("the paper's method"))
    _add_store(one.add_argument_group("anchors: what a reuse step needs of earlier ones"))


def make_plan(args: argparse.Namespace) -> list[str]:
    """Plan from a profile into a file; what it costs and its picture."""
    out = Path(args.out)
    if holds_profile(out):
        raise PlanError(f"-o {out}: this is a profile, expected a plan file to write")
    method = _method(args)
    check_new(out, "-o", args)
    if method == "search":
        _budget(args)
        _frontier(args)
    plan, more = METHODS[method](load_profile(args.profile), args)
    plan.save(out)
    return [
        *summary_lines(plan),
        "",
        *picture(plan),
        "",
        *more,
        f"wrote {out}: run it with --delta_cache {out.absolute()}",
    ]


def _method(args: argparse.Namespace) -> str:
    """The method that was named, or the one whose options were given; PlanError for a mixture."""
    given = {
        method: [name for name in names if getattr(args, name) is not None]
        for method, names in OWN_OPTIONS.items()
    }
    method = args.method or ("paper" if given["paper"] else "search")
    for other, names in given.items():
        if names and other != method:
            option = f"--{names[0].replace('_', '-')}"
            raise PlanError(f"{option} belongs to --method {other}, not {method}")
    return method


# -- the methods


def _paper(profile: Profile, args: argparse.Namespace) -> tuple[CachePlan, list[str]]:
    """The paper's plan, or a row of its ablation tables."""
    names = ("name", *OWN_OPTIONS["paper"])
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return paper_plan(profile, **given, **_stored(args)), []


def _search(profile: Profile, args: argparse.Namespace) -> tuple[CachePlan, list[str]]:
    """A searched plan, and the frontier that it lies on."""
    drawn, budget = _frontier(args), _budget(args)
    profile = on_grid(profile, args.for_steps, args.for_shift, args.for_solver)
    search = PlanSearch(profile, words_of(args.modes), **_stored(args))
    plan, chosen = search.plan(budget, args.name), search.point(budget)
    lines: list[str] = []
    if args.refit is not None:
        plan, lines = _refitted(search, chosen, plan, budget, args)
    points = _around(search, chosen)
    lines += [*frontier_lines(points, chosen), ""]
    if drawn is not None:
        plan.save(Path(args.out))  # a figure that fails does not cost it
        save_frontier(points, drawn, chosen)
        lines.append(f"wrote {drawn}")
    return plan, lines


Method = Callable[[Profile, argparse.Namespace], tuple[CachePlan, list[str]]]
METHODS: dict[str, Method] = {"search": _search, "paper": _paper}


def _budget(args: argparse.Namespace) -> Budget:
    return Budget(args.speedup, args.max_error, bytes_of(args.max_bytes))


def _frontier(args: argparse.Namespace) -> Path | None:
    """Where the frontier is drawn, if it can be drawn there."""
    if args.frontier is None:
        return None
    drawn = Path(args.frontier)
    check_frontier(drawn)
    check_new(drawn, "--frontier", args)
    if os.path.realpath(drawn) == os.path.realpath(args.out):
        raise PlanError(f"--frontier {drawn} is the plan's file: name another")
    return drawn


def _stored(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a plan that STORE_OPTIONS ask for."""
    asked = {field: getattr(args, name) for name, field in STORE_OPTIONS.items()}
    return {field: value for field, value in asked.items() if value is not None}


def _around(search: PlanSearch, chosen: Point) -> list[Point]:
    """The frontier, with the chosen point's own row."""
    count = len(chosen.steps)
    skips = search.skips_at(count, search.skips)
    points = [*search.frontier(), *(search.point_of(skip, count) for skip in skips)]
    others = [p for p in points if (p.skip, len(p.steps)) != (chosen.skip, count)]
    return [*dict.fromkeys(undominated(others)), chosen]


# -- measured on the model


def _refitted(
    search: PlanSearch, point: Point, plan: CachePlan, budget: Budget, args: argparse.Namespace
) -> tuple[CachePlan, list[str]]:
    """The best of the plan and its refits as measured on the profile's prompts; how all fared."""
    # here: torch takes seconds to import
    from profiling_core.refit.refit import forms, refit, rollouts_of, steps_of, with_facts

    profile = search.profile
    passes = forms(search, point, budget)[: args.refit]
    model = _model_of(profile, args)
    with model.loaded():
        rollouts = rollouts_of(profile, model, steps_of(passes), log.info)
        found = refit(rollouts, plan, passes, log.info)
    best, start = found[0], next(one for one in found if one.plan is plan)
    lines = ["measured  worst run  plan"]
    lines += [f"{one.error:>8.4f}  {one.errors.max():>9.4f}  {one.words}" for one in found]
    lines += [f"predicted before the refit {point.error:.4f}", ""]
    facts: dict[str, float | str] = {
        "refit": best.words,
        "refit_passes": len(passes),
        "measured_error": best.error,
        "measured_error_before": start.error,
    }
    return with_facts(best.plan, plan.name, **facts), lines


def _model_of(profile: Profile, args: argparse.Namespace) -> TreeModel:
    """The model that the profile was recorded with, for its clips; not loaded yet."""
    tree, request = request_of(profile, args.ckpt_dir, args.dit_weight)
    return tree_class(tree)(request, profile.runs[0].prompt)


def request_of(
    profile: Profile, ckpt_dir: str | None, dit_weight: str | None
) -> tuple[str, ModelRequest]:
    """The tree ("wan", "hunyuan") and  the request that repeats the profile's run."""
    subject, guidance = profile.recorded, {run.guidance for run in profile.runs}
    if len(guidance) > 1:
        raise ProfileError(
            f"the profile's runs have several guidance scales: {sorted(guidance, key=str)}"
        )
    family, name = subject.model.family, subject.model.name
    if family not in TREES:
        raise PlanError(f"--refit: {family!r} is no tree of this project: {', '.join(TREES)}")
    if re.search("-(i2v|flf2v)-", name):
        raise PlanError(
            f"--refit repeats the profile's clips, and a profile keeps no picture, which {name} "
            "needs: leave --refit out"
        )
    _, frames, rows, columns = subject.latent
    tree, solver = TREES[family], subject.solver if family == "wan2.1" else None
    return tree, ModelRequest(
        model=_name_in_tree(tree, name),
        ckpt_dir=ckpt_dir,
        dit_weight=dit_weight,
        size=f"{columns * STRIDE}*{rows * STRIDE}",
        frame_num=(frames - 1) * FRAMES + 1,
        steps=subject.steps,
        solver=solver,
        shift=subject.shift,
        guidance=guidance.pop(),
    )


def _name_in_tree(tree: str, name: str) -> str:
    """The tree's word for the model of a fingerprint."""
    if tree == "wan":  # wan2.1-t2v-14B is t2v-14B
        return name.removeprefix("wan2.1-")
    return "HYVideo-mini" if re.search("mini$", name) else "HYVideo-T/2-cfgdistill"


# -- options


def _add_files(group: Any) -> None:
    add = group.add_argument
    add("--profile", required=True, metavar="FILE", help="recorded by --delta_profile")
    add("-o", "--out", required=True, metavar="PLAN", help="plan file to write")
    add("--name", help="name of the plan (default: from its settings)")
    add("--method", choices=sorted(METHODS), help="default: by the options given, else search")
    add("--frontier", metavar="FILE", help="plot error against speed-up: .svg, .png")
    add_overwrite_option(group)
    add_log_options(group)


def _add_budget(group: Any) -> None:
    add = group.add_argument
    add("--speedup", type=float, metavar="X", help="block FLOPs, full over spent: 2.0")
    add("--max-error", type=float, metavar="E", help="largest predicted relative error: 0.02")
    add("--max-bytes", metavar="B", help="largest size of the anchors: 100MiB")


def _add_modes(group: Any) -> None:
    group.add_argument(
        "--modes",
        metavar="LIST",
        help="what a reuse step may do, of hold,linear,corrected,fitted,jump "
        "(default: all that the solver allows)",
    )


def _add_measured(group: Any) -> None:
    add = group.add_argument
    add(
        "--refit",
        type=at_least(1),
        nargs="?",
        const=PASSES,
        metavar="PASSES",
        help="fit forecast weights along cached runs: one run of each prompt a pass, and two to "
        f"compare with ({PASSES} passes where no number is given)",
    )
    add("--ckpt-dir", metavar="DIR", help="the model's weights")
    add("--dit-weight", metavar="PATH", help="the same, HunyuanVideo's transformer")


def _add_grid(group: Any) -> None:
    add = group.add_argument
    add("--for-steps", type=int, metavar="N", help="plan for this step count")
    add("--for-shift", type=float, metavar="X", help="plan for this shift")
    add("--for-solver", metavar="NAME", help="plan for this solver: unipc, dpm++")


def _add_paper(group: Any) -> None:
    add = group.add_argument
    add("--share", type=float, metavar="S", help="of background blocks: 0.6 (default: by Otsu)")
    add("--blocks", choices=BLOCKS, help="what is reused (default background)")
    add("--pattern", choices=tuple(PATTERNS), help="intervals shrink (default), grow or stay")
    add("--warmup", type=int, metavar="N", help="first steps, all computed (default: by L1)")
    add("--tmax", type=int, metavar="N", help="longest interval (default: 12 of 50 steps)")
    add("--tmin", type=int, metavar="N", help="shortest interval (default: by L1)")


def _add_store(group: Any) -> None:
    add = group.add_argument
    add(
        "--store",
        choices=get_args(Storage),
        help="their type: the stream's own (default), or bfloat16, half the bytes of fp32",
    )
    add(
        "--store-on",
        choices=get_args(StoragePlace),
        help="their memory: the device's (default), or the host's, pinned",
    )

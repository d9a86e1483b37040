"""`profiling-dit plan`: a plan from a profile, by search or by the paper's method."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from profiling_core.commands.arguments import (
    add_log_options,
    add_overwrite_option,
    bytes_of,
    check_new,
    words_of,
)
from profiling_core.commands.report.frontier import (
    check_frontier,
    frontier_lines,
    save_frontier,
)
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.describe import picture, summary_lines
from profiling_core.plan.schema import Storage, StoragePlace
from profiling_core.profile.profile import Profile, holds_profile, load_profile
from profiling_core.search.paper_method import BLOCKS, PATTERNS, paper_plan
from profiling_core.search.resample import on_grid
from profiling_core.search.search import Budget, PlanSearch, Point, undominated

STORE_OPTIONS = {"store": "storage", "store_on": "storage_place"}  # and the plan's fields
OWN_OPTIONS = {  # of one method alone, as fields of the parsed arguments
    "search": (
        *("speedup", "max_error", "max_bytes", "frontier", "modes"),
        *("for_steps", "for_shift", "for_solver"),
    ),
    "paper": ("share", "blocks", "pattern", "warmup", "tmax", "tmin"),
}


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
    points = _around(search, chosen)
    lines = [*frontier_lines(points, chosen), ""]
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

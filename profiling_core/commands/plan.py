"""`python -m profiling_core plan` by search: its options, the plan, validation, the frontier."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from profiling_core.commands.refit import add_refit_option, asked_for, check_refit, refit_plan
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.schema import Storage, StoragePlace
from profiling_core.profile.profile import Profile
from profiling_core.search.resample import on_grid
from profiling_core.trees.registry import tree_class

if TYPE_CHECKING:
    from profiling_core.search.search import Budget, PlanSearch, Point

GRID_OPTIONS = ("for_steps", "for_shift", "for_solver")
STORE_OPTIONS = {"store": "storage", "store_on": "storage_place"}  # and the plan's fields
SEARCH_OPTIONS = (
    "speedup",
    "max_error",
    "max_bytes",
    "skips",
    "validate",
    "refit",
    "ckpt_dir",
    "dit_weight",
    "frontier",
    *GRID_OPTIONS,
)


def add_search_options(one: argparse.ArgumentParser) -> None:
    """Add the budget and what belongs to it, SEARCH_OPTIONS, to the parser of `plan`."""
    search = one.add_argument_group("budget (search)")
    search.add_argument(
        "--speedup", type=float, metavar="X", help="full over spent block FLOPs, for example 2.0"
    )
    search.add_argument(
        "--max-error", type=float, metavar="E", help="largest predicted relative error: 0.02"
    )
    search.add_argument("--max-bytes", metavar="B", help="largest size of the anchors: 100MiB")
    search.add_argument(
        "--skips",
        metavar="LIST",
        help="ways to skip, of hold,linear,weights,corrected,jump (default: all)",
    )
    search.add_argument(
        "--validate",
        type=int,
        metavar="N",
        help="run the N best candidates on the profile's prompts and take the best of them",
    )
    add_refit_option(search)
    search.add_argument(
        "--ckpt_dir", metavar="DIR", help="for --validate and --refit: the model's weights"
    )
    search.add_argument("--dit-weight", metavar="PATH", help="the same, HunyuanVideo")
    search.add_argument(
        "--frontier", metavar="FILE", help="plot error against speed-up: .svg, .png"
    )
    _add_grid_options(one)


def _add_grid_options(one: argparse.ArgumentParser) -> None:
    grid = one.add_argument_group("another grid than the profile's (search)")
    grid.add_argument("--for-steps", type=int, metavar="N", help="plan for this step count")
    grid.add_argument("--for-shift", type=float, metavar="X", help="plan for this shift")
    grid.add_argument("--for-solver", metavar="NAME", help="plan for this solver: unipc, dpm++")


def spelled(name: str) -> str:
    """An option of `plan` as it is written on the command line, without its dashes."""
    return name if name == "ckpt_dir" else name.replace("_", "-")


def add_store_options(one: argparse.ArgumentParser) -> None:
    """Add STORE_OPTIONS, which every method has, to the parser of `plan`."""
    store = one.add_argument_group("anchors: what a reuse step needs of earlier ones (any method)")
    store.add_argument(
        "--store",
        choices=get_args(Storage),
        help="their type: the stream's own (default), or bfloat16, half the bytes of fp32",
    )
    store.add_argument(
        "--store-on",
        choices=get_args(StoragePlace),
        help="their memory: the device's (default), or the host's, pinned",
    )


def stored(args: argparse.Namespace) -> dict[str, str]:
    """The fields of a plan that STORE_OPTIONS ask for."""
    asked = {field: getattr(args, name) for name, field in STORE_OPTIONS.items()}
    return {field: value for field, value in asked.items() if value is not None}


def search_plan(profile: Profile, args: argparse.Namespace) -> tuple[CachePlan, list[str]]:
    """A searched plan, and the frontier that it lies on."""
    # here: matplotlib takes a second to import
    from profiling_core.commands.report.frontier import (
        check_frontier,
        frontier_lines,
        save_frontier,
    )
    from profiling_core.search.search import Budget, PlanSearch

    profile = on_grid(profile, args.for_steps, args.for_shift, args.for_solver)
    drawn = None if args.frontier is None else Path(args.frontier)
    if drawn is not None:
        check_frontier(drawn)
    check_refit(args.refit)
    budget = Budget(args.speedup, args.max_error, bytes_of(args.max_bytes))
    skips = None if args.skips is None else tuple(s.strip() for s in args.skips.split(","))
    search = PlanSearch(profile, skips, **stored(args))
    if args.validate is None:
        plan, chosen, more = search.plan(budget, args.name), search.point(budget), []
    else:
        plan, chosen, more = _validated(search, budget, args)
    if args.refit is not None:
        plan, refitted = refit_plan(search, chosen, plan, budget, args)
        more += refitted
    points = _around(search, chosen)
    lines = [*more, *frontier_lines(points, chosen), ""]
    if drawn is not None:
        save_frontier(points, drawn, chosen)
        lines.append(f"wrote {drawn}")
    return plan, lines


def _validated(
    search: PlanSearch, budget: Budget, args: argparse.Namespace
) -> tuple[CachePlan, Point, list[str]]:
    """The best of the candidates by real runs on the profile's prompts, and how all fared."""
    # here: torch takes seconds to import
    from profiling_core.refit.validation import validate

    if args.validate < 1:
        raise PlanError(f"--validate {args.validate}: expected at least 1 candidate")
    profile = search.profile
    tree, request = asked_for(profile, args.ckpt_dir, args.dit_weight)
    model = tree_class(tree)(request, profile.runs[0].prompt)
    points = search.candidates(budget, args.validate)
    plans = [search.plan_of(point, budget, f"candidate {n}") for n, point in enumerate(points)]
    with model.loaded():
        found = validate(profile, plans, model, lambda line: sys.stderr.write(f"{line}\n"))
    width = max(len("way to skip"), *(len(point.skip) for point in points))
    lines = [f"candidate  {'way to skip':<{width}}  predicted  measured  worst run"]
    for one in found:
        number = int(one.plan.name.removeprefix("candidate "))
        lines.append(
            f"{number:>9}  {points[number].skip:<{width}}  {points[number].error:>9.4f}  "
            f"{one.error:>8.4f}  {one.errors.max():>9.4f}"
        )
    best = points[int(found[0].plan.name.removeprefix("candidate "))]
    facts = {"validated": len(points), "measured_error": found[0].error}
    return search.plan_of(best, budget, args.name, **facts), best, [*lines, ""]


def _around(search: PlanSearch, chosen: Point) -> list[Point]:
    """The frontier, with the chosen point's own row."""
    points, count = search.frontier(), len(chosen.steps)
    if all(len(point.steps) != count for point in points):
        points += [search.point_of(skip, count) for skip in search.skips]
    same = (chosen.skip, count)
    return [chosen if (p.skip, len(p.steps)) == same else p for p in points]


def bytes_of(text: str | None) -> int | None:
    """Bytes of '100MiB', '0.5GB' or a plain number."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]i?)?B?", text.strip())
    if found is None:
        raise PlanError(f"--max-bytes {text!r}: expected bytes such as 100MiB, 0.5GB or 0")
    unit = found[2] or ""
    power = " KMGT".index(unit[0].upper()) if unit else 0
    return int(float(found[1]) * (1024 if unit.endswith("i") else 1000) ** power)

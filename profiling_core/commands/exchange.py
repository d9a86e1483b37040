"""`profiling-dit import` and `export`: steps of others as a plan, a plan in their formats."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from profiling_core.commands.arguments import (
    add_log_options,
    add_overwrite_option,
    at_least,
    check_new,
)
from profiling_core.commands.show import planned_model
from profiling_core.errors import InputError
from profiling_core.files import write_whole
from profiling_core.plan.describe import picture, summary_lines
from profiling_core.plan.exporters import TARGETS, export
from profiling_core.plan.plan import decoded, dumped, small_file
from profiling_core.plan.presets import plan_of_file, public_plan
from profiling_core.runtime.options import resolve_plan

log = logging.getLogger(__name__)


def add_import_command(commands: Any) -> None:
    """Add `import` to the subcommands of the parser."""
    one = commands.add_parser(
        "import", help="a public list of steps, or a file of another engine, as a plan that holds"
    )
    one.set_defaults(run=import_steps)
    one.add_argument(
        "name",
        help="a public list such as lemica-25 (a wrong one lists all), or a JSON file: steps, 0/1 "
        "mask, a schedule of SGLang, a config of cache-dit, lists of LightX2V, ratios of MagCache",
    )
    one.add_argument(
        "--model", default="wan2.1-t2v-14B", help="whose steps they are (default %(default)s)"
    )
    one.add_argument("--steps", type=at_least(1), help="steps of the run (default: the model's)")
    one.add_argument("--shift", type=float, help="of its noise levels (default: the model's)")
    one.add_argument("-o", "--out", required=True, metavar="PLAN", help="the plan file to write")
    add_overwrite_option(one)
    add_log_options(one)


def add_export_command(commands: Any) -> None:
    """Add `export` to the subcommands of the parser."""
    one = commands.add_parser("export", help="a plan's steps in the format of another engine")
    one.set_defaults(run=export_plan)
    one.add_argument("plan", help="a preset (balanced, fast, ...) or a plan file")
    one.add_argument("--to", required=True, choices=TARGETS, help="who reads it")
    one.add_argument("--model", default="wan2.1-t2v-14B", help="whose preset (default %(default)s)")
    one.add_argument(
        "--request", metavar="FILE", help="of sglang-dpcache: a schedule by SGLang for the request"
    )
    one.add_argument("-o", "--out", metavar="FILE", help="where to write it (default: shown)")
    add_overwrite_option(one)


def import_steps(args: argparse.Namespace) -> list[str]:
    """Write the steps as a plan; what it costs and its picture."""
    planned, out = planned_model(args.model), Path(args.out)
    if args.name.endswith(".json") or "/" in args.name:
        plan = plan_of_file(planned, Path(args.name), args.steps, args.shift)
    elif args.steps is not None or args.shift is not None:
        raise InputError("--steps and --shift are for files: a public list has a grid of its own")
    else:
        plan = public_plan(planned, args.name)
    check_new(out, "-o", args)
    plan.save(out)
    return [*summary_lines(plan), "", *picture(plan), "", f"wrote {out}"]


def export_plan(args: argparse.Namespace) -> list[str]:
    """Write or show the plan in another format; how it is used and what is lost goes to the log."""
    planned_model(args.model)
    request = None
    if args.request is not None:
        source = f"--request {args.request}"
        request = decoded(small_file(Path(args.request), source), source)
    plan = resolve_plan(args.plan, args.model)
    made = export(plan, args.to, file=args.out or "FILE", request=request)
    text = dumped(made.document)
    if args.out is not None:
        out = Path(args.out)
        check_new(out, "-o", args)
        write_whole(out, text.encode())
        text = f"wrote {out}"
    for note in made.notes:
        log.info(note)
    return text.splitlines()

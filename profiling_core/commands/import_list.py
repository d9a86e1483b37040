"""`profiling-dit import`: a public list of steps as a plan, to set beside your own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from profiling_core.commands.arguments import add_log_options, add_overwrite_option, check_new
from profiling_core.commands.show import planned_model
from profiling_core.plan.describe import picture, summary_lines
from profiling_core.plan.presets import public_plan


def add_import_command(commands: Any) -> None:
    """Add `import` to the subcommands of the parser."""
    one = commands.add_parser(
        "import", help="a public list of steps as a plan, held as published: a baseline"
    )
    one.set_defaults(run=import_list)
    one.add_argument("name", help="of the list, such as lemica-25; a wrong one lists all")
    one.add_argument(
        "--model", default="wan2.1-t2v-14B", help="whose list to take (default %(default)s)"
    )
    one.add_argument("-o", "--out", required=True, metavar="PLAN", help="the plan file to write")
    add_overwrite_option(one)
    add_log_options(one)


def import_list(args: argparse.Namespace) -> list[str]:
    """Write the list as a plan; what it costs and its picture."""
    plan, out = public_plan(planned_model(args.model), args.name), Path(args.out)
    check_new(out, "-o", args)
    plan.save(out)
    return [*summary_lines(plan), "", *picture(plan), "", f"wrote {out}"]

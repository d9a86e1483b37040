"""`profiling-dit check`: the first command on a new checkpoint or a new card."""

from __future__ import annotations

import argparse
import sysconfig
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from profiling_core.commands.arguments import add_log_options
from profiling_core.commands.check.report import Report, check_out
from profiling_core.commands.compare.command import add_model_options, request_of
from profiling_core.errors import InputError
from profiling_core.plan.presets import available, load_preset
from profiling_core.trees.registry import tree_class
from profiling_core.trees.tree_model import PACKAGE, TreeModel

PROMPT = "red circle moving right over blue stripes"
DESCRIPTION = """\
Looks at the machine, compares every file of the checkpoint with the model, says what memory is
needed and free, then runs two steps in full and calls of every preset: timed, and compared where
they have to agree. The report is one JSON file without paths, user and host, made to be sent to the
project; it is written also when a stage fails. Exit code 0: all is well.
"""


def add_check_command(commands: Any) -> None:
    """Add `check` to the subcommands of the parser."""
    one = commands.add_parser(
        "check",
        help="files, memory, speed and equal bits of your own model on this machine",
        description=DESCRIPTION,
    )
    one.set_defaults(run=check)
    add_model_options(
        one.add_argument_group("model and clip (defaults: those of the tree's command line)")
    )
    add = one.add_argument_group("check").add_argument
    add("--plans", nargs="+", metavar="PRESET", help="presets to run, default: all of the model")
    add("--files-only", action="store_true", help="load no weights: machine, files and memory")
    add(
        "--out",
        default="check.json",
        metavar="REPORT",
        help="the report, default %(default)s; a report of before is replaced",
    )
    add_log_options(one)


def check(args: argparse.Namespace) -> list[str]:
    """Every stage until one fails; InputError names the first fault, the report has all."""
    out = Path(args.out)
    check_out(out)
    model = tree_class(args.tree)(request_of(args), PROMPT, incomplete=True)
    presets = args.plans or available(model.plan_model)
    for preset in presets:
        load_preset(model.plan_model, preset)  # PlanError for a name that is none
    report = Report(out, _head(model), _folders(model), quiet=args.quiet)
    try:
        _stages(model, presets, report, files_only=args.files_only)
    except KeyboardInterrupt:
        report.say(f"wrote {out}, as far as the check came")
        raise
    if report.faults:
        report.say(f"wrote {out}")
        count = len(report.faults)
        raise InputError(
            f"{count} fault{'s' * (count > 1)} found, {out} names {'them' if count > 1 else 'it'}: "
            f"{report.faults[0]}"
        )
    return [f"wrote {out}: all is well"]


def _stages(model: TreeModel, presets: list[str], report: Report, *, files_only: bool) -> None:
    # torch takes seconds to import; a wrong argument is refused at once
    from profiling_core.commands.check.calls import check_model
    from profiling_core.commands.check.checkpoint import files, memory
    from profiling_core.commands.check.environment import environment

    for look in (environment, files, memory):
        with report.stage(look.__name__) as found:
            if look is memory:  # it counts the plan with the most anchors
                for preset in presets:
                    model.check_plan(load_preset(model.plan_model, preset))
            for line in look(model, found):
                report.note(line)
        if report.faults:
            return
    if files_only:
        return
    needed = sum(report.stages[-1]["needed_bytes"]["denoising"].values())
    with report.stage("model") as found:
        check_model(model, PROMPT, presets, needed, found, report.note)


def _head(model: TreeModel) -> dict[str, Any]:
    """What was asked for, and the tree's log from here on."""
    from loguru import logger

    log: list[str] = []
    logger.add(lambda line: log.append(line.rstrip()), level="INFO", format="{level}: {message}")
    return {
        "utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tree": model.name,
        "clip": model.describe(),
        "settings": model.settings,
        "log": log,
    }


def _folders(model: TreeModel) -> dict[Path, str]:
    """What the report writes for the folders that its texts may name."""
    return {
        model.checkpoint_dir: "CKPT",
        PACKAGE: "PROFILING-DIT",
        Path(sysconfig.get_path("purelib")): "PACKAGES",
        Path.cwd(): ".",
    }

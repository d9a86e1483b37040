"""profiling-dit: plan feature caching for a video model, and see what it saves and costs."""

from __future__ import annotations

import os
import sys

import profiling_core
from profiling_core.commands.arguments import Parser, install_hint, log_on_stderr, shown
from profiling_core.commands.batch.command import add_batch_command
from profiling_core.commands.compare.command import add_compare_command
from profiling_core.commands.plan import add_plan_command
from profiling_core.commands.profile import add_profile_command
from profiling_core.commands.report.command import add_report_command
from profiling_core.commands.show import add_presets_command, add_show_command
from profiling_core.errors import UserError
from profiling_core.parallel.degrees import thread_settings
from profiling_core.runtime.exit_codes import EXIT_INTERRUPTED, EXIT_USER_ERROR

COMMANDS = (
    add_show_command,
    add_profile_command,
    add_plan_command,
    add_report_command,
    add_compare_command,
    add_batch_command,
    add_presets_command,
)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 after one line on stderr for what the user can put right."""
    os.environ.update(thread_settings())  # before a command imports torch
    try:
        args = build_parser().parse_args(arguments)
        with log_on_stderr(args):
            lines = shown(args.run(args), args)
    except (UserError, OSError) as error:
        return _ended(f"error: {error}", EXIT_USER_ERROR)
    except ModuleNotFoundError as error:
        hint = install_hint(error)
        if hint is None:
            raise
        return _ended(f"error: {hint}", EXIT_USER_ERROR)
    except KeyboardInterrupt:
        return _ended("interrupted, no unfinished file is left", EXIT_INTERRUPTED)
    if lines:
        sys.stdout.write(_as_encoded("\n".join(lines) + "\n", sys.stdout.encoding))
    return 0


def build_parser() -> Parser:
    """The command line with all commands."""
    parser = Parser(prog="profiling-dit", description=__doc__)
    version = f"profiling-dit {profiling_core.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)
    for add_command in COMMANDS:
        add_command(commands)
    return parser


def _ended(line: str, code: int) -> int:
    sys.stderr.write(f"{line}\n")
    return code


def _as_encoded(text: str, encoding: str | None) -> str:
    """The text with escapes for what the terminal cannot write: prompts come from anywhere."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)

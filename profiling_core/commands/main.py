"""profiling-dit: plan feature caching for a video model, and see what it saves and costs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import profiling_core
from profiling_core.commands.app.command import add_app_command
from profiling_core.commands.arguments import Parser, install_hint, log_on_stderr, shown
from profiling_core.commands.batch.command import add_batch_command
from profiling_core.commands.check.command import add_check_command
from profiling_core.commands.compare.command import add_compare_command
from profiling_core.commands.exchange import add_export_command, add_import_command
from profiling_core.commands.plan import add_plan_command
from profiling_core.commands.profile import add_profile_command
from profiling_core.commands.report.command import add_report_command
from profiling_core.commands.show import add_presets_command, add_show_command
from profiling_core.errors import UserError
from profiling_core.parallel.degrees import thread_settings
from profiling_core.runtime.exit_codes import EXIT_INTERRUPTED, EXIT_UNREAD, EXIT_USER_ERROR
from profiling_core.runtime.terminal import printable, write_to

COMMANDS = (
    add_show_command,
    add_profile_command,
    add_plan_command,
    add_report_command,
    add_check_command,
    add_compare_command,
    add_batch_command,
    add_app_command,
    add_presets_command,
    add_import_command,
    add_export_command,
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
    except SystemExit:  # --help, --version
        write_to(sys.stdout, "")
        raise
    return write_lines(lines)


def write_lines(lines: Sequence[str]) -> int:
    """Print a command's result; the exit code."""
    failed = write_to(sys.stdout, "".join(f"{printable(line)}\n" for line in lines))
    if isinstance(failed, BrokenPipeError):  # nobody reads on: `show ... | head`
        return EXIT_UNREAD
    if failed is not None:
        return _ended(f"error: standard output: {failed.strerror}", EXIT_USER_ERROR)
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
    write_to(sys.stderr, f"{printable(line)}\n")
    return code

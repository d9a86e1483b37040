"""What both trees' scripts do around their run: parse, log, check the prompt, end in order."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from loguru import logger

from profiling_core.errors import InputError, UserError
from profiling_core.parallel.degrees import environment_int, thread_settings, world_size
from profiling_core.profile.profile import Profile
from profiling_core.runtime.exit_codes import end_on_sigterm, exit_code
from profiling_core.runtime.terminal import printable, write_to

LOG_FORMAT = "[{time:YYYY-MM-DD HH:mm:ss}] {level}: {message}"

Parsers = Callable[[], argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """argparse without the usage text: an error is one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def defaults_text(values: Iterable[tuple[str, Any]]) -> str:
    """'default 81, 1 for t2i-14B': help for an option whose default depends on the model.

    values: model and value, the default model first.
    """
    (_, first), *others = values
    return ", ".join(
        [f"default {first}", *(f"{value} for {name}" for name, value in others if value != first)]
    )


def warn_unused(args: argparse.Namespace, unused: dict[str, str], build: Parsers) -> None:
    """Warn of options that were given and change nothing; unused: option -> why."""
    parser = build()
    for option, reason in unused.items():
        name = option.lstrip("-").replace("-", "_")
        if getattr(args, name) != parser.get_default(name):
            logger.warning(f"{option} has no effect: {reason}")


def check_prompt(prompt: str) -> None:
    """InputError for a prompt that is empty or cannot be encoded."""
    if not prompt.strip():
        raise InputError("the prompt is empty: describe in --prompt what is to be seen")
    check_text(prompt)


def check_text(text: str) -> None:
    """InputError for text that holds half of a surrogate pair."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("the prompt is not valid UTF-8: give --prompt readable text")


def init_logging() -> None:
    """Rank 0 logs its work on standard output, other ranks log only what goes wrong.

    LOGURU_LEVEL=DEBUG in the environment shows more. A run goes on when its log is read no more.
    """
    first = world_size() == 1 or environment_int("RANK", 0) == 0  # a rank alone is a leftover
    debug = os.getenv("LOGURU_LEVEL") in ("DEBUG", "TRACE")
    level = ("DEBUG" if debug else "INFO") if first else "ERROR"
    logger.remove()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # prompts in an encoding that lacks their characters
            stream.reconfigure(errors="backslashreplace")
    logger.configure(patcher=_as_text)
    logger.add(_log, level=level, format=LOG_FORMAT)


def _as_text(record: Any) -> None:
    record["message"] = printable(record["message"])


def _log(line: str) -> None:
    write_to(sys.stdout, line)


def save_each(save: Callable[[], None], write_profile: Callable[[], Profile | None] | None) -> None:
    """Save the clip, then the recording of its run where there is one, also when the clip failed.

    InputError for what could not be saved.
    """
    failed = []
    try:
        save()
    except (UserError, OSError) as error:
        failed.append(str(error))
    try:
        profile = write_profile() if write_profile else None
        if profile is not None:
            logger.info(profile.last_run_line())
    except (UserError, OSError) as error:
        failed.append(str(error))
    if failed:
        raise InputError("; ".join(failed))


def run_main(
    build_parser: Parsers,
    run: Callable[[argparse.Namespace], None],
    argv: list[str] | None = None,
) -> int:
    """Run a script; the exit code is 0, 2 for a user error, 130 when interrupted."""
    os.environ.update(thread_settings())  # before `run` imports torch

    def run_command() -> None:
        init_logging()
        run(build_parser().parse_args(argv))

    return exit_code(run_command, (UserError, OSError))


def exit_script(main: Callable[[], int]) -> NoReturn:
    """End the process with main's code; SIGTERM and SIGHUP clean up first."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(ending, lambda number, _: sys.exit(128 + number))
    end_on_sigterm()
    try:
        sys.exit(main())
    finally:
        write_to(sys.stdout, "")

"""What the commands share: a parser with one-line errors and their common options, progress."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from benchmarks.lib.rows import TREES
from profiling_core.parallel.degrees import thread_count


class Parser(argparse.ArgumentParser):
    """A parser with the options that several scripts have; a default of None leaves one out."""

    def __init__(
        self,
        doc: str,
        *,
        prompts: int | None = None,
        budgets: tuple[float, ...] | None = None,
        rounds: int | None = None,
        parts: bool = False,
        out: str | None = None,
        table: bool = False,
    ) -> None:
        super().__init__(description=doc.splitlines()[0])
        add = self.add_argument
        add("--trees", nargs="+", choices=TREES, default=list(TREES))
        add("--threads", type=at_least(1), default=thread_count())
        if prompts is not None:
            add("--prompts", type=at_least(1), default=prompts, help="held-out prompts")
        if budgets is not None:
            add("--budgets", type=speedup, nargs="+", default=list(budgets))
        if rounds is not None:
            add(
                "--rounds", type=at_least(1), default=rounds, help="repetitions; the median is kept"
            )
        if parts:
            add("--part", type=at_least(0), default=0, help="number of this process")
            add("--parts", type=at_least(1), default=1)
        if out is not None:
            add("--out", type=Path, default=Path(out))
        if table:
            add("--table", action="store_true", help="from the rows alone, no runs")

    def error(self, message: str) -> NoReturn:
        """One line for a bad command line, as for other bad input."""
        self.exit(2, f"error: {message}\n")


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `least` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"found {text}, expected a whole number of at least {least}"
            )
        return int(text)

    return number


def speedup(text: str) -> float:
    """The type of an option that takes a speed-up."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 1 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}, expected a speed-up above 1, such as 2.0")
    return found


def log(line: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()

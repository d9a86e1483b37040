"""What the commands share: a parser with one-line errors and their common options, progress."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from benchmarks.lib.rows import TREES


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
        add("--threads", type=int, default=os.cpu_count() or 1)
        if prompts is not None:
            add("--prompts", type=int, default=prompts, help="held-out prompts")
        if budgets is not None:
            add("--budgets", type=float, nargs="+", default=list(budgets))
        if rounds is not None:
            add("--rounds", type=int, default=rounds, help="repetitions; the median is kept")
        if parts:
            add("--part", type=int, default=0, help="number of this process")
            add("--parts", type=int, default=1)
        if out is not None:
            add("--out", type=Path, default=Path(out))
        if table:
            add("--table", action="store_true", help="from the rows alone, no runs")

    def error(self, message: str) -> NoReturn:
        """One line for a bad command line, as for other bad input."""
        self.exit(2, f"error: {message}\n")


def log(line: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()

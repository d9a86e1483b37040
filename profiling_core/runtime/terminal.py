"""Text for whoever reads along: a terminal, a pipe that may close, a file; no torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

# control characters, line separators, changes of the writing direction, halves of a surrogate pair
RAW = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MakeBar = Callable[[int], Any]
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet computes


def printable(text: str) -> str:
    """One line of text, with escapes for what would steer a terminal: it comes from anywhere."""
    return RAW.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def csv_cell(value: Any) -> Any:
    """A value that a spreadsheet shows as it is; text that it would compute gets an apostrophe."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def write_to(stream: TextIO | None, text: str) -> OSError | None:
    """Write and flush; the error after which this and all later text of the stream is dropped."""
    if stream is None:  # closed by the caller
        return None
    try:
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as error:
        try:  # else the interpreter's own flush at the end would fail once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except OSError:
            pass
        return error
    return None


class Tenths:
    """A progress bar for a file: a line at each tenth."""

    def __init__(self, total: int) -> None:
        self.n, self._total, self._postfix = 0.0, total, ""

    def __enter__(self) -> Tenths:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        self._postfix = f", {s}"

    def update(self, n: float) -> None:
        from loguru import logger

        before, self.n = self.n, self.n + n
        if int(10 * self.n / self._total) > int(10 * before / self._total):
            logger.info(f"step {self.n:.0f} of {self._total}{self._postfix}")


def steps_bar(total: int, *, shown: bool | MakeBar) -> Any:
    """What shows the steps of a run: a bar on a terminal, lines in the log elsewhere.

    shown: or what makes another bar, a `Tenths`, for a number of steps.
    """
    from tqdm import tqdm

    if not isinstance(shown, bool):
        return shown(total)

    if shown and not (sys.stderr is not None and sys.stderr.isatty()):
        return Tenths(total)
    return tqdm(total=total, disable=not shown, unit="step")

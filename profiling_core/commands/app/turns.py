"""The line of those who want a run: one at a time, in the order of their coming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from profiling_core.errors import InputError


class Turn:
    """A place in the line. cancelled: its page wants the run no more."""

    def __init__(self, page: str) -> None:
        self.page, self.cancelled = page, False


class Turns:
    """The line; every page has a name, and stands in it once."""

    def __init__(self) -> None:
        self._line: list[Turn] = []
        self._changed = Condition()

    @contextmanager
    def joined(self, page: str) -> Iterator[Turn]:
        """Inside the block the page is in the line; InputError where it is already."""
        with self._changed:
            if self.of(page) is not None:
                raise InputError("a run of this page is under way: wait, or cancel it")
            turn = Turn(page)
            self._line.append(turn)
        try:
            yield turn
        finally:
            with self._changed:
                self._line.remove(turn)
                self._changed.notify_all()

    def of(self, page: str) -> Turn | None:
        return next((turn for turn in self._line if turn.page == page), None)

    def ahead(self, turn: Turn) -> int:
        """How many come before it."""
        return self._line.index(turn)

    def cancel(self, page: str) -> Turn | None:
        """The turn of the page, which is cancelled; None where it has none."""
        with self._changed:
            turn = self.of(page)
            if turn is not None:
                turn.cancelled = True
                self._changed.notify_all()
            return turn

    def wait(self, seconds: float) -> None:
        """Until somebody leaves or cancels, at most so long."""
        with self._changed:
            self._changed.wait(seconds)

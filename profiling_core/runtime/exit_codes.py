"""How the trees' commands end, alone or as several processes; no torch.

torchrun ends all processes when one has failed. What is left to do here: the rank that fails
first reports why, the others stay quiet, and no rank is left waiting in a collective.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from profiling_core.errors import DisagreementError
from profiling_core.runtime.terminal import printable, write_to

PATIENCE = 3.0  # seconds for an orderly end after SIGTERM; a blocked collective never sees it
REPORT = "TORCHELASTIC_ERROR_FILE"  # torchrun sets it for each process
TURN = 2.0  # seconds that a rank leaves to rank 0, which mostly has the same error
ECHO = 10.0  # seconds before the loss of another rank is reported: torchrun ends this one sooner
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")
EXIT_LOST = 1  # another process of the run
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141  # as of a program that SIGPIPE ended
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def exit_code(run: Callable[[], None], user_errors: tuple[type[Exception], ...]) -> int:
    """Run a command; 0, or one line on stderr: 2 for a user's error, 130 when interrupted."""
    try:
        run()
    except user_errors as error:
        wait_for_turn(error)
        _end_with(f"error: {' '.join(str(error).split())}")
        return EXIT_USER_ERROR
    except RuntimeError as error:
        if not is_echo(error):
            raise
        wait_for_turn(error)
        _end_with(f"error: another process of this run is gone ({error})")
        return EXIT_LOST
    except KeyboardInterrupt:
        _complain("interrupted, no unfinished file is left")
        return EXIT_INTERRUPTED
    return 0


def _complain(line: str) -> None:
    """Write to stderr; of several processes with the rank, and below a progress bar."""
    line = printable(line)
    text = f"\n{line} (rank {os.getenv('RANK', '?')})" if _several() else line
    write_to(sys.stderr, f"{text}\n")


def _end_with(error: str) -> None:
    """Leave an error to torchrun, whose report comes last; without one it goes to stderr."""
    if not (_several() and _reported(printable(error))):
        _complain(error)


def _reported(line: str) -> bool:
    """Write the line where torchrun looks for it; False where it is not the launcher."""
    path = os.getenv(REPORT)
    if path is None:
        return False
    said = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
    try:
        Path(path).write_text(json.dumps({"message": said}))
    except OSError:
        return False
    return True


def wait_for_turn(error: BaseException) -> None:
    """Wait before an error is reported: the rank that knows more goes first.

    Rank 0 reports at once. Others wait, so that an error of all ranks appears once: torchrun ends
    them meanwhile. A lost connection is the echo of another rank's failure and waits longest.
    """
    if not _several():
        return
    first = os.getenv("RANK", "0") == "0"
    if is_echo(error) or (isinstance(error, DisagreementError) and not first):
        time.sleep(ECHO)
    elif not first:
        time.sleep(TURN)


def is_echo(error: BaseException) -> bool:
    """Does this error mean that another rank is gone?"""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def end_on_sigterm() -> None:
    """Let SIGTERM end this process even while a collective blocks it.

    Python runs a signal's handler between two of its own instructions, and a process that waits for
    a lost rank never comes to one. The handler gets PATIENCE seconds to leave in order, as in a run
    of one process; then the process ends.
    """
    if not _several():
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    arguments = (reader, (signal.SIGTERM,), PATIENCE)
    threading.Thread(target=_watch, args=arguments, daemon=True).start()


class Interrupts:
    """Inside, SIGINT, SIGTERM and SIGHUP are one KeyboardInterrupt, then the process ends.

    It has `patience` seconds to leave in order. After them, or where a library waits and no handler
    runs, `last` is called and the process ends here. Signals that are ignored stay so (nohup).
    """

    number: int | None = None  # of the signal that came

    def __init__(self, patience: float, last: Callable[[], None]) -> None:
        self._patience, self._last = patience, last

    @property
    def exit_code(self) -> int:
        return 128 + (self.number or signal.SIGINT)

    def check(self) -> None:
        """Interrupt once more: an exception in a callback of another library is lost."""
        if self.number is not None:
            raise KeyboardInterrupt

    def __enter__(self) -> Interrupts:
        numbers = [n for n in ENDINGS if signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._came) for number in numbers}
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        arguments = (reader, numbers, self._patience, self._last)
        threading.Thread(target=_watch, args=arguments, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if self.number is None:
            os.close(signal.set_wakeup_fd(self._writer))  # this ends the watch

    def _came(self, number: int, frame: object) -> None:
        if self.number is None:  # a second one must not break the way out
            self.number = number
            raise KeyboardInterrupt


def _several() -> bool:
    count = os.getenv("WORLD_SIZE", "1")
    return count.isdecimal() and int(count) > 1


def _watch(
    reader: int,
    numbers: Sequence[int],
    patience: float,
    last: Callable[[], None] = lambda: None,
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # they are the main thread's, where it waits
    while (received := os.read(reader, 1)) and received[0] not in numbers:
        pass
    if not received:
        return
    time.sleep(patience)
    try:
        last()
    finally:
        os._exit(128 + received[0])

"""Scripts in forks of the tests' process: what they import is there, a new one needs seconds."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from tree_paths import ROOT

Run = Callable[[], object]
LONG = 600.0  # seconds, on a machine with other work


def script(*argv: object) -> Run:
    """What `python *argv` runs: a file or `-m` and a module, with their arguments."""
    words = [str(word) for word in argv]

    def run() -> None:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")

    return run


class Forked:
    """A fork that runs something and ends as Python would; what it prints goes to files."""

    def __init__(self, run: Run, cwd: Path = ROOT, **environment: str) -> None:
        self._streams = [tempfile.TemporaryFile("w+") for _ in range(2)]
        self.pid = os.fork()
        if not self.pid:
            self._child(run, cwd, environment)

    def _child(self, run: Run, cwd: Path, environment: dict[str, str]) -> NoReturn:
        code: object = 1
        try:
            for number, file in enumerate(self._streams, start=1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (open(n, "w", buffering=1) for n in (1, 2))
            os.chdir(cwd)
            os.environ.update(environment)
            run()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1)

    @property
    def out(self) -> str:
        return self._text(0)

    @property
    def err(self) -> str:
        return self._text(1)

    def _text(self, number: int) -> str:
        fd = self._streams[number].fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = LONG) -> int:
        """The exit code, below 0 for a signal; TimeoutError, and the end of it, where it hangs."""
        deadline = time.monotonic() + seconds
        while (found := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(self.err)
            time.sleep(0.02)
        return os.waitstatus_to_exitcode(found[1])


def launched(count: int, *argv: object) -> list[Forked]:
    """A script on as many ranks as torchrun would start, each ended without a fault."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    ranks = [
        Forked(script(*argv), RANK=str(rank), LOCAL_RANK=str(rank), **world)
        for rank in range(count)
    ]
    codes = [rank.wait() for rank in ranks]
    assert codes == [0] * count, [rank.err[-4000:] for rank in ranks]
    return ranks

"""The process that holds the model: one run at a time, each step reported, stopped between two."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from profiling_core.commands.batch.clips import Checker, Clip, Made, TreeMaker
from profiling_core.commands.batch.jobs import Job
from profiling_core.commands.report.drawing import svgs
from profiling_core.commands.report.markup import Markup
from profiling_core.commands.report.plan_picture import plan_figure
from profiling_core.errors import UserError
from profiling_core.files import first_line
from profiling_core.metrics import psnr
from profiling_core.plan.cost import speedup_flops
from profiling_core.runtime.terminal import Tenths
from profiling_core.trees.registry import tree_class

log = logging.getLogger("profiling_core.commands")


@dataclass(frozen=True)
class Asked:
    """A run. with_full: the same clip without its plan as well."""

    job: Job
    with_full: bool = False


@dataclass(frozen=True)
class At:
    """Where a run is. label: the plan's name, or "full"; part: as `TreeMaker.make` names them."""

    label: str
    part: str
    done: int = 0  # steps
    total: int = 0


@dataclass(frozen=True)
class Planned:
    """The plan of a run that begins: its picture, and its speed-up by block FLOPs."""

    picture: list[Markup]
    ideal: float


@dataclass(frozen=True)
class Finished:
    """A clip. psnr: dB of the planned clip against this full one."""

    label: str
    path: Path
    made: Made
    psnr: float | None = None


@dataclass(frozen=True)
class Ended:
    """The last event of a run. error: what was wrong; neither: all is done."""

    error: str | None = None
    cancelled: bool = False


Event = At | Planned | Finished | Ended


class Cancelled(Exception):
    """Raised inside a run when its page wants it no more."""


class Worker:
    """The process from the page's side; it starts with the first run."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._process: BaseProcess | None = None
        self._pipe: Connection
        self._part = ""
        self._busy = self._cancelled = False

    def run(self, asked: Asked) -> Iterator[Event]:
        """The events of a run; it is cancelled when the iterator is closed early."""
        while self._busy:  # the run of a page that was closed
            self._next()
        if self._process is None or not self._process.is_alive():
            self._start()
        self._busy, self._cancelled = True, False
        self._pipe.send(asked)
        try:
            while self._busy:
                yield self._next()
        finally:
            if self._busy:
                self.cancel()

    def cancel(self) -> None:
        """The run stops behind its step; while weights are loaded the process is ended."""
        if self._cancelled:
            return
        self._cancelled = True
        if self._part == "loading":
            self.stop()
        elif self._busy:
            self._pipe.send(None)

    def stop(self) -> None:
        """End the process; the next run starts another one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = theirs, self._out
        self._process = context.Process(target=serve_runs, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def _next(self) -> Event:
        try:
            event: Event = self._pipe.recv()
        except (EOFError, OSError):
            event = self._lost()
        self._part = event.part if isinstance(event, At) else ""
        self._busy = not isinstance(event, Ended)
        return event

    def _lost(self) -> Ended:
        self.stop()
        if self._cancelled:
            return Ended(cancelled=True)
        code = None if self._process is None else self._process.exitcode
        return Ended(
            f"the process that holds the model has ended (exit code {code}); did its memory run "
            "out? The next run starts another one"
        )


def serve_runs(pipe: Connection, out: Path) -> None:
    """The process: run what comes through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the page's, which closes the pipe
    runs = Runs(pipe, out)
    while True:
        try:
            asked = pipe.recv()
            if asked is not None:  # else a cancel that came late
                pipe.send(runs.run(asked))
        except (EOFError, BrokenPipeError):
            return


class Runs:
    """What the process keeps between runs: the model, and the last full clip."""

    def __init__(self, pipe: Connection, out: Path) -> None:
        self._pipe, self._out = pipe, out
        self._maker = TreeMaker()
        self._full: tuple[str, Finished, Any] | None = None

    def run(self, asked: Asked) -> Ended:
        """All of a run; its events go through the pipe, the last one is returned."""
        try:
            self._run(asked)
        except Cancelled:
            return Ended(cancelled=True)
        except (EOFError, BrokenPipeError):
            raise
        except (UserError, OSError) as error:
            return Ended(" ".join(str(error).split()))
        except Exception as error:
            log.exception("a run failed")
            return Ended(
                f"{type(error).__name__}: {first_line(error)}; the page's terminal has the rest"
            )
        return Ended()

    def _run(self, asked: Asked) -> None:
        self._report(At("", "checking"))
        checker = Checker()  # anew: files may have changed
        clip = checker.clip(asked.job)
        full = checker.clip(asked.job.model_copy(update={"plan": None}))
        if clip.plan is not None:
            model = tree_class(clip.job.tree)(clip.job.request, clip.job.prompt)
            plan = model.check_plan(clip.plan)  # on this run's noise levels
            picture = svgs(plan_figure(plan, "fig-plan"))
            self._pipe.send(Planned(picture, speedup_flops(plan)))
            finished, video = self._make(clip)
            self._pipe.send(finished)
        if clip.plan is None or asked.with_full:
            if self._full is None or self._full[0] != full.key or clip.plan is None:
                self._full = (full.key, *self._make(full))
            _, finished, reference = self._full
            decibels = None if clip.plan is None else psnr(video, reference)
            self._pipe.send(Finished(finished.label, finished.path, finished.made, decibels))

    def _make(self, clip: Clip) -> tuple[Finished, Any]:
        """The clip as a file and as an array (3, F, H, W)."""
        path, kept = self._out / f"{clip.stem}.mp4", []
        label = clip.plan_label

        def write(model: Any, video: Any) -> None:
            model.save(video, path)
            kept.append(video.numpy())

        made = self._maker.make(
            clip,
            write,
            begin=lambda part: self._report(At(label, part)),
            bar=lambda total: _Bar(
                total, lambda done: self._report(At(label, "sampling", done, total))
            ),
        )
        assert made is not None  # one process
        return Finished(label, path, made), kept[0]

    def _report(self, at: At) -> None:
        """Cancelled where the page has sent anything since the run began."""
        if self._pipe.poll():
            self._pipe.recv()
            raise Cancelled
        self._pipe.send(at)


class _Bar(Tenths):
    """Reports every step."""

    def __init__(self, total: int, report: Callable[[int], None]) -> None:
        super().__init__(total)
        self._report = report

    def update(self, n: float) -> None:
        self.n += n
        self._report(round(self.n))

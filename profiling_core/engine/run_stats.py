"""What a run computed, reused and held, how long it took, and what its progress bar shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from profiling_core.plan import CachePlan
from profiling_core.plan.describe import format_bytes
from profiling_core.plan.schema import Branch, StoragePlace


@dataclass
class RunStats:
    """One run: counts of what happened, and seconds of wall clock between synchronisations.

    The engine counts; a loop adds solver, steps, seed and seconds.
    """

    block_runs: int = 0
    block_runs_full: int = 0  # of the same run without a plan
    model_calls: int = 0  # that ran the model, over all branches
    reused_calls: int = 0  # that were answered without running it
    reused_intervals: int = 0
    peak_bytes: int = 0  # of anchors
    bytes_held: int = 0  # of anchors, now
    place: StoragePlace = "device"  # whose memory they lie in
    plan: str | None = None
    solver: str = ""
    steps: int = 0  # of the grid of noise levels
    solver_steps: int = 0  # of these the solver visited; fewer when a plan jumps
    seed: int | None = None
    encode_seconds: float = 0.0
    denoise_seconds: float = 0.0
    decode_seconds: float = 0.0

    def lines(self) -> list[str]:
        """For the log after the run."""
        lines = []
        if self.plan is not None:
            share = 100 * self.block_runs / max(1, self.block_runs_full)
            lines += [
                f"ran {self.block_runs} of {self.block_runs_full} blocks ({share:.1f} %), reused "
                f"{self.reused_intervals} interval deltas and {self.reused_calls} predictions",
                f"anchors: at most {format_bytes(self.peak_bytes)} of {self.place} memory, "
                f"now {format_bytes(self.bytes_held)}",
            ]
        if self.denoise_seconds:
            lines.append(
                f"denoising took {self.denoise_seconds:.2f} s: {self.solver_steps} solver steps, "
                f"{self.model_calls} model calls, {self.block_runs} of {self.block_runs_full} "
                "block runs"
            )
        return lines


class Run(Protocol):
    """What a denoising loop asks of a run: a FullRun, a DeltaCache, a Recorder, a PerturbedRun."""

    stats: RunStats

    @property
    def plan(self) -> CachePlan | None:
        """The plan that the run follows; None for a full run."""

    @property
    def steps(self) -> int:
        """Steps of the grid of noise levels."""

    @property
    def solver_steps(self) -> tuple[int, ...]:
        """The steps that the solver visits."""

    def attached(self, model: nn.Module) -> AbstractContextManager:
        """In front of the model inside a with block."""

    def begin(self, step: int, branch: Branch = "cond") -> None:
        """Set step and branch of the next model call."""

    def is_compute(self, step: int, branch: Branch = "cond") -> bool:
        """Do all blocks run at this step?"""


class Bar(Protocol):
    """The part of tqdm's bar that a run needs."""

    n: float

    def set_postfix_str(self, s: str, refresh: bool = True) -> None: ...
    def update(self, n: float) -> bool | None: ...


def shown_steps(run: Run, bar: Bar) -> Iterator[int]:
    """The steps that the solver visits; behind each the bar moves on.

    It shows the share of the grid's steps that were reused: those at which any block was, and those
    that the solver jumped.
    """
    computed = 0
    ends = (*run.solver_steps[1:], run.steps)
    for step, done in zip(run.solver_steps, ends, strict=True):
        yield step
        computed += run.is_compute(step)
        if run.plan is not None:
            bar.set_postfix_str(f"reused {1 - computed / done:.0%}", refresh=False)
        bar.update(done - bar.n)


@dataclass
class Seconds:
    """How long a with block took."""

    seconds: float = 0.0


@contextmanager
def timed(device: torch.device) -> Iterator[Seconds]:
    """Wall clock of the block, the device's work included."""
    taken = Seconds()
    _synchronize(device)
    start = time.perf_counter()
    try:
        yield taken
        _synchronize(device)  # not after an error, which it could replace by its own
    finally:
        taken.seconds = time.perf_counter() - start


def timed_call(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What a call gives, and its seconds: between two events on a GPU, of the host elsewhere."""
    _synchronize(device)
    if device.type != "cuda":
        start = time.perf_counter()
        return call(), time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    output = call()
    end.record()
    end.synchronize()
    return output, begin.elapsed_time(end) / 1000  # from milliseconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

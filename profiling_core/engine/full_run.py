"""A run without a plan, with the face of a DeltaCache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from profiling_core.engine.run_stats import RunStats
from profiling_core.plan.schema import Branch


class FullRun:
    """Every step is visited and computed. blocks: of one model call."""

    plan = None

    def __init__(self, steps: int, blocks: int) -> None:
        self.steps, self.blocks = steps, blocks
        self.stats = self.new_stats()

    @property
    def solver_steps(self) -> tuple[int, ...]:
        return tuple(range(self.steps))

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[FullRun]:
        """Nothing is put on the model; the counts start anew."""
        self.stats = self.new_stats()
        yield self

    def begin(self, step: int, branch: Branch = "cond") -> None:
        """Count the model call that follows."""
        self.count_call()

    def is_compute(self, step: int, branch: Branch = "cond") -> bool:
        return True

    def new_stats(self) -> RunStats:
        return RunStats(steps=self.steps, solver_steps=len(self.solver_steps))

    def count_call(self) -> None:
        """One more call of the whole model."""
        self.stats.model_calls += 1
        self.stats.block_runs += self.blocks
        self.stats.block_runs_full += self.blocks

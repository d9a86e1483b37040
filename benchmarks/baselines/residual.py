"""Whole-model residuals: a reused call skips the blocks and adds what they added before.

The residual is the image stream behind the last block minus the image stream before the first one
(HunyuanVideo: over both lists, the image tokens of the joint stream). Embeddings and head always
run. The decision falls where the first block would start, so that a rule may look at its input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from profiling_core.engine.anchors import tensors_of

from .base import BlockLists, Call, Rule

# leading arguments that a block updates and returns
STREAMS = {"blocks": 1, "double_blocks": 2, "single_blocks": 1}


class Entry:
    """A call that has reached the first block: `stream` (B, N, D), `args` and `kwargs` of it."""

    def __init__(self, call: Call, blocks: list[nn.Module], args: tuple, kwargs: dict) -> None:
        self.call, self.kwargs = call, kwargs
        self.start, self.args, self.waiting = args, args, blocks

    @property
    def stream(self) -> Tensor:
        """The image stream before the first block."""
        return self.start[0]

    def run(self, count: int | None = None) -> Tensor:
        """The image stream behind the next `count` blocks of the first list, or the rest of it."""
        count = len(self.waiting) if count is None else count
        running, self.waiting = self.waiting[:count], self.waiting[count:]
        self.args = run_blocks(running, self.args, self.kwargs)
        return self.args[0]


class Branch(ABC):
    """What a rule keeps of one guidance branch of a video, and what it decides there."""

    residual: Tensor | None = None

    @abstractmethod
    def reuses(self, step: int, entry: Entry) -> bool:
        """Is this call answered with the stored residual? Asked once per step, in order."""

    def forecast(self, entry: Entry) -> Tensor:
        """What to add to the entry's stream on a reused call."""
        return self.residual

    def keep(self, entry: Entry, residual: Tensor) -> None:
        """Take in the residual of a computed call."""
        self.residual = residual


class ResidualRule(Rule):
    """Asks the call's branch at the first block; then the blocks run, or the residual is added."""

    def __init__(self, branches: dict[str, Branch]) -> None:
        self.branches = branches
        self.call: Call | None = None
        self.entry: Entry | None = None
        self.reusing = False

    def answer(self, call: Call) -> Any:
        self.call = call
        try:
            return call.run()
        finally:
            self.call = self.entry = None

    def held(self) -> Iterable[Tensor]:
        return tensors_of([vars(branch) for branch in self.branches.values()])

    def walks(self, lists: BlockLists) -> dict[str, list[Callable[..., Any]]]:
        first, last = next(iter(lists)), next(reversed(lists))
        return {
            name: [partial(self._walk, name, blocks, name == first, name == last)]
            for name, blocks in lists.items()
        }

    def _walk(
        self,
        name: str,
        blocks: list[nn.Module],
        first: bool,
        last: bool,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """A whole block list, in place of its blocks."""
        if first:
            args = self._enter(Entry(self.call, blocks, args, kwargs))
        elif not self.reusing:
            args = run_blocks(blocks, args, kwargs)
        if last and not self.reusing:
            start = self.entry.stream
            self._branch.keep(self.entry, args[0][:, : start.shape[1]] - start)
        streams = args[: STREAMS[name]]
        return streams if len(streams) > 1 else streams[0]

    def _enter(self, entry: Entry) -> tuple[Any, ...]:
        self.entry = entry
        self.reusing = self._branch.reuses(self.call.step, entry)
        if self.reusing:
            self.reused_calls += 1
            return (entry.stream + self._branch.forecast(entry), *entry.start[1:])
        entry.run()
        return entry.args

    @property
    def _branch(self) -> Branch:
        return self.branches[self.call.branch]


def run_blocks(
    blocks: Iterable[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """The arguments behind the blocks: what a block returns are its leading ones, updated."""
    for block in blocks:
        updated = block(*args, **kwargs)
        updated = updated if isinstance(updated, tuple) else (updated,)
        args = (*updated, *args[len(updated) :])
    return args

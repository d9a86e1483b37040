"""Guidance-parallel: the conditional and the unconditional branch on groups of ranks of their own.

Every rank runs its group's branch, one all-gather of a latent gives all of them both predictions,
and solver and cache continue alike on every rank. To a cache the two are one prediction of one
call, as with batched guidance: a reuse step is forecast from both branches' anchors without
communication, and blocks keep deltas of one branch alone, half of what one group would hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from profiling_core.parallel.ranks import Ranks, all_gather


class BranchPair(nn.Module):
    """Calls the model for this group's branch; returns both predictions, (2, ...), cond first.

    prediction: the tensor in what the model returns.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, prediction: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.module, self._ranks, self._prediction = model, ranks, prediction

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        own = self._prediction(self.module(*args, **kwargs)).contiguous()
        both = own.new_empty((2, *own.shape))
        all_gather(both.flatten(0, 1), own, self._ranks.cfg)
        return both

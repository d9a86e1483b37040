"""Guidance-parallel: the conditional and the unconditional branch on groups of ranks of their own.

Every rank runs its group's branch, one all-gather of a latent gives all of them both predictions,
and solver and cache go on alike everywhere. To a cache the two are one prediction of one call, as
where guidance is batched: a reuse step is forecast from both branches' anchors without a word to
the other group, and blocks keep deltas of one branch alone, half of what one group would hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from profiling_core.parallel.degrees import ParallelError
from profiling_core.parallel.ranks import Ranks, all_gather
from profiling_core.plan import CachePlan


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


def plan_of_both(plan: CachePlan) -> CachePlan:
    """The plan with its branches as one; ParallelError when they do not skip alike."""
    if len(plan.branches) == 1:
        return plan
    document = plan.model_dump(mode="json", exclude_none=True)
    for site in document["sites"]:
        for name in ("compute_steps", "weights", "given"):
            if name not in site:
                continue
            first, *others = (site[name][branch] for branch in plan.branches)
            if any(other != first for other in others):
                raise ParallelError(
                    f"plan {plan.name!r} treats cond and uncond differently ({name}): with its "
                    "branches on different processes it would idle, leave --cfg_size out"
                )
            site[name] = {plan.branches[0]: first}
    expected = document.pop("expected", {})
    fields = {name: value for name, value in document.items() if name != "format"}
    merged = CachePlan.build(**fields, predicted_error=expected.get("predicted_error"))
    return merged.model_copy(update={"notes": plan.notes})

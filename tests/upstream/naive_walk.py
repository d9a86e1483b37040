"""A plan in a loop that is not ours, written a second time with no cleverness: forwards replaced.

Calls are counted to know the step; nothing is ever freed; sums are in the order that the engine
promises: input + newest + older.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from profiling_core.plan import CachePlan
from profiling_core.plan.schema import Site


class Calls:
    """Counts the calls of a model: (step, branch) of the one under way; first: its first step."""

    def __init__(self, branches: int, first: int = 0) -> None:
        self.branches, self.first, self.number = branches, first, -1

    @property
    def step(self) -> int:
        return self.first + self.number // self.branches

    @property
    def branch(self) -> int:
        return self.number % self.branches


@contextmanager
def naive(
    plan: CachePlan, model: nn.Module, lists: dict[str, str], branches: int, first: int = 0
) -> Iterator[None]:
    """Inside the with block the model runs by the plan; its anchors begin at `first`."""
    calls = Calls(branches, first)
    own = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.number += 1
        return answer(*args, **kwargs)

    answer: Callable[..., Any] = own
    changed = [model]
    for site in plan.sites:
        if site.kind == "prediction":
            answer = _forecast_outputs(plan, site, calls, own)
            continue
        blocks = getattr(model, lists[site.block_list])
        for start, stop in site.intervals:
            changed += _cached_interval(plan, site, calls, list(blocks)[start : stop + 1])
    model.forward = forward
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _forecast_outputs(plan: CachePlan, site: Site, calls: Calls, run: Callable) -> Callable:
    kept: dict[int, list[tuple[int, torch.Tensor]]] = {}

    def answer(*args: Any, **kwargs: Any) -> Any:
        anchors = kept.setdefault(calls.branch, [])
        if calls.step in _computed(site, calls):
            output = run(*args, **kwargs)
            named = isinstance(output, dict)  # upstream HunyuanVideo's
            anchors.append((calls.step, output["x"] if named else output[0]))
            return output
        forecast = _weighted(plan, site, calls.step, anchors, None)
        return {"x": forecast} if kwargs.get("return_dict") else (forecast,)

    return answer


def _cached_interval(
    plan: CachePlan, site: Site, calls: Calls, blocks: list[nn.Module]
) -> list[nn.Module]:
    kept: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = {}
    inputs: list[torch.Tensor] = []

    def forward_of(place: int, run: Callable) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = list(args) or [kwargs["hidden_states"], kwargs["encoder_hidden_states"]]
            if calls.step in _computed(site, calls):
                if place == 0:
                    inputs[:] = given
                output = run(*args, **kwargs)
                if place == len(blocks) - 1:
                    for index, tensor in enumerate(_tensors(output)):
                        anchors = kept.setdefault((calls.branch, index), [])
                        anchors.append((calls.step, tensor - inputs[index]))
                return output
            count = sum(branch == calls.branch for branch, _ in kept)
            if place:
                return given[0] if count == 1 else tuple(given[:count])
            summed = [
                _weighted(plan, site, calls.step, kept[calls.branch, index], given[index])
                for index in range(count)
            ]
            return summed[0] if count == 1 else tuple(summed)

        return forward

    for place, block in enumerate(blocks):
        block.forward = forward_of(place, block.forward)
    return blocks


def _computed(site: Site, calls: Calls) -> set[int]:
    return {calls.first, *site.compute_steps["cond"]}


def _tensors(output: Any) -> tuple[torch.Tensor, ...]:
    return (output,) if isinstance(output, torch.Tensor) else tuple(output)


def _weighted(
    plan: CachePlan,
    site: Site,
    step: int,
    anchors: list[tuple[int, torch.Tensor]],
    hidden: torch.Tensor | None,
) -> torch.Tensor:
    """hidden + what the last anchors say of this step."""
    (newest, last), older = anchors[-1], anchors[-2:-1]
    weights = [(last, 1.0)]
    if site.skip == "linear" and older:
        levels = plan.sigmas
        slope = (levels[step] - levels[newest]) / (levels[newest] - levels[older[0][0]])
        weights = [(last, 1.0 + slope), (older[0][1], -slope)]
    for tensor, weight in weights:
        if hidden is None:
            hidden = tensor * weight
        elif weight == 1.0:
            hidden = hidden + tensor
        else:
            hidden = torch.add(hidden, tensor, alpha=weight)
    return hidden

"""A plan written a second time with no cleverness: forwards are replaced, nothing is ever freed.

Calls are counted to know the step. Sums are in the order that the engine promises: input + newest
+ older; one anchor of weight 1 is added as it is, several are added in fp32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

from profiling_core.plan import CachePlan
from profiling_core.plan.schema import Site

Kept = list[tuple[int, torch.Tensor]]  # step and value, oldest first


class Calls:
    """Counts the calls of a model: (step, branch) of the one under way; first: its first step."""

    def __init__(self, plan: CachePlan, branches: int, first: int = 0) -> None:
        self.plan, self.branches, self.first, self.number = plan, branches, first, -1

    @property
    def step(self) -> int:
        return self.first + self.number // self.branches

    @property
    def branch(self) -> int:
        return self.number % self.branches

    def name(self, site: Site) -> str:
        names = list(site.compute_steps)
        return names[min(self.branch, len(names) - 1)]

    def computes(self, site: Site) -> bool:
        return self.step in {self.first, *site.compute_steps[self.name(site)]}

    def weights(self, site: Site, kept: Kept, step: int) -> list[float]:
        """Weights of the newest kept value, the one before it and so on, in a forecast."""
        if site.skip == "hold" or len(kept) < 2:
            return [1.0]
        share = self.share(step, kept[-2][0], kept[-1][0])
        return [share, 1.0 - share]

    def share(self, step: int, first: int, last: int) -> float:
        """How far `step` lies from `first` to `last` in log-SNR; all the way from sigma = 1."""
        if self.plan.sigmas[first] == 1:
            return 1.0
        here, a, b = (math.log(1 / self.plan.sigmas[number] - 1) for number in (step, first, last))
        return (here - a) / (b - a)

    def corrected(self, site: Site, kept: Kept) -> torch.Tensor:
        """The newest prediction and what the forecasts before it missed, over its own step."""
        levels, n, j = [*self.plan.sigmas, 0.0], kept[-1][0], kept[-2][0]
        factors = [0.0] * min(3, len(kept))  # of the predictions at n, j and the one before
        for s in range(j + 1, n):
            width = levels[s + 1] - levels[s]
            rise = self.share(s, j, n)
            factors[0] += width * rise
            factors[1] += width * (1.0 - rise)
            for place, weight in enumerate(self.weights(site, kept[:-1], s), start=1):
                factors[place] -= width * weight
        own = levels[n + 1] - levels[n]
        return _summed(None, kept, [1 + factors[0] / own, *(f / own for f in factors[1:])])


@contextmanager
def naive(
    plan: CachePlan, model: nn.Module, lists: dict[str, str], branches: int, first: int = 0
) -> Iterator[None]:
    """Inside the with block the model runs by the plan; its anchors begin at `first`."""
    calls = Calls(plan, branches, first)
    own = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.number += 1
        return answer(*args, **kwargs)

    answer: Callable[..., Any] = own
    changed = [model]
    for site in plan.sites:
        if site.kind == "prediction":
            answer = _forecast_outputs(site, calls, own)
            continue
        blocks = getattr(model, lists[site.block_list])
        for start, stop in site.intervals:
            changed += _cached_interval(site, calls, list(blocks)[start : stop + 1])
    model.forward = forward
    try:
        yield
    finally:
        for module in changed:
            del module.forward


@contextmanager
def weighing(scheduler: type, plan: CachePlan) -> Iterator[None]:
    """Inside the with block a scheduler class adds a fitted plan's weights to its own updates.

    The clean latents are kept here, apart from the scheduler's own.
    """
    clean: list[torch.Tensor] = []

    def change(back: int) -> torch.Tensor | float:
        return clean[-back] - clean[-back - 1] if len(clean) > back else 0.0

    def converted(plain: Callable, self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.step_index:
            clean.clear()
        clean.append(plain(self, *args, **kwargs))
        return clean[-1]

    def corrected(plain: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        c, d, _ = plan.solver_weights[len(clean) - 1]
        return plain(*args, **kwargs) + c * change(1) + d * change(2)

    def predicted(plain: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        return plain(*args, **kwargs) + plan.solver_weights[len(clean) - 1][2] * change(1)

    answers = {
        "convert_model_output": converted,
        "multistep_uni_c_bh_update": corrected,
        "multistep_uni_p_bh_update": predicted,
    }
    with ExitStack() as stack:
        for name, answer in answers.items() if plan.solver_weights else ():
            if hasattr(scheduler, name):
                changed = _bound(partial(answer, getattr(scheduler, name)))
                stack.enter_context(mock.patch.object(scheduler, name, changed))
        yield


def _bound(call: Callable) -> Callable:
    """A function, which a class binds to its objects."""
    return lambda *args, **kwargs: call(*args, **kwargs)


def _forecast_outputs(site: Site, calls: Calls, run: Callable) -> Callable:
    kept: dict[int, Kept] = {}
    named: list[bool] = []  # upstream HunyuanVideo's output has a name

    def wrapped(value: torch.Tensor, kwargs: dict) -> Any:
        return {"x": value} if named[-1] or kwargs.get("return_dict") else (value,)

    def answer(*args: Any, **kwargs: Any) -> Any:
        anchors = kept.setdefault(calls.branch, [])
        if not calls.computes(site):
            weights = calls.weights(site, anchors, calls.step)
            return wrapped(_summed(None, anchors, weights), kwargs)
        output = run(*args, **kwargs)
        named.append(isinstance(output, dict))
        anchors.append((calls.step, output["x"] if named[-1] else output[0]))
        gap = len(anchors) > 1 and anchors[-2][0] < calls.step - 1
        if site.skip == "corrected" and gap:
            return wrapped(calls.corrected(site, anchors), kwargs)
        return output

    return answer


def _cached_interval(site: Site, calls: Calls, blocks: list[nn.Module]) -> list[nn.Module]:
    kept: dict[tuple[int, int], Kept] = {}
    inputs: list[torch.Tensor] = []

    def forward_of(place: int, run: Callable) -> Callable:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = list(args) or [kwargs["hidden_states"], kwargs["encoder_hidden_states"]]
            if calls.computes(site):
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
            summed = []
            for index in range(count):
                anchors = kept[calls.branch, index]
                weights = calls.weights(site, anchors, calls.step)
                summed.append(_summed(given[index], anchors, weights))
            return summed[0] if count == 1 else tuple(summed)

        return forward

    for place, block in enumerate(blocks):
        block.forward = forward_of(place, block.forward)
    return blocks


def _tensors(output: Any) -> tuple[torch.Tensor, ...]:
    return (output,) if isinstance(output, torch.Tensor) else tuple(output)


def _summed(hidden: torch.Tensor | None, kept: Kept, weights: list[float]) -> torch.Tensor:
    """hidden + the newest kept values by their weights."""
    newest = kept[-1][1]
    if weights == [1.0]:
        return newest if hidden is None else hidden + newest
    total = None if hidden is None else hidden.float()
    for (_, tensor), weight in zip(kept[::-1], weights, strict=False):
        total = tensor.float() * weight if total is None else total.add(tensor, alpha=weight)
    return total.to(newest.dtype)

"""The block-list seam: a store per interval, and the walk that runs, keeps or reuses blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from profiling_core.anchors import Anchor, forecast_delta, keep
from profiling_core.cost import anchor_lifetimes
from profiling_core.plan import CachePlan, Site

CACHE, WALK = "_delta_cache", "_delta_walk"  # keys in the instance dicts of model and list


@dataclass(frozen=True)
class Schedule:
    """One site and branch, resolved: what each step does, what it needs, what dies after it."""

    computes: frozenset[int]
    forecasts: dict[int, tuple[tuple[int, float], ...]]
    last_use: dict[int, int]  # anchor step -> last step that reuses it

    @classmethod
    def of(cls, plan: CachePlan, site: Site, branch: str) -> Schedule:
        return cls(
            plan.computes(site, branch),
            plan.forecasts(site, branch),
            anchor_lifetimes(plan, site, branch),
        )


@dataclass
class Store:
    """The anchors of one site element: an interval, or the prediction."""

    label: str
    schedules: dict[str, Schedule]
    anchors: dict[tuple[str, int], Anchor] = field(default_factory=dict)

    def needed(self, branch: str, step: int) -> list[tuple[Anchor, float]]:
        """Anchors and weights of a reuse step; ValueError when one was never computed."""
        found = []
        for anchor_step, weight in self.schedules[branch].forecasts[step]:
            anchor = self.anchors.get((branch, anchor_step))
            if anchor is None:
                raise ValueError(
                    f"{self.label}, {branch}: step {step} reuses step {anchor_step}, which was not "
                    "computed in this video: visit the steps in order from 0, each once"
                )
            found.append((anchor, weight))
        return found

    def drop_after(self, branch: str, step: int) -> None:
        """Free the anchors that no later step needs."""
        last_use = self.schedules[branch].last_use
        for key in [k for k in self.anchors if k[0] == branch and last_use[k[1]] <= step]:
            del self.anchors[key]


class BlockWalk:
    """The walk over one block list while a call of the model is under way."""

    def __init__(self, name: str, blocks: nn.ModuleList, plan: CachePlan) -> None:
        self.name, self.blocks, self.plan = name, blocks, plan
        self.stores: dict[tuple[int, int], Store] = {}
        self.position: tuple[int, str] | None = None
        self.inputs: tuple[Any, ...] | None = None  # of the interval that is being computed
        self.walks = self.runs = self.reused = 0

    def start(self, step: int, branch: str) -> None:
        self.position = (step, branch)
        self.inputs = None
        self.walks = self.runs = self.reused = 0

    def check_walked(self) -> None:
        if self.walks != 1:
            raise ValueError(
                f"the model walked over its {self.name} {self.walks} times in one call instead of "
                "once: intervals need a plain loop `for block in list` in its forward"
            )

    def callables(self, blocks: list[nn.Module]) -> list[Callable[..., Any]]:
        """One callable per block, for the step and branch under way."""
        step, branch = self.position
        calls: list[Callable[..., Any]] = list(blocks)
        self.walks += 1
        self.runs = len(blocks)
        for (first, last), store in self.stores.items():
            schedule = store.schedules[branch]
            if step in schedule.forecasts:
                reuse = _Reuse(store.label, store.needed(branch, step))
                calls[first] = reuse.add
                calls[first + 1 : last + 1] = [reuse.pass_on] * (last - first)
                self.runs -= last - first + 1
                self.reused += 1
            elif step in schedule.last_use:
                calls[first] = self._remembering(calls[first])
                calls[last] = self._storing(calls[last], store, branch, step)
        return calls

    def _remembering(self, block: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.inputs = args
            return block(*args, **kwargs)

        return run

    def _storing(
        self, block: Callable[..., Any], store: Store, branch: str, step: int
    ) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = block(*args, **kwargs)
            outputs = (output,) if isinstance(output, torch.Tensor) else tuple(output)
            if len(self.inputs) < len(outputs):
                raise ValueError(
                    f"{store.label}: blocks return {len(outputs)} tensors but are called with "
                    f"{len(self.inputs)} positional arguments: the tensors that a block updates "
                    "must be its leading positional arguments"
                )
            deltas = (
                after.detach() - before.detach()
                for after, before in zip(outputs, self.inputs, strict=False)
            )
            store.anchors[branch, step] = keep(
                output, deltas, self.plan.storage, self.plan.storage_place
            )
            self.inputs = None
            return output

        return run


class _Reuse:
    """A reused interval: its first block adds the forecast, the others hand their input on."""

    def __init__(self, label: str, needed: list[tuple[Anchor, float]]) -> None:
        self.label, self.needed = label, needed
        self.single = isinstance(needed[0][0].template, torch.Size)
        self.count = len(needed[0][0].tensors)

    def add(self, *args: Any, **kwargs: Any) -> Any:
        self._check(args)
        updated = tuple(
            forecast_delta(self.label, args[i], self.needed, i) for i in range(self.count)
        )
        return updated[0] if self.single else updated

    def pass_on(self, *args: Any, **kwargs: Any) -> Any:
        self._check(args)
        return args[0] if self.single else args[: self.count]

    def _check(self, args: tuple[Any, ...]) -> None:
        if len(args) < self.count:
            raise ValueError(
                f"{self.label}: {self.count} tensors are updated, the call gives {len(args)}"
            )


def _plain_reduce(module: nn.Module, plain: type, key: str, protocol: int) -> Any:
    """How copies and pickles see an attached object: as the plain one."""
    _, _, state, *rest = plain.__reduce_ex__(module, protocol)
    return (object.__new__, (plain,), {k: v for k, v in state.items() if k != key}, *rest)


@cache
def attached_class(plain: type) -> type:
    """`plain` with its call going through the attached cache; named like it."""

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        attached = self.__dict__.get(CACHE)
        if attached is None:
            return plain.__call__(self, *args, **kwargs)
        return attached.call(lambda *a, **k: plain.__call__(self, *a, **k), args, kwargs)

    def __reduce_ex__(self: nn.Module, protocol: int) -> Any:
        return _plain_reduce(self, plain, CACHE, protocol)

    return _subclass(plain, {"__call__": __call__, "__reduce_ex__": __reduce_ex__})


@cache
def walked_class(plain: type) -> type:
    """A ModuleList class whose iteration is the walk while the model's call is under way."""

    def __iter__(self: nn.ModuleList) -> Iterator[Any]:
        walk = self.__dict__.get(WALK)
        if walk is None or walk.position is None:
            return plain.__iter__(self)
        return iter(walk.callables(list(self._modules.values())))

    def __add__(self: nn.ModuleList, other: Any) -> nn.ModuleList:
        others = other._modules.values() if isinstance(other, nn.ModuleList) else other
        return nn.ModuleList([*self._modules.values(), *others])

    def __reduce_ex__(self: nn.ModuleList, protocol: int) -> Any:
        return _plain_reduce(self, plain, WALK, protocol)

    members = {"__iter__": __iter__, "__add__": __add__, "__reduce_ex__": __reduce_ex__}
    return _subclass(plain, members)


def _subclass(plain: type, members: dict[str, Any]) -> type:
    named = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain)(plain.__name__, (plain,), {**members, **named})

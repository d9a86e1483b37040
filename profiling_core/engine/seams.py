"""The seams: the model's call, and the walk over a block list while that call is under way."""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from torch import nn

from profiling_core.engine.block_lists import unwrapped
from profiling_core.engine.interval import (
    NOT_SKIPPED,
    Call,
    Interval,
    leading,
    parameters,
    version,
)
from profiling_core.errors import PlanError

CACHE, WALK = "_delta_cache", "_delta_walk"  # keys in the instance dicts of model and list


class BlockWalk:
    """The walk over one block list while a call of the model is under way."""

    def __init__(self, name: str, blocks: nn.ModuleList) -> None:
        self.name, self.blocks = name, blocks
        self.intervals: list[Interval] = []
        self.calls: list[Callable[..., Any]] | None = None  # one per block, while under way
        self.walks = self.skipped = self.reused = 0
        self._names: tuple[str, ...] = ()
        self._output: tuple[Any, ...] = ()  # of the block before
        self._versions: list[int | None] = []  # when it returned

    def start(self, call: Call) -> None:
        """Decide what every block does in the coming call; blocks are looked up afresh."""
        blocks = list(self.blocks._modules.values())
        calls: list[Callable[..., Any]] = list(blocks)
        counts = [interval.prepare(calls, blocks, call) for interval in self.intervals]
        self.skipped, self.reused = sum(counts), sum(count > 0 for count in counts)
        if not self.skipped:
            self._names = parameters(blocks[0])
            calls = [
                partial(self._in_order, number, call_block)
                for number, call_block in enumerate(calls)
            ]
        self.walks, self.calls, self._output = 0, calls, ()

    def _in_order(self, number: int, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a block; PlanError unless it gets what the block before returned, in order."""
        given, before = leading(self._names, args, kwargs), self._output
        inside = any(i.first < number <= i.last for i in self.intervals)
        for place, tensor in enumerate(given[: len(before)]):
            same = tensor is before[place]
            if len(given) < len(before) or (same and version(tensor) == self._versions[place]):
                continue
            if not same and any(tensor is other for other in before):
                raise PlanError(
                    f"{self.name}: {type(unwrapped(self.blocks[number])).__name__} returns its "
                    f"tensors in another order than it takes them: {NOT_SKIPPED}"
                )
            if inside:
                raise PlanError(
                    f"{self.name}: the model changes what block {number - 1} returned before block "
                    f"{number} gets it: {NOT_SKIPPED}"
                )
        output = call(*args, **kwargs)
        last = number + 1 == len(self.blocks)
        returned = tuple(output) if isinstance(output, tuple | list) else (output,)
        self._output = () if last else returned
        self._versions = [version(tensor) for tensor in returned]
        return output

    def stop(self) -> None:
        self.calls, self._output = None, ()

    def finish(self, call: Call) -> None:
        """Store what the call kept; ValueError when the model did not walk the list once."""
        if self.walks != 1:
            raise ValueError(
                f"the model walked over its {self.name} {self.walks} times in one call instead of "
                "once: intervals need a plain loop `for block in list` in its forward"
            )
        for interval in self.intervals:
            interval.finish(call)


def _plain_reduce(module: nn.Module, plain: Any, key: str, protocol: int) -> Any:
    """Copies and pickles of an attached object are plain ones."""
    function, args, *rest = plain.__reduce_ex__(module, protocol)
    # typeshed leaves __newobj__ out; another function: a class with a reduction of its own
    if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
        return (plain if function is type(module) else function, args, *rest)
    state, *rest = rest
    return (object.__new__, (plain,), {k: v for k, v in state.items() if k != key}, *rest)


@contextmanager
def in_front(model: nn.Module, answerer: Any) -> Iterator[None]:
    """`answerer.call(run, args, kwargs)` answers the model's calls inside the with block.

    ValueError where a cache, or another one of these, is in front already.
    """
    if CACHE in model.__dict__:
        raise ValueError("a cache is attached already: detach it first")
    put_on(model, CACHE, answerer, attached_class)
    try:
        yield
    finally:
        take_off(model, CACHE, attached_class)


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
def walked_class(plain: type[nn.ModuleList]) -> type:
    """A ModuleList class whose iteration is the walk while the model's call is under way."""

    def __iter__(self: nn.ModuleList) -> Iterator[Any]:
        walk = self.__dict__.get(WALK)
        if walk is None or walk.calls is None:
            return plain.__iter__(self)
        walk.walks += 1
        return iter(walk.calls)

    def __add__(self: nn.ModuleList, other: Any) -> nn.ModuleList:
        others = other._modules.values() if isinstance(other, nn.ModuleList) else other
        return nn.ModuleList([*self._modules.values(), *others])

    def __reduce_ex__(self: nn.ModuleList, protocol: int) -> Any:
        return _plain_reduce(self, plain, WALK, protocol)

    members = {"__iter__": __iter__, "__add__": __add__, "__reduce_ex__": __reduce_ex__}
    return _subclass(plain, members)


def put_on(module: nn.Module, key: str, value: Any, changed: Callable[[type], type]) -> None:
    """Give a module `value` under `key`, and the class that reads it."""
    module.__dict__[key] = value
    module.__class__ = changed(type(module))


def take_off(module: nn.Module, key: str, changed: Callable[[type], type]) -> None:
    """Undo `put_on`; below another class on top of it ours stays, inert."""
    module.__dict__.pop(key, None)
    plain = type(module).__mro__[1]
    if type(module) is changed(plain):
        module.__class__ = plain


def _subclass(plain: type, members: dict[str, Any]) -> type:
    named = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain)(plain.__name__, (plain,), {**members, **named})

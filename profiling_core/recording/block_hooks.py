"""Hooks that measure every block: deltas on sampled tokens, norms, times.

A block's delta is output minus input of its first updated tensor (for HunyuanVideo the image, or
the joint stream that begins with it). Whole deltas of all blocks and steps are hundreds of
gigabytes, so they are kept on a fixed random subset of image tokens, projected to WIDTH numbers a
token where the model is wider (random signs, which keep inner products in expectation). They are
computed in fp32 outside the model's autocast and summed in fp64: a change between steps is small
beside the deltas themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from profiling_core.engine.anchors import tensors_of

WIDTH = 256  # numbers that are kept of a sampled token
NORM_TOKENS = 1024  # most tokens whose norms the magnitude ratio is the mean of


def sampled_tokens(tokens: int, count: int) -> Tensor:
    """`count` of `tokens` token numbers, ascending, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(tokens, generator=generator)[:count].sort().values


def _within(shard: range, tokens: Tensor) -> Tensor:
    """Those of the tokens that lie in a shard, counted from its first one."""
    return tokens[(tokens >= shard.start) & (tokens < shard.stop)] - shard.start


def projection(width: int) -> Tensor | None:
    """(width, WIDTH) of +-WIDTH**-0.5, fp64, or None for a model that is no wider."""
    if width <= WIDTH:
        return None
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (width, WIDTH), generator=generator).double() * 2 - 1
    return signs * WIDTH**-0.5


class Timer:
    """Seconds between start and stop; on a GPU by events, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"
        self._start = self._now()
        self._stop: Any = None

    def stop(self) -> None:
        self._stop = self._now()

    def seconds(self) -> float:
        """On a GPU the device has to have passed `stop`."""
        if self._events:
            return self._start.elapsed_time(self._stop) / 1000
        return self._stop - self._start

    def _now(self) -> Any:
        if not self._events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class BlockTap:
    """Hooks on the blocks of one model call after another.

    blocks: all lists in order; tokens: of the image; count: how many of them are kept; shard: those
    of this process. `sketches`, `norms` and `timers` are the last call's; `inside` is the number of
    the block that runs now.
    """

    norms: Tensor
    _first: Tensor  # what the first block is given, _before: what the block that runs now is
    _before: Tensor

    def __init__(
        self, blocks: list[nn.Module], tokens: int, count: int, shard: range | None = None
    ) -> None:
        self.blocks = blocks
        shard = range(tokens) if shard is None else shard
        self.kept = _within(shard, sampled_tokens(tokens, count))
        self.normed = _within(shard, sampled_tokens(tokens, NORM_TOKENS))
        self.projection: Tensor | None = None
        self._ready: torch.device | None = None
        self.inside: int | None = None
        self.left: Callable[[int], None] = lambda block: None  # called after each block
        self._handles: list[Any] = []
        self.start_call()

    def start_call(self) -> None:
        self.sketches: list[Tensor] = []
        self.timers: list[Timer] = []

    def open(self, *others: list[nn.Module]) -> None:
        """others: the same blocks of models that take over from the first in the same run."""
        for blocks in (self.blocks, *others):
            for number, block in enumerate(blocks):
                before = block.register_forward_pre_hook(self._enter(number), with_kwargs=True)
                after = block.register_forward_hook(self._leave(number))
                self._handles += [before, after]

    def close(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self.inside = None

    def _enter(self, number: int) -> Callable[..., None]:
        @torch.compiler.disable  # compiled blocks call their hooks from inside
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = tensors_of([*args, *kwargs.values()])[0]
            self._prepare(x)
            self._before = x[:, self.kept]
            if number == 0:
                self._first = x[:, self.normed].float()
            self.inside = number
            self.timers.append(Timer(x.device))

        return hook

    def _leave(self, number: int) -> Callable[..., None]:
        @torch.compiler.disable
        def hook(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.timers[-1].stop()
            x = tensors_of(output)[0]
            with torch.autocast(x.device.type, enabled=False):  # not in the model's bf16
                self.sketches.append(self._sketch(x))
                if number == len(self.blocks) - 1:
                    added = x[:, self.normed].float() - self._first
                    self.norms = added.double().norm(dim=-1).flatten()
            self.left(number)
            self.inside = None

        return hook

    def _sketch(self, x: Tensor) -> Tensor:
        """What the block added to the sampled tokens, fp32 (B kept numbers,)."""
        delta = x[:, self.kept].float() - self._before.float()  # (B, kept, D)
        if self.projection is not None:
            delta = (delta.double() @ self.projection).float()
        return delta.flatten()

    def _prepare(self, x: Tensor) -> None:
        if self._ready == x.device:
            return
        self._ready = x.device
        self.kept, self.normed = self.kept.to(x.device), self.normed.to(x.device)
        signs = projection(x.shape[-1])
        self.projection = None if signs is None else signs.to(x.device)

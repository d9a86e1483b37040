"""Anchors: what a compute step leaves for later reuse steps, and the weighted sums made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Slot:
    """Marks the place of a tensor in the structure of an output."""

    shape: torch.Size


@dataclass(frozen=True)
class Anchor:
    """Stored tensors of one compute step.

    `tensors` are what is stored (deltas, or a prediction), `dtypes` what a reuse must return,
    `template` the output with a Slot for every tensor, and `sizes` the shapes of the call's first
    argument where a reuse has to compare them.
    """

    tensors: tuple[torch.Tensor, ...]
    dtypes: tuple[torch.dtype, ...]
    device: torch.device
    template: Any
    sizes: tuple[torch.Size, ...] = ()

    @property
    def single(self) -> bool:
        """Was the output one tensor, not a structure of them?"""
        return isinstance(self.template, Slot)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def fetch(self, index: int) -> torch.Tensor:
        """The stored tensor on the device where it was computed."""
        return self.tensors[index].to(self.device, non_blocking=True)


def keep(
    output: Any,
    tensors: Iterable[torch.Tensor],
    storage: str,
    place: str,
    sizes: tuple[torch.Size, ...] = (),
) -> Anchor:
    """An anchor of `tensors` for a block or model that returned `output`.

    storage: 'stream' keeps the dtype of the tensors, 'bfloat16' halves fp32 ones.
    place: 'device', or 'host' for pinned host memory (copied without waiting; the copies and the
    later fetches are ordered by the stream they are issued on).
    """
    dtypes: list[torch.dtype] = []
    template = tree_map(lambda tensor: dtypes.append(tensor.dtype) or Slot(tensor.shape), output)
    stored = tuple(_placed(_stored_as(tensor, storage), place) for tensor in tensors)
    device = next(iter(tensors_of(output))).device
    return Anchor(stored, tuple(dtypes), device, template, sizes)


def forecast_delta(
    label: str, hidden: torch.Tensor, needed: list[tuple[Anchor, float]], index: int
) -> torch.Tensor:
    """hidden + sum of weight x delta, out of place, in the dtype that the blocks return.

    One fused multiply-add per anchor; with the single weight 1 it is exactly hidden + delta. A half
    precision stream with several anchors is summed in fp32 and rounded once, with one fp32 tensor
    of the stream's size alive meanwhile; with one anchor the fused add rounds once by itself.
    """
    newest, weight = needed[0]
    delta, dtype = newest.fetch(index), newest.dtypes[index]
    if hidden.shape != delta.shape:
        raise ValueError(
            f"{label}: the hidden state is {tuple(hidden.shape)}, its anchor {tuple(delta.shape)}: "
            "the size may not change between a compute step and its reuse steps"
        )
    summed = dtype if len(needed) == 1 else _at_least_fp32(dtype)
    given = torch.promote_types(hidden.dtype, delta.dtype)
    if torch.promote_types(given, summed) != given:
        hidden = hidden.to(summed)
    result = hidden + delta if weight == 1.0 else torch.add(hidden, delta, alpha=weight)
    for anchor, weight in needed[1:]:
        result.add_(anchor.fetch(index), alpha=weight)
    return result.to(dtype)


def forecast_prediction(needed: list[tuple[Anchor, float]]) -> Any:
    """Weighted sum of stored predictions, in the structure and dtypes that the model returns.

    A single weight 1 gives a copy. Half precision is summed in fp32 and rounded once: weights of a
    linear forecast such as (1.9, -0.9) would round every term at nearly twice its size.
    """
    newest = needed[0][0]
    tensors = iter([_weighted_sum(needed, i, dtype) for i, dtype in enumerate(newest.dtypes)])
    return tree_map(lambda _: next(tensors), newest.template, leaf=Slot)


def _weighted_sum(
    needed: list[tuple[Anchor, float]], index: int, dtype: torch.dtype
) -> torch.Tensor:
    newest, weight = needed[0]
    if len(needed) == 1 and weight == 1.0:
        return newest.fetch(index).to(dtype, copy=True)  # the caller may change it in place
    result = newest.fetch(index).to(_at_least_fp32(dtype)) * weight
    for anchor, weight in needed[1:]:
        result.add_(anchor.fetch(index), alpha=weight)
    return result.to(dtype)


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def tree_map(change: Callable[[Any], Any], tree: Any, leaf: type = torch.Tensor) -> Any:
    """`tree` (tuples, lists, dicts, dataclasses of tensors) with every leaf changed, in order."""
    if isinstance(tree, leaf):
        return change(tree)
    if isinstance(tree, dict):
        changed = {key: tree_map(change, value, leaf) for key, value in tree.items()}
        return changed if type(tree) is dict else type(tree)(**changed)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(change, item, leaf) for item in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(tree_map(change, item, leaf) for item in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        values = {f.name: tree_map(change, getattr(tree, f.name), leaf) for f in fields(tree)}
        return type(tree)(**values)
    return tree


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """The tensors of a structure, in order."""
    found: list[torch.Tensor] = []
    tree_map(found.append, tree)
    return found


def _stored_as(tensor: torch.Tensor, storage: str) -> torch.Tensor:
    return tensor.to(torch.bfloat16) if storage == "bfloat16" else tensor


def _placed(tensor: torch.Tensor, place: str) -> torch.Tensor:
    if place == "device" or tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)

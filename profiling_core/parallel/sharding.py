"""Weights shared out over ranks: FSDP2 per block, read shard by shard.

Every rank holds 1 / ranks of each sharded tensor, rows of its first axis. Just before a block runs
its tensors are gathered, in bf16 where asked for, and dropped behind it; a block that a plan skips
is not gathered, and a call that a plan answers gathers nothing.

What a model computes in fp32 from small tensors (norms, modulation) stays whole and in its own
type on every rank: these are a few MB, and so a sharded run gives what an unsharded one gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

Read = Callable[[str, int, int], Tensor]  # (name, first row, end row) -> these rows of a tensor


@dataclass(frozen=True)
class Precision:
    """What sharded tensors are gathered in: of the blocks, and of everything else."""

    blocks: torch.dtype | None = None  # None: their own
    others: torch.dtype | None = None


def shard(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    device: torch.device,
    precision: Precision = Precision(),
    *,
    group: dist.ProcessGroup | None = None,
) -> nn.Module:
    """Shard a model on the meta device over a group's ranks; `fill` gives it its weights.

    Every linear of `blocks` is sharded with its block; what else lies in them stays whole. The rest
    of the model is one more unit, gathered at the start of a call.
    """
    ranks = group or dist.group.WORLD
    if ranks is None:
        raise ValueError("no process group to shard over: start one first")
    mesh = DeviceMesh.from_group(ranks, device.type)
    whole = set()
    for block in blocks:
        kept = set(_outside_linears(block))
        policy = MixedPrecisionPolicy(param_dtype=precision.blocks, cast_forward_inputs=False)
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=kept)
        whole |= kept
    policy = MixedPrecisionPolicy(param_dtype=precision.others, cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)
    return model


def fill(model: nn.Module, read: Read, device: torch.device) -> None:
    """Give a sharded model its weights; each rank reads its own rows and no others.

    The model keeps the types that it has on the meta device. Afterwards it needs no gradients.
    """
    names = [name for name, _ in model.named_buffers()]
    if names:
        raise ValueError(f"buffer {names[0]!r} would be lost: a sharded model may have none")
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if own.numel():
                own.copy_(read(name, *_own_rows(parameter)))
    model.requires_grad_(False)


def _outside_linears(block: nn.Module) -> Iterator[nn.Parameter]:
    for module in block.modules():
        if not isinstance(module, nn.Linear):
            yield from module.parameters(recurse=False)


def _own_rows(parameter: Tensor) -> tuple[int, int]:
    """The rows of a parameter that this rank holds: FSDP2's chunks, all of a whole one."""
    if not isinstance(parameter, DTensor):
        return 0, len(parameter)
    mesh = parameter.device_mesh
    rows = -(-len(parameter) // mesh.size())
    first = min(mesh.get_local_rank() * rows, len(parameter))
    return first, min(first + rows, len(parameter))

"""The most bytes of tensors that are alive at one time, also of models that need no memory."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from profiling_core.parallel.degrees import Degrees
from profiling_core.parallel.ranks import Ranks, ranks_of

ABOVE = 1.3  # an estimate may be so much larger than the peak, and never smaller


class LiveMemory(TorchDispatchMode):
    """Bytes of every storage that an operator makes, until it is freed; what was there is not.

    Memory that a kernel takes for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        before = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _key(tensor) not in {*before, *self._sizes}:
                storage, key = tensor.untyped_storage(), _key(tensor)
                self._sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, key)
        self.peak = max(self.peak, self.live)
        return out

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Tensors with shapes, types and storages, and no numbers."""
    with FakeTensorMode(), torch.no_grad():
        yield


def built(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model whose weights have this type from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


@contextmanager
def fake_ranks(ulysses: int = 1, ring: int = 1, cfg: int = 1) -> Iterator[Ranks]:
    """The first of so many processes, whose messages go nowhere."""
    degrees = Degrees(ulysses, ring, cfg)
    if degrees.world == 1:
        yield Ranks()
        return
    dist.init_process_group("fake", rank=0, world_size=degrees.world, store=FakeStore())
    try:
        yield ranks_of(degrees)
    finally:
        dist.destroy_process_group()


@contextmanager
def half_precision_as_on_cuda() -> Iterator[None]:
    """CUDA's autocast on a convolutional model: group norms in fp32, convolutions in half."""
    norm, layers = nn.GroupNorm.forward, {kind: kind.forward for kind in (nn.Conv3d, nn.Linear)}

    def in_fp32(self: nn.GroupNorm, x: Tensor) -> Tensor:
        return F.group_norm(
            x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps
        )

    def cast(forward: Callable) -> Callable:
        return lambda self, x: forward(self, x.to(self.weight.dtype))

    nn.GroupNorm.forward = in_fp32
    for kind, forward in layers.items():
        kind.forward = cast(forward)
    try:
        yield
    finally:
        nn.GroupNorm.forward = norm
        for kind, forward in layers.items():
            kind.forward = forward


def assert_holds(estimate: int, peak: int) -> None:
    """The estimate is not below the peak, and not far above it."""
    assert peak <= estimate <= ABOVE * peak, f"{estimate / peak:.3f} of {peak / 1e9:.2f} GB"

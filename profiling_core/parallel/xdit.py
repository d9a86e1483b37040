"""xDiT's own attention layers in place of ours, where a user asks for them.

    PROFILING_DIT_USP=xfuser torchrun ... generate.py ... --ulysses_size 8

`xfuser` is xFuserLongContextAttention, the layer of the official multi-GPU code (GPUs only);
`yunchang` is LongContextAttention under it, which knows no text that all ranks hold and so serves
Wan alone; it runs on CPUs as well. Both want equal shards. They send q, k, v and the output in four
all-to-alls where `SequenceShare` needs two, and with torch's kernels a ring rounds its log-sum-exp
to bf16; that is why they are not the default. Before the first clip a layer is set against
ours on random numbers: releases of the two packages exist that import and then fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from profiling_core.errors import ParallelError
from profiling_core.parallel.ranks import Ranks
from profiling_core.parallel.sequence import Attention, SequenceShare

VARIABLE = "PROFILING_DIT_USP"
OWN, YUNCHANG, XFUSER = "own", "yunchang", "xfuser"
CHECKED_ROWS, CHECKED_WIDTH = 8, 64  # tokens of a rank, and width of a head, in the self-check
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}  # relative

_kernels: list[torch.library.Library] = []  # registrations last as long as these live


def sequence_share(ranks: Ranks, attention: Attention, device: torch.device) -> SequenceShare:
    """The share of the tokens with the attention layer that the environment asks for.

    ParallelError for another name, for a layer that cannot be made, with the packages' own error in
    full, and for one that computes something else than ours.
    """
    asked = os.getenv(VARIABLE) or OWN
    if asked == OWN:
        return SequenceShare(ranks, attention)
    if asked not in (YUNCHANG, XFUSER):
        raise ParallelError(f"{VARIABLE}={asked}: take {OWN}, {YUNCHANG} or {XFUSER}")
    share = LayerShare(ranks, attention, asked, device)
    share.check(device)
    return share


class LayerShare(SequenceShare):
    """`SequenceShare` whose attention is a package's layer."""

    def __init__(
        self, ranks: Ranks, attention: Attention, package: str, device: torch.device
    ) -> None:
        super().__init__(ranks, attention)
        self.package = package
        try:
            self._layer = _yunchang(ranks, device) if package == YUNCHANG else _xfuser(ranks)
        except Exception as error:  # broken pairs fail with whatever they run into
            raise ParallelError(self._broken(error)) from error

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, key_lens: Sequence[int] | None = None, text: int = 0
    ) -> Tensor:
        """As `SequenceShare.attention`; ParallelError for what the layer cannot do."""
        self._check_possible(q.shape[1] - text, key_lens, text)
        given, dtype = q.dtype, v.dtype
        rows = q.shape[1] - text
        image = [x[:, :rows].to(dtype).contiguous() for x in (q, k, v)]
        if self.package == YUNCHANG:
            return self._layer(*image, causal=False).to(given)
        joint: dict[str, Any] = {}
        if text:
            names = ("query", "key", "value")
            joint = {
                f"joint_tensor_{n}": x[:, rows:].to(dtype)
                for n, x in zip(names, (q, k, v), strict=True)
            }
            joint["joint_strategy"] = "rear"
        return self._layer(None, *image, dropout_p=0.0, causal=False, **joint).to(given)

    def check(self, device: torch.device) -> None:
        """ParallelError when the layer differs from ours, or fails."""
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        rows = CHECKED_ROWS * self.ranks.degrees.sequence
        shape = (3, 1, rows, self.ranks.degrees.ulysses, CHECKED_WIDTH)
        generator = torch.Generator().manual_seed(0)
        whole = torch.randn(shape, generator=generator).to(device, dtype)
        q, k, v = (self.take(x) for x in whole)
        wanted = super().attention(q, k, v)
        try:
            found = self.attention(q, k, v)
        except Exception as error:
            raise ParallelError(self._broken(error)) from error
        off = float((found - wanted).norm() / wanted.norm())
        if not off < TOLERANCE[dtype]:
            raise ParallelError(
                f"{self._names()}: their attention is off by {off:.2g} on random numbers: leave "
                f"{VARIABLE} out, or install xfuser 0.4.5 with yunchang 0.6.4"
            )

    def _check_possible(self, rows: int, key_lens: Sequence[int] | None, text: int) -> None:
        reason = None
        if rows * self.ranks.degrees.sequence != self.tokens:
            reason = f"{self.tokens} tokens do not divide by {self.ranks.degrees.sequence}"
        elif key_lens is not None:
            reason = "it cannot leave out keys"
        elif text and self.package == YUNCHANG:
            reason = "it knows no text that all ranks hold"
        if reason:
            raise ParallelError(f"{VARIABLE}={self.package}: {reason}: leave it out")

    def _broken(self, error: Exception) -> str:
        return (
            f"{self._names()}: {type(error).__name__}: {error}: leave {VARIABLE} out, or install "
            "xfuser 0.4.5 with yunchang 0.6.4"
        )

    def _names(self) -> str:
        return " with ".join(f"{name} {_version(name)}" for name in (XFUSER, YUNCHANG))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _yunchang(ranks: Ranks, device: torch.device) -> Callable[..., Tensor]:
    from yunchang import LongContextAttention, set_seq_parallel_pg
    from yunchang.globals import HAS_FLASH_ATTN
    from yunchang.kernels import AttnType

    if device.type == "cpu":
        _give_cpu_a_flash_kernel()
    degrees = ranks.degrees
    set_seq_parallel_pg(degrees.ulysses, degrees.ring, ranks.rank, degrees.world)
    flash = HAS_FLASH_ATTN and device.type == "cuda"
    return LongContextAttention(attn_type=AttnType.FA if flash else AttnType.TORCH_FLASH)


def _xfuser(ranks: Ranks) -> Callable[..., Tensor]:
    from xfuser.core.distributed import init_distributed_environment, initialize_model_parallel
    from xfuser.core.long_ctx_attention import xFuserLongContextAttention

    degrees = ranks.degrees
    init_distributed_environment(rank=ranks.rank, world_size=degrees.world)
    initialize_model_parallel(
        sequence_parallel_degree=degrees.sequence,
        ulysses_degree=degrees.ulysses,
        ring_degree=degrees.ring,
        data_parallel_degree=degrees.cfg,
    )
    return xFuserLongContextAttention()


def _give_cpu_a_flash_kernel() -> None:
    """torch's flash operator, which yunchang calls by name, has no kernel for CPUs; another has."""
    if _kernels:
        return
    library = torch.library.Library("aten", "IMPL")

    def flash(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        return_debug_mask: bool = False,
        *,
        scale: float | None = None,
    ) -> tuple[Any, ...]:
        operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, logs = operator(q, k, v, dropout_p, is_causal, scale=scale)
        nothing = torch.empty(0, dtype=torch.int64)
        lengths = (q.shape[-2], k.shape[-2])
        return out, logs, nothing, nothing, *lengths, nothing, nothing, torch.empty(0)

    library.impl("_scaled_dot_product_flash_attention", flash, "CPU")
    _kernels.append(library)

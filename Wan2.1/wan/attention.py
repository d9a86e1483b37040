"""Softmax attention: flash-attn 3 or 2 where installed and usable, torch SDPA everywhere else."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

FLASH_MAX_HEAD_DIM = 256


@lru_cache(maxsize=1)
def _flash() -> tuple[str, Callable[..., Tensor]] | None:
    """Name and function of the installed flash-attn, or None; a broken install counts as none."""
    try:
        from flash_attn_interface import flash_attn_func

        return "flash-attn 3", flash_attn_func
    except (ImportError, OSError, RuntimeError):
        pass
    try:
        from flash_attn import flash_attn_func

        return "flash-attn 2", flash_attn_func
    except (ImportError, OSError, RuntimeError):
        return None


def backend(device: torch.device) -> str:
    """Name of what half-precision attention runs on, for the log."""
    flash = _flash() if device.type == "cuda" else None
    return flash[0] if flash else "torch SDPA"


def attention(q: Tensor, k: Tensor, v: Tensor, key_lens: Sequence[int] | None = None) -> Tensor:
    """Attend q to k and v, all (B, L, heads, head_dim), in v's type; the result has q's type.

    key_lens limits each sample's keys to its first key_lens[b] rows; None means all of them.
    Queries are never limited: rows past the length are computed and thrown away by the caller.
    """
    if key_lens is None or min(key_lens) == k.shape[1]:
        return _attend(q, k, v)
    if min(key_lens) == max(key_lens):
        return _attend(q, k[:, : key_lens[0]], v[:, : key_lens[0]])
    # one call per sample: slices keep the fast kernels, which take no key mask
    samples = [
        _attend(q[i : i + 1], k[i : i + 1, :n], v[i : i + 1, :n]) for i, n in enumerate(key_lens)
    ]
    return torch.cat(samples)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    half = v.dtype in (torch.bfloat16, torch.float16)
    flash = _flash() if q.is_cuda and half and q.shape[-1] <= FLASH_MAX_HEAD_DIM else None
    query, key = q.to(v.dtype), k.to(v.dtype)
    if flash:
        out = flash[1](query, key, v)
        # builds of flash-attn 3 differ: some return the output alone, some (output, lse)
        return (out[0] if isinstance(out, tuple) else out).to(q.dtype)
    heads_first = (x.transpose(1, 2) for x in (query, key, v))  # (B, heads, L, head_dim)
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2).to(q.dtype)

"""Softmax attention: flash-attn 3 or 2 where installed and usable, torch SDPA everywhere else."""

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

FLASH_MAX_HEAD_DIM = 256
FLASH_MODULES = {"flash-attn 3": "flash_attn_interface", "flash-attn 2": "flash_attn"}


@lru_cache(maxsize=1)
def _installed_flash() -> tuple[str, Callable[..., Tensor] | None]:
    """What half-precision attention on a GPU runs on, in words, and its function if not SDPA."""
    broken = []
    for name, module in FLASH_MODULES.items():
        try:
            return name, importlib.import_module(module).flash_attn_func
        except ModuleNotFoundError:
            continue
        except Exception as error:  # a build for another torch or CUDA fails in many ways
            broken.append(f"{name} is installed but fails: {type(error).__name__}: {error}")
    return "; ".join(["torch SDPA", *broken]), None


def backend(device: torch.device) -> str:
    """What attention runs on, for the log."""
    return _installed_flash()[0] if device.type == "cuda" else "torch SDPA"


def _flash_for(q: Tensor, v: Tensor) -> Callable[..., Tensor] | None:
    """flash-attn's function where it can take these tensors; the type that counts is v's."""
    half = v.dtype in (torch.bfloat16, torch.float16)
    if q.is_cuda and half and q.shape[-1] <= FLASH_MAX_HEAD_DIM:
        return _installed_flash()[1]
    return None


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
    flash = _flash_for(q, v)
    query, key = q.to(v.dtype), k.to(v.dtype)
    if flash is not None:
        out = flash(query, key, v)
        # builds of flash-attn 3 differ: some return the output alone, some (output, lse)
        return (out[0] if isinstance(out, tuple) else out).to(q.dtype)
    heads_first = (x.transpose(1, 2) for x in (query, key, v))  # (B, heads, L, head_dim)
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2).to(q.dtype)

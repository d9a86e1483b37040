"""Access to the queries and keys of every block's self-attention, from outside the model.

Our trees, the official repositories and diffusers' transformers all call one plain function of
their module with queries, keys and values (B, L, heads, head_dim) first. Inside `tapped` that
function is replaced by one that calls it and then passes its arguments on. Within a block the first
call is the self-attention (cross-attention to text follows it).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import nn

from profiling_core.errors import ProfileError

FUNCTIONS = ("attention", "flash_attention", "dispatch_attention_fn")
_QUERY, _KEY = ("q", "query"), ("k", "key")
_LENGTHS, _MASKS = ("key_lens", "k_lens"), ("attn_mask", "cu_seqlens_kv")


@dataclass(frozen=True)
class Call:
    """One call of an attention function: queries and keys (B, L, heads, head_dim).

    Where several processes share the tokens, these are the part of this one, and all keys.
    """

    q: torch.Tensor
    k: torch.Tensor
    key_lens: tuple[int, ...] | None  # keys per sample that are attended to
    unseen: int = 0  # further queries, which are of text

    @property
    def flops(self) -> float:
        """FLOPs of the two matrix products."""
        batch, queries, heads, width = self.q.shape
        return 4.0 * batch * heads * (queries + self.unseen) * self.k.shape[1] * width


def functions_of(blocks: Iterable[nn.Module]) -> list[tuple[ModuleType, str]]:
    """Modules and names of the attention functions that the code of these blocks can call."""
    found: dict[tuple[str, str], tuple[ModuleType, str]] = {}
    for block in blocks:
        for part in block.modules():
            for owner in (part, getattr(part, "processor", None)):
                module = sys.modules.get(type(owner).__module__)
                for name in FUNCTIONS:
                    if module and inspect.isfunction(getattr(module, name, None)):
                        found[module.__name__, name] = (module, name)
    return list(found.values())


@contextmanager
def tapped(
    blocks: Iterable[nn.Module], see: Callable[[Call], None], share: Any = None
) -> Iterator[None]:
    """Pass every call of an attention function by the blocks to `see`.

    share: a SequenceShare of the model's tokens attends in the function's place.
    ProfileError when the blocks' code has none of FUNCTIONS.
    """
    functions = functions_of(blocks)
    if not functions:
        raise ProfileError(
            f"no access to queries and keys: the code of the blocks calls none of "
            f"{', '.join(FUNCTIONS)}; take an attention backend that does, or a profile prepared "
            "with --attention-every 0"
        )
    with ExitStack() as replaced:
        if hasattr(share, "see"):
            share.see = lambda *seen: see(Call(*seen))
            replaced.callback(setattr, share, "see", None)
        for module, name in functions:
            original = getattr(module, name)
            replaced.callback(setattr, module, name, original)
            setattr(module, name, _shown(original, see))
        yield


def _shown(original: Callable[..., Any], see: Callable[[Call], None]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @torch.compiler.disable
    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        see(_call_of(original.__name__, signature.bind(*args, **kwargs).arguments))
        return output

    return call


def _call_of(name: str, arguments: dict[str, Any]) -> Call:
    q, k = (next((arguments[n] for n in names if n in arguments), None) for names in (_QUERY, _KEY))
    if not isinstance(q, torch.Tensor) or not isinstance(k, torch.Tensor) or q.ndim != 4:
        shape = tuple(q.shape) if isinstance(q, torch.Tensor) else type(q).__name__
        raise ProfileError(
            f"no access to queries and keys: {name} was called with {shape} where queries "
            "(B, L, heads, head_dim) are expected"
        )
    lengths = next((arguments[n] for n in _LENGTHS if arguments.get(n) is not None), None)
    mask = next((arguments[n] for n in _MASKS if arguments.get(n) is not None), None)
    if lengths is None and mask is not None:
        lengths = _lengths_of(name, mask, len(q), k.shape[1])
    return Call(q, k, None if lengths is None else tuple(torch.as_tensor(lengths).tolist()))


def _lengths_of(name: str, mask: torch.Tensor, batch: int, keys: int) -> tuple[int, ...]:
    """Valid keys per sample, from a key mask (B, ..., keys) or from flash-attn's cumulation.

    The latter is upstream HunyuanVideo's: ends of valid and of padding keys in turns.
    """
    if mask.ndim == 1:
        return tuple((mask[1::2] - torch.arange(batch, device=mask.device) * keys).tolist())
    valid = mask if mask.dtype == torch.bool else mask >= 0
    valid = valid.reshape(len(mask), -1, keys)
    lengths = valid[:, 0].sum(dim=-1)
    leading = torch.arange(keys, device=mask.device) < lengths[:, None]
    attends = valid.any(dim=-1, keepdim=True)  # padding queries may see nothing at all
    if not torch.equal(valid, leading[:, None] & attends):
        raise ProfileError(
            f"no access to the attention of {name}: its mask {tuple(mask.shape)} hides other keys "
            "than the padding at the end"
        )
    return tuple(lengths.expand(batch).tolist())

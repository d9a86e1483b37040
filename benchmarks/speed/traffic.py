"""Bytes that elementwise work moves in one call of a full-size model, and its activations' peak.

Counted on tensors without data, as the operators run on a GPU under bf16 autocast: no weights, no
GPU, seconds. Elementwise is all but matrix products, convolutions, attention and views: norms,
modulation, rope, casts, residuals, activations. Rows go to results/traffic.jsonl.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.lib.command_line import Parser
from benchmarks.lib.rows import Row, append_row, environment, table
from hyvideo.config import CONFIGS
from hyvideo.model import HYVideoDiffusionTransformer
from wan.model import WanModel

CPU = torch.device("cpu")  # whose autocast does to these models what CUDA's does
OTHER = ("mm", "addmm", "bmm", "convolution", "empty", "empty_like", "new_empty", "_unsafe_view")
OTHER += ("prim::device", "detach")
WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
HUNYUAN = CONFIGS["HYVideo-T/2-cfgdistill"]
TEXT = 256  # tokens of a long prompt, of HunyuanVideo
MODELS = {
    "wan2.1-t2v-14B, 480p": (WanModel, WAN_14B, (16, 21, 60, 104)),
    "wan2.1-t2v-14B, 720p": (WanModel, WAN_14B, (16, 21, 90, 160)),
    "hunyuan-video, 540p": (
        HYVideoDiffusionTransformer,
        HUNYUAN.transformer,
        HUNYUAN.latent_shape((544, 960), 129),
    ),
}


class Traffic(TorchDispatchMode):
    """What a call moves, by operator, and the most bytes that it has alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.peak, self.counting = 0, True
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._given: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if self.counting:
            read = args[1:] if name == "copy_" else args
            if not func.is_view and name not in OTHER:
                self.bytes[name] += moved(read, output)
            self.see((args, kwargs), output)
        return output

    def see(self, given: Any, output: Any) -> None:
        """Keep the most bytes of storages that the call made itself."""
        keys = {t.untyped_storage()._cdata for t in tensors(given)} - self._alive.keys()
        self._given |= keys
        for tensor in tensors(output):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._given:
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))


class Fused(TorchFunctionMode):
    """Attention and the norm as the one kernel that each is on a GPU."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        if func is not F.rms_norm:
            return func(*args, **(kwargs or {}))
        if torch.is_autocast_enabled("cpu") and args[0].dtype != torch.float32:
            raise ValueError(f"CUDA's autocast makes F.rms_norm cast {args[0].dtype} first")
        self.traffic.counting = False
        output = func(*args, **(kwargs or {}))
        self.traffic.counting = True
        passes = 1 if args[0].is_contiguous() else 2  # the kernel copies what is not
        self.traffic.bytes["rms_norm"] += passes * moved(args, output)
        self.traffic.see(args, output)
        return output


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def moved(read: Any, written: Any) -> int:
    """Bytes of all tensors; what is broadcast counts once."""
    return sum(
        min(t.numel() * t.itemsize, t.untyped_storage().nbytes()) for t in tensors((read, written))
    )


def traffic_of(kind: type[nn.Module], sizes: dict[str, Any], latent: tuple[int, ...]) -> Row:
    """Tokens, bytes by operator and the peak of one call, weights in bf16."""
    with torch.device("meta"):
        model = kind(**sizes).to(torch.bfloat16).requires_grad_(False)
    lens = patch("hyvideo.model.text_lens", lambda mask: (TEXT,))  # of values, here are none
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), lens:
        model = model.to_empty(device=CPU)
        call = CALLS[kind](model, latent)
        with torch.autocast("cpu", torch.bfloat16), Traffic() as traffic, Fused(traffic):
            call()
    grid = [size // patch for size, patch in zip(latent[1:], model.patch_size, strict=True)]
    tokens = prod(grid) + (0 if kind is WanModel else TEXT)
    width = model.dim if isinstance(model, WanModel) else model.hidden_size
    return {
        "tokens": tokens,
        "terabytes": round(sum(traffic.bytes.values()) / 1e12, 3),
        "peak_bytes_per_value": round(traffic.peak / (tokens * width), 2),
        "by_operator": {name: round(n / 1e12, 4) for name, n in traffic.bytes.most_common(12)},
    }


def wan_call(model: WanModel, latent: tuple[int, ...]) -> Callable[[], Any]:
    x, text = torch.empty(latent), torch.empty(512, model.text_dim)
    t, tokens = torch.empty(1), prod(latent[1:]) // prod(model.patch_size)
    return lambda: model([x], t, [text], tokens)


def hunyuan_call(model: HYVideoDiffusionTransformer, latent: tuple[int, ...]) -> Callable[[], Any]:
    tokens = prod(latent[1:]) // prod(model.patch_size)
    table = torch.empty(tokens, sum(model.rope_dim_list))
    inputs = {
        "x": torch.empty(1, *latent),
        "t": torch.empty(1),
        "text_states": torch.empty(1, TEXT, model.text_states_dim),
        "text_states_2": torch.empty(1, model.text_states_dim_2),
        "guidance": torch.empty(1),
        "text_mask": torch.empty(1, TEXT, dtype=torch.int64),
    }
    return lambda: model(freqs_cos=table, freqs_sin=table, **inputs)


CALLS = {WanModel: wan_call, HYVideoDiffusionTransformer: hunyuan_call}


def main() -> int:
    trees, lines = tuple(build_parser().parse_args().trees), []
    for name, (kind, sizes, latent) in MODELS.items():
        if name.startswith(trees):
            row = traffic_of(kind, sizes, latent)
            append_row("traffic", {"model": name, **row, **environment(CPU)})
            numbers = (f"{row['terabytes']:.2f} TB", f"{row['peak_bytes_per_value']:.1f}")
            lines.append([name, f"{row['tokens']:,}", *numbers])
    header = ["model", "tokens", "moved by a call", "peak, bytes a token and channel"]
    sys.stdout.write(table(header, lines) + "\n")
    return 0


def build_parser() -> Parser:
    return Parser(__doc__)


if __name__ == "__main__":
    sys.exit(main())

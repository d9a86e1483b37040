"""The official transformers on the CPU, from a checkout that an environment variable names.

Their code wants CUDA and flash-attn. It gets stand-ins for both: autocast regions of the CPU; SDPA
in the type of v over the valid keys; for HunyuanVideo, layer norms in fp32, as CUDA's autocast has
them. Both packages are loaded under names of their own, beside ours.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyvideo.model import HYVideoDiffusionTransformer
from wan.model import WanModel

CHECKOUTS = {"wan": "WAN21_UPSTREAM", "hunyuan": "HUNYUAN_UPSTREAM"}
PACKAGES = {"wan": "wan", "hunyuan": "hyvideo"}


class CPUAutocast:
    """In place of torch.cuda.amp: every region it opens is one without autocast, on the CPU."""

    @staticmethod
    def autocast(**options: object) -> torch.autocast:
        return torch.autocast("cpu", enabled=False)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, k_lens: Tensor, **options: object) -> Tensor:
    keys = k.shape[1] if k_lens is None else int(k_lens[0])
    half = [x.to(v.dtype).transpose(1, 2) for x in (q, k[:, :keys], v[:, :keys])]
    return F.scaled_dot_product_attention(*half).transpose(1, 2).to(q.dtype)


def joint_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """HunyuanVideo's own, where every sample has as many valid keys as its run of flash-attn."""
    keys = int(options["cu_seqlens_q"][1])
    heads_first = (x.transpose(1, 2) for x in (q, k[:, :keys], v[:, :keys]))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2).flatten(2)


def key_ends(text_mask: Tensor, img_len: int) -> Tensor:
    """Ends of valid and of padding keys in turns; ValueError where samples differ in length."""
    lens = text_mask.sum(dim=1)
    if lens.min() != lens.max():
        raise ValueError(f"texts of {lens.tolist()} tokens: the stand-in takes equal ones")
    total = img_len + text_mask.shape[1]
    starts = torch.arange(len(lens)) * total
    ends = torch.stack((starts + img_len + lens, starts + total), dim=1).flatten()
    return torch.cat((starts[:1], ends)).int()


class FullLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)


def official(tree: str) -> ModuleType | None:
    """The module of the official transformer; None without a checkout."""
    checkout = os.getenv(CHECKOUTS[tree])
    return _loaded(tree, checkout) if checkout else None


@cache
def _loaded(tree: str, checkout: str) -> Any:
    root = f"official_{tree}"
    for name in (root, f"{root}.modules", f"{root}.utils"):  # without their __init__
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(Path(checkout, PACKAGES[tree], *name.split(".")[1:]))]
    if tree == "wan":
        sys.modules[f"{root}.modules.attention"] = attention = ModuleType("attention")
        attention.flash_attention = flash_attention  # type: ignore[attr-defined]
    module = upstream_module(tree, "modules.model" if tree == "wan" else "modules.models")
    if tree == "wan":
        module.amp = CPUAutocast
    else:
        module.attention, module.get_cu_seqlens = joint_attention, key_ends
    return module


def upstream_module(tree: str, name: str) -> Any:
    """A module of the official package; `official` has set the package up."""
    with patch.object(torch.cuda, "current_device", lambda: 0):  # a default argument asks for it
        return importlib.import_module(f"official_{tree}.{name}")


def upstream_twin(model: nn.Module) -> nn.Module | None:
    """The official class with the model's weights and types; None without a checkout."""
    if isinstance(model, WanModel):
        module, sizes = official("wan"), wan_sizes(model)
    else:
        module, sizes = official("hunyuan"), hunyuan_sizes(model)
    if module is None:
        return None
    with torch.random.fork_rng():
        kind = (
            module.WanModel if isinstance(model, WanModel) else module.HYVideoDiffusionTransformer
        )
        twin = kind(**sizes).eval().requires_grad_(False)
    twin.load_state_dict(model.state_dict(), strict=True, assign=True)
    for part in twin.modules():
        if isinstance(model, HYVideoDiffusionTransformer) and type(part) is nn.LayerNorm:
            part.__class__ = FullLayerNorm
    return twin


def wan_sizes(model: WanModel) -> dict[str, Any]:
    block = model.blocks[0]
    return {
        "patch_size": model.patch_size,
        "text_len": model.text_len,
        "in_dim": model.in_dim,
        "dim": model.dim,
        "ffn_dim": block.ffn[0].out_features,
        "freq_dim": model.freq_dim,
        "text_dim": model.text_dim,
        "out_dim": model.out_dim,
        "num_heads": model.num_heads,
        "num_layers": len(model.blocks),
        "cross_attn_norm": not isinstance(block.norm3, nn.Identity),
    }


def hunyuan_sizes(model: HYVideoDiffusionTransformer) -> dict[str, Any]:
    return {
        "args": SimpleNamespace(
            text_states_dim=model.text_states_dim, text_states_dim_2=model.text_states_dim_2
        ),
        "patch_size": list(model.patch_size),
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "hidden_size": model.hidden_size,
        "heads_num": model.heads_num,
        "mlp_width_ratio": model.double_blocks[0].img_mlp.fc1.out_features / model.hidden_size,
        "mm_double_blocks_depth": len(model.double_blocks),
        "mm_single_blocks_depth": len(model.single_blocks),
        "rope_dim_list": list(model.rope_dim_list),
        "guidance_embed": model.guidance_embed,
    }

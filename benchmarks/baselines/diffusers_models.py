"""diffusers' transformers with the weights of a tree's model, run by the tree's own loop.

`convert(tree)` builds WanTransformer3DModel or HunyuanVideoTransformer3DModel on the same weights
(shared, not copied) and takes the arguments of our models' calls; package_run.py puts it in our
model's place. In fp32 both models agree to 1e-4; under bf16 autocast diffusers rounds the residual
stream where ours keeps fp32, so that a full run through diffusers is the reference then.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_hunyuan_video_transformer_to_diffusers,
    convert_wan_transformer_to_diffusers,
)
from torch import Tensor, nn

from benchmarks.baselines.base import BLOCK_LISTS
from benchmarks.lib.clips import Tree
from hyvideo.model import text_lens

# our block lists by diffusers' names
LISTS = {
    "blocks": "blocks",
    "double_blocks": "transformer_blocks",
    "single_blocks": "single_transformer_blocks",
}
# what does the work of a block; norms, gates and the modulation of one row are under 1 % of it
PARTS = {
    "blocks": ("attn1", "attn2", "ffn"),
    "double_blocks": ("attn", "ff", "ff_context"),
    "single_blocks": ("attn", "proj_mlp", "proj_out"),
}
Shares = dict[str, dict[str, float]]  # per block list and part: its share of a block's FLOPs


def _with_split_linear1(state: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """The fused first linear of single blocks as four; diffusers' own split knows width 3072."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block, _, kind = name.partition(".linear1.")
        if not kind:
            split[name] = tensor
            continue
        pieces = tensor.split([width, width, width, len(tensor) - 3 * width])
        parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        for part, piece in zip(parts, pieces, strict=True):
            split[f"{block}.{part}.{kind}"] = piece
    return split


class Converted(ABC):
    """diffusers' transformer on a tree's weights, and the tree's arguments in its words."""

    def __init__(self, tree: Tree) -> None:
        self.ours = tree.pipeline.model
        with torch.random.fork_rng():  # diffusers draws weights that are replaced at once
            self.transformer = self._build(tree).to(tree.pipeline.device).eval()
        self.lists = {
            name: list(getattr(self.transformer, LISTS[name])) for name in BLOCK_LISTS[tree.name]
        }

    @property
    def depth(self) -> int:
        return sum(map(len, self.lists.values()))

    def __call__(self, arguments: dict[str, Any]) -> Tensor:
        """The prediction (B, C, F, H, W) for the arguments of a call of our model, by name."""
        return self.transformer(**self.translated(arguments), return_dict=False)[0]

    def shares(self, arguments: dict[str, Any]) -> Shares:
        """FLOPs of a block's parts over those of the block; each list's shares add up to 1."""
        image, text = self.tokens(arguments)
        shares = {}
        for name, blocks in self.lists.items():
            flops = _part_flops(name, blocks[0], image, text)
            shares[name] = {part: count / sum(flops.values()) for part, count in flops.items()}
        return shares

    @abstractmethod
    def _build(self, tree: Tree) -> nn.Module:
        """The transformer."""

    @abstractmethod
    def translated(self, arguments: dict[str, Any]) -> dict[str, Tensor | None]:
        """Keyword arguments of diffusers' forward."""

    @abstractmethod
    def in_our_form(self, prediction: Tensor) -> Any:
        """What our model would return."""

    @abstractmethod
    def tokens(self, arguments: dict[str, Any]) -> tuple[int, int]:
        """Image and text tokens of a sample."""


class ConvertedWan(Converted):
    """x: clips (C, F, H, W); context: text rows per clip, zero-padded to text_len as by ours."""

    def _build(self, tree: Tree) -> nn.Module:
        model = tree.pipeline.model
        block = model.blocks[0]
        theirs = WanTransformer3DModel(
            patch_size=model.patch_size,
            num_attention_heads=model.num_heads,
            attention_head_dim=model.dim // model.num_heads,
            in_channels=model.in_dim,
            out_channels=model.out_dim,
            text_dim=model.text_dim,
            freq_dim=model.freq_dim,
            ffn_dim=block.ffn[0].out_features,
            num_layers=len(model.blocks),
            cross_attn_norm=not isinstance(block.norm3, nn.Identity),
            eps=model.head.norm.eps,
        )
        state = convert_wan_transformer_to_diffusers(dict(model.state_dict()))
        theirs.load_state_dict(state, strict=True, assign=True)
        return theirs

    def translated(self, arguments: dict[str, Any]) -> dict[str, Tensor | None]:
        clips, rows = arguments["x"], self.ours.text_len
        padded = [F.pad(text, (0, 0, 0, rows - len(text))) for text in arguments["context"]]
        return {
            "hidden_states": torch.stack(clips),
            "timestep": arguments["t"].expand(len(clips)),
            "encoder_hidden_states": torch.stack(padded).to(self.transformer.dtype),
        }

    def in_our_form(self, prediction: Tensor) -> list[Tensor]:
        return list(prediction.float())

    def tokens(self, arguments: dict[str, Any]) -> tuple[int, int]:
        return arguments["seq_len"], self.ours.text_len


class ConvertedHunyuan(Converted):
    """Text is cut to the longest prompt as by ours; diffusers would carry and mask the padding."""

    def _build(self, tree: Tree) -> nn.Module:
        model = tree.pipeline.model
        frames, rows, _ = model.patch_size
        theirs = HunyuanVideoTransformer3DModel(
            in_channels=model.in_channels,
            out_channels=model.out_channels,
            num_attention_heads=model.heads_num,
            attention_head_dim=model.hidden_size // model.heads_num,
            num_layers=len(model.double_blocks),
            num_single_layers=len(model.single_blocks),
            num_refiner_layers=len(model.txt_in.individual_token_refiner.blocks),
            mlp_ratio=model.double_blocks[0].img_mlp.fc1.out_features / model.hidden_size,
            patch_size=rows,
            patch_size_t=frames,
            guidance_embeds=model.guidance_embed,
            text_embed_dim=model.text_states_dim,
            pooled_projection_dim=model.text_states_dim_2,
            rope_theta=float(tree.config.rope_theta),
            rope_axes_dim=model.rope_dim_list,
        )
        state = _with_split_linear1(dict(model.state_dict()), model.hidden_size)
        state = convert_hunyuan_video_transformer_to_diffusers(state)
        theirs.load_state_dict(state, strict=True, assign=True)
        return theirs

    def translated(self, arguments: dict[str, Any]) -> dict[str, Tensor | None]:
        x, rows = arguments["x"], max(text_lens(arguments["text_mask"]))
        return {
            "hidden_states": x,
            "timestep": arguments["t"],
            "encoder_hidden_states": arguments["text_states"][:, :rows],
            "encoder_attention_mask": arguments["text_mask"][:, :rows].to(x.device),
            "pooled_projections": arguments["text_states_2"],
            "guidance": arguments.get("guidance"),
        }

    def in_our_form(self, prediction: Tensor) -> dict[str, Tensor]:
        return {"x": prediction}

    def tokens(self, arguments: dict[str, Any]) -> tuple[int, int]:
        return len(arguments["freqs_cos"]), max(text_lens(arguments["text_mask"]))


def convert(tree: Tree) -> Converted:
    """A new transformer of diffusers on the tree's weights; nothing of the tree is changed."""
    return {"wan": ConvertedWan, "hunyuan": ConvertedHunyuan}[tree.name](tree)


def _part_flops(block_list: str, block: nn.Module, image: int, text: int) -> dict[str, float]:
    """FLOPs of the linears and of attention (4 width per pair of tokens) of each part."""
    joint = (image + text) ** 2
    pairs = {"attn1": image**2, "attn2": image * text, "attn": joint}
    flops = {}
    for part in PARTS[block_list]:
        module = block.get_submodule(part)
        flops[part] = sum(
            2 * linear.weight.numel() * _rows(block_list, f"{part}.{name}", image, text)
            for name, linear in module.named_modules()
            if isinstance(linear, nn.Linear)
        )
        if part in pairs:
            flops[part] += 4 * module.to_q.out_features * pairs[part]
    return flops


def _rows(block_list: str, linear: str, image: int, text: int) -> int:
    """Tokens that a linear of a block works on."""
    if block_list == "single_blocks":
        return image + text
    on_text = re.search(r"attn2\.to_[kv]|\.add_|\.to_add_|ff_context", linear)
    return text if on_text else image

"""The official models at full size with random weights, their clips, FLOPs by count, and toys.

Wan2.1 T2V at 832x480, 81 frames (32,760 tokens; the 14B as bf16, its fp32 weights are 57 GB), and
HunyuanVideo (HYVideo-T/2-cfgdistill, bf16) at 960x544 and 1280x720, 129 frames, 256 text tokens
(67,576 and 119,056 tokens). All run under bf16 autocast.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from benchmarks.lib.subjects import hunyuan_subject, random_model, wan_subject
from benchmarks.lib.timing import Subject
from hyvideo.config import CONFIGS
from hyvideo.model import HYVideoDiffusionTransformer
from wan.model import WanModel


@dataclass(frozen=True)
class FullWan:
    """Transformer arguments, type of the weights, latent of the clip.

    weights: a name; models that share it are built once.
    """

    weights: str
    sizes: dict[str, int]
    dtype: torch.dtype
    latent: tuple[int, ...] = (16, 21, 60, 104)

    def build(self, device: torch.device) -> nn.Module:
        return random_model(lambda: WanModel(**self.sizes), self.dtype, device)

    def subject(self, name: str, device: torch.device, model: nn.Module | None = None) -> Subject:
        """model: one that `build` made earlier; built now by default."""
        return wan_subject(name, model or self.build(device), self.latent, autocast=True)

    def flops(self) -> float:
        """Of the blocks of a full call: 2 for every weight and token, 4 for every query, key."""
        tokens, text = prod(self.latent[1:]) // 4, self.sizes.get("text_len", 512)
        width, inner = self.sizes["dim"], self.sizes["ffn_dim"]
        linears = 6 * tokens * width**2 + 2 * text * width**2 + 2 * tokens * width * inner
        attention = 2 * tokens * (tokens + text) * width
        return 2.0 * self.sizes["num_layers"] * (linears + attention)


@dataclass(frozen=True)
class FullHunyuan:
    """The same with as many text tokens as a long prompt has."""

    weights: str
    sizes: dict[str, object]
    latent: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    text_tokens: int = 256

    def build(self, device: torch.device) -> nn.Module:
        return random_model(lambda: HYVideoDiffusionTransformer(**self.sizes), self.dtype, device)

    def subject(self, name: str, device: torch.device, model: nn.Module | None = None) -> Subject:
        """As FullWan's."""
        model = model or self.build(device)
        return hunyuan_subject(name, model, self.latent, self.text_tokens, autocast=True)

    def flops(self) -> float:
        """As FullWan's; a double and a single block cost the same."""
        tokens = prod(self.latent[1:]) // 4 + self.text_tokens
        width = self.sizes["hidden_size"]
        blocks = self.sizes["mm_double_blocks_depth"] + self.sizes["mm_single_blocks_depth"]
        return float(blocks * (24 * tokens * width**2 + 4 * tokens**2 * width))


FullModel = FullWan | FullHunyuan

WAN_1_3B = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
HUNYUAN = CONFIGS["HYVideo-T/2-cfgdistill"]


def _hunyuan(size: tuple[int, int]) -> FullHunyuan:
    return FullHunyuan("hunyuan-video", HUNYUAN.transformer, HUNYUAN.latent_shape(size, 129))


MODELS: dict[str, FullModel] = {
    "wan2.1-t2v-1.3B": FullWan("wan2.1-t2v-1.3B", WAN_1_3B, torch.float32),
    "wan2.1-t2v-14B": FullWan("wan2.1-t2v-14B", WAN_14B, torch.bfloat16),
    "hunyuan-video-540p": _hunyuan((544, 960)),
    "hunyuan-video-720p": _hunyuan((720, 1280)),
}

TOY_LATENT = (16, 2, 4, 4)
_WAN_TOY = {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 12}
_WAN_TOY |= {"text_dim": 16, "text_len": 4}
_HUNYUAN_TOY = {
    "hidden_size": 48,
    "heads_num": 2,
    "mm_double_blocks_depth": 4,
    "mm_single_blocks_depth": 10,
    "rope_dim_list": (8, 8, 8),
    "text_states_dim": 32,
    "text_states_dim_2": 24,
    "guidance_embed": True,
}
TOYS: dict[str, FullModel] = {  # the same names, seconds on a CPU
    "wan2.1-t2v-1.3B": FullWan("toy-1.3B", _WAN_TOY, torch.float32, TOY_LATENT),
    "wan2.1-t2v-14B": FullWan("toy-14B", _WAN_TOY, torch.bfloat16, TOY_LATENT),
    "hunyuan-video-540p": FullHunyuan("toy", _HUNYUAN_TOY, TOY_LATENT, text_tokens=5),
    "hunyuan-video-720p": FullHunyuan("toy", _HUNYUAN_TOY, (16, 2, 4, 8), text_tokens=5),
}

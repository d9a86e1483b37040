"""A tiny HunyuanVideo transformer and a clip made with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hyvideo.model import HYVideoDiffusionTransformer
from hyvideo.rope import rope_tables
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import HUNYUAN, Clip, PlannedModel
from profiling_core.plan.schema import ModelFingerprint
from wan_toys import randomise

WIDTH, DOUBLE, SINGLE, CHANNELS = 48, 4, 6, 4
GRID = (2, 3, 2)  # image tokens along frames, rows, columns
LISTS = {"double_blocks": DOUBLE, "single_blocks": SINGLE}
Call = Callable[..., Tensor]


def planned(width: int = WIDTH, double: int = DOUBLE, single: int = SINGLE) -> PlannedModel:
    """What presets need to know of such a model."""
    lists = {"double_blocks": double, "single_blocks": single}
    fingerprint = ModelFingerprint(
        family="hunyuan-video", name="tiny", block_lists=lists, width=width
    )
    return PlannedModel(HUNYUAN, fingerprint, Clip("tiny", tokens=1, latent=1))


def tiny_model(seed: int = 0, **changes: object) -> HYVideoDiffusionTransformer:
    sizes = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "hidden_size": WIDTH,
        "heads_num": 2,
        "mm_double_blocks_depth": DOUBLE,
        "mm_single_blocks_depth": SINGLE,
        "rope_dim_list": (4, 10, 10),
        "text_states_dim": 20,
        "text_states_dim_2": 12,
        "guidance_embed": True,
    }
    return randomise(HYVideoDiffusionTransformer(**{**sizes, **changes}), seed, std=0.2)


@dataclass
class Inputs:
    """A clip's start and its prompts; `lens` are the valid tokens of each prompt of the batch."""

    lens: tuple[int, ...] = (5,)
    seed: int = 0
    grid: tuple[int, int, int] = GRID

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        batch, (frames, rows, columns) = len(self.lens), self.grid
        self.x = torch.randn(batch, CHANNELS, frames, 2 * rows, 2 * columns, generator=random)
        self.text = torch.randn(batch, 9, 20, generator=random)
        self.mask = (torch.arange(9) < torch.tensor(self.lens)[:, None]).long()
        self.pooled = torch.randn(batch, 12, generator=random)

    def tokens(self) -> int:
        """Tokens of the joint stream, all samples together."""
        frames, rows, columns = self.grid
        return len(self.lens) * (frames * rows * columns + max(self.lens))


def clip(
    model: HYVideoDiffusionTransformer, plan: CachePlan, inputs: Inputs, call: Call, bf16: bool
) -> list[Tensor]:
    """All predictions of an Euler loop; call(step, x, t, *the other arguments of the model)."""
    device = next(model.parameters()).device
    x, outputs = inputs.x.to(device), []
    rope = rope_tables(inputs.grid, model.rope_dim_list, device=device)
    rest = (inputs.text.to(device), inputs.mask, inputs.pooled.to(device), *rope)
    if model.guidance_embed:
        rest += (torch.full((len(x),), 6016.0, device=device),)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for step, (sigma, following) in enumerate(pairwise((*plan.sigmas, 0.0))):
            t = torch.full((len(x),), 1000 * sigma, device=device)
            outputs.append(call(step, x, t, *rest))
            x = x + outputs[-1].float() * (following - sigma)
    return outputs

"""What every rank of a Wan2.1 14B run holds: by the parameters' shapes and the plans' formulas."""

from __future__ import annotations

import torch

from common import table
from gpu_step import WAN_14B
from profiling_core.cost import bytes_held
from profiling_core.options import resolve_plan
from scaling_model import Clip
from wan.model import WanModel

GB = 1e9
RANKS = (1, 2, 4, 8)
ENCODER = 5_680_910_336 * 2  # bytes of the official text encoder, bf16
PLANS = ("release", "paper", "balanced")


def memory_table(clip: Clip) -> str:
    """GB on each of so many Ulysses ranks with FSDP; anchors of the rank's own tokens."""
    with torch.device("meta"):
        model = WanModel(**WAN_14B)
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    rest = sum(p.numel() for p in model.parameters()) - sum(blocks)
    lines = [
        ["transformer's share, fp32", *((sum(blocks) + rest) * 4 / n for n in RANKS)],
        ["gathered: embeddings and head, fp32", *([0.0] + [rest * 4] * 3)],
        ["gathered: one block, bf16", *([0.0] + [blocks[0] * 2] * 3)],
        ["text encoder's share", *(ENCODER / n for n in RANKS)],
    ]
    for preset in PLANS:
        plan = resolve_plan(preset, "wan2.1-t2v-14B")
        held = [
            bytes_held(
                plan,
                tokens=-(-clip.tokens // n),
                stream_itemsize=4,
                latent_numel=16 * clip.latents * (clip.height // 8) * (clip.width // 8),
            )
            for n in RANKS
        ]
        lines.append([f"anchors of `{preset}`", *held])
    header = [f"Wan2.1 14B, {clip}: GB a rank", *map(str, RANKS)]
    return table(header, [[name, *(f"{n / GB:.2f}" for n in sizes)] for name, *sizes in lines])

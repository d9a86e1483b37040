"""Bit equality with the official transformer, where a checkout of HunyuanVideo is at hand.

HUNYUAN_UPSTREAM=path/to/it python -m pytest tests/hunyuan/test_hunyuan_against_upstream.py
"""

import os

import pytest
import torch

from benchmarks.lib.subjects import random_model
from benchmarks.lib.upstream import CHECKOUTS, upstream_twin
from hyvideo.model import HYVideoDiffusionTransformer
from hyvideo.rope import rope_tables

pytestmark = pytest.mark.skipif(
    CHECKOUTS["hunyuan"] not in os.environ, reason="set HUNYUAN_UPSTREAM to a checkout of it"
)
SIZES = {
    "hidden_size": 128,
    "heads_num": 2,
    "mm_double_blocks_depth": 3,
    "mm_single_blocks_depth": 4,
    "rope_dim_list": (16, 24, 24),
    "text_states_dim": 48,
    "text_states_dim_2": 24,
    "guidance_embed": True,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_transformer(dtype: torch.dtype, batch: int) -> None:
    ours = random_model(lambda: HYVideoDiffusionTransformer(**SIZES), dtype, torch.device("cpu"))
    for parameter in ours.parameters():
        parameter.mul_(3)  # gates that let something through
    cos, sin = rope_tables((3, 8, 8), ours.rope_dim_list)
    inputs = {
        "x": torch.randn(batch, 16, 3, 16, 16),
        "t": torch.tensor([700.0, 300.0])[:batch],
        "text_states": torch.randn(batch, 9, 48),
        "text_mask": torch.ones(batch, 9, dtype=torch.int64),
        "text_states_2": torch.randn(batch, 24),
        "freqs_cos": cos,
        "freqs_sin": sin,
        "guidance": torch.full((batch,), 6016.0, dtype=dtype),
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        mine, official = (model(**inputs)["x"] for model in (ours, upstream_twin(ours)))
    assert torch.equal(mine, official) and mine.std() > 0.1

"""What benchmarks of full-size models run on in tests: the same code at toy sizes."""

from __future__ import annotations

import torch

from benchmarks.speed import gpu

TOY_WAN, TOY_HUNYUAN = "wan2.1-t2v-1.3B", "hunyuan-video-540p"
TOYS = {
    TOY_WAN: gpu.FullWan(
        {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 12, "text_dim": 16, "text_len": 4},
        torch.float32,
        latent=(16, 2, 4, 4),
    ),
    TOY_HUNYUAN: gpu.FullHunyuan(
        {
            "hidden_size": 48,
            "heads_num": 2,
            "mm_double_blocks_depth": 4,
            "mm_single_blocks_depth": 10,
            "rope_dim_list": (8, 8, 8),
            "text_states_dim": 32,
            "text_states_dim_2": 24,
            "guidance_embed": True,
        },
        latent=(16, 2, 4, 4),
        text_tokens=5,
    ),
}

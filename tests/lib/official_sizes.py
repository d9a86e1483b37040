"""Sizes of the official checkpoints, as docs/usage.md has them, and latents of their clips."""

from hyvideo.config import CONFIGS, DEFAULT_MODEL
from hyvideo.vae import VaeSizes
from wan.checks import Sizes

_SHARED = {"text_len": 512, "text_dim": 4096}
_ENCODER, _VAE = 11_361_820_672, 507_570_124
_EMBEDDING = 256_384 * 4096 * 2
_LAYER = 351_394_304  # parameters of a block of the 14B
WAN_14B = Sizes(
    _SHARED | {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
    14_288_491_584,
    14_288_491_584 - 40 * _LAYER,
    _ENCODER,
    _EMBEDDING,
    _VAE,
)
WAN_SMALL = Sizes(
    _SHARED | {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    1_418_996_800,
    1_418_996_800 - 30 * 46_440_704,
    _ENCODER,
    _EMBEDDING,
    _VAE,
)
WAN_480P, WAN_720P, WAN_STILL = (16, 21, 60, 104), (16, 21, 90, 160), (16, 1, 90, 160)

HUNYUAN = CONFIGS[DEFAULT_MODEL]
HUNYUAN_ENCODERS = {"text encoder": 15_010_373_632, "second text encoder": 246_120_960}
HUNYUAN_VAE = VaeSizes(246_478_803)
HUNYUAN_540P, HUNYUAN_720P = (16, 33, 68, 120), (16, 33, 90, 160)
HUNYUAN_STILL = (16, 1, 90, 160)

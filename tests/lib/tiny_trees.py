"""Both trees' configurations on tiny random checkpoints, for tests of the benchmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hunyuan_toys import TINY
from hyvideo.config import HunyuanConfig
from wan.configs import WAN_CONFIGS, WanConfig


def tiny_configs(wan: Path, hunyuan: Path, steps: int) -> tuple[WanConfig, HunyuanConfig]:
    """Clips of 5 frames of 32x32; wan, hunyuan: the checkpoint folders."""
    small = replace(
        WAN_CONFIGS["t2v-mini"],
        sizes=("32*32",),
        default_size="32*32",
        frame_num=5,
        sample_steps=steps,
        ckpt_dir=wan,
    )
    return small, replace(TINY, model_base=hunyuan, infer_steps=steps)

"""Both trees on tiny random checkpoints, for tests of the benchmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.lib.clips import Tree, load
from hunyuan_toys import TINY
from hyvideo.config import CONFIGS as HUNYUAN_CONFIGS
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


def tiny_trees_fp32(wan: Path, hunyuan: Path, steps: int) -> list[Tree]:
    """Both trees, loaded, on their tiny configurations in the place of the miniatures'."""
    small, tiny = tiny_configs(wan, hunyuan, steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WAN_CONFIGS, "t2v-mini", small)
        patch.setitem(HUNYUAN_CONFIGS, "HYVideo-mini", tiny)
        return [load(name, fp32=True) for name in ("wan", "hunyuan")]

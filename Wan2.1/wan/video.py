"""Clips to files: safe names, 8-bit frames, and a file that is complete or not there."""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiling_core.runtime import video_file

if TYPE_CHECKING:
    from torch import Tensor

PROMPT_CHARACTERS = 50


def default_name(
    task: str, size: str, ulysses: int, ring: int, prompt: str, *, still: bool, now: datetime
) -> str:
    """The official pattern task_size_ulysses_ring_prompt_time, as a name safe on every system.

    Unlike the official one the size is written with an x and all but [A-Za-z0-9._-] is replaced,
    so that neither `*` nor a slash, a newline or a dotted path of the prompt gets into the name.
    """
    words = re.sub(r"[^A-Za-z0-9._-]+", "_", prompt)[:PROMPT_CHARACTERS].strip("._-") or "prompt"
    suffix = ".png" if still else ".mp4"
    dimensions = size.replace("*", "x")
    return f"{task}_{dimensions}_{ulysses}_{ring}_{words}_{now:%Y%m%d_%H%M%S}{suffix}"


def check_target(path: Path, *, still: bool) -> None:
    """InputError unless the clip, or the image, can be written at `path`; tried."""
    video_file.check_target(path, "save_file", still=still)


def to_frames(video: "Tensor") -> np.ndarray:
    """(3, F, H, W) in [-1, 1] to uint8 (F, H, W, 3), truncated as the official writer does."""
    scaled = (video.float().clamp(-1, 1) + 1) / 2 * 255
    return scaled.byte().permute(1, 2, 3, 0).cpu().numpy()


def to_image(video: "Tensor") -> np.ndarray:
    """(3, 1, H, W) in [-1, 1] to uint8 (H, W, 3), rounded as the official writer does."""
    scaled = (video[:, 0].float().clamp(-1, 1) + 1) / 2 * 255
    return scaled.add(0.5).clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def save_video(video: "Tensor", path: Path, fps: int, *, rescue: bool = True) -> None:
    """Write an H.264 file at quality 8; `video_file.write_video`."""
    video_file.write_video(to_frames(video), path, fps, "save_file", rescue=rescue)


def save_image(video: "Tensor", path: Path) -> None:
    """Write the only frame of a clip; `video_file.write_image`."""
    video_file.write_image(to_image(video), path, "save_file")

"""Clips to files: safe names, 8-bit frames, and a file that is complete or not there."""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from profiling_core.errors import InputError
from profiling_core.runtime import video_file

if TYPE_CHECKING:
    from torch import Tensor

PROMPT_CHARACTERS = 100


def safe_words(text: str) -> str:
    """`text` with everything but [A-Za-z0-9._-] replaced."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)


def default_name(prompt: str, seed: int, suffix: str = "", *, still: bool, now: datetime) -> str:
    """The official pattern time_seed_prompt, as a name safe on every system.

    Unlike the official one the time has no colons and all but [A-Za-z0-9._-] of the prompt is
    replaced, so that neither a slash nor a newline gets into the name; the suffix, officially
    ignored, follows the prompt.
    """
    words = safe_words(prompt[:PROMPT_CHARACTERS]).strip("._-") or "prompt"
    ending = f"_{safe_words(suffix)}" if suffix else ""
    return f"{now:%Y-%m-%d-%H%M%S}_seed{seed}_{words}{ending}{'.png' if still else '.mp4'}"


def save_folder(save_path: str, suffix: str) -> Path:
    """The folder of the clips, officially made of both options."""
    return Path(f"{save_path}_{suffix}" if suffix else save_path)


def check_target(folder: Path, name: str) -> None:
    """InputError unless the clip, or the image, can be written into `folder`; tried."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"save-path {folder} is a file: name a folder")
    video_file.check_target(folder / name, "save-path", still=name.endswith(".png"))


def to_frames(video: "Tensor") -> np.ndarray:
    """(3, F, H, W) in [0, 1] to uint8 (F, H, W, 3), truncated as the official writer does."""
    scaled = video.float().clamp(0, 1) * 255
    return scaled.byte().permute(1, 2, 3, 0).cpu().numpy()


def save_video(video: "Tensor", path: Path, fps: int, *, rescue: bool = True) -> None:
    """Write an H.264 file at quality 8; `video_file.write_video`."""
    video_file.write_video(to_frames(video), path, fps, "saving", rescue=rescue)


def save_image(video: "Tensor", path: Path) -> None:
    """Write the only frame of a clip; `video_file.write_image`."""
    video_file.write_image(to_frames(video)[0], path, "saving")

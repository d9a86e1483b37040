"""Clips to files: safe names, 8-bit frames, and a file that is complete or not there."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np

from profiling_core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
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
    """InputError unless a file can be written at `path`; tried, since modes alone do not tell."""
    suffixes = IMAGE_SUFFIXES if still else VIDEO_SUFFIXES
    if len(os.fsencode(path.name)) > 255:
        raise InputError(f"save_file {path}: the name is longer than 255 bytes, take a shorter one")
    if path.is_dir():
        raise InputError(f"save_file {path} is a folder: name a file in it")
    if path.suffix.lower() not in suffixes:
        raise InputError(f"save_file {path}: end its name in one of {', '.join(suffixes)}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"save_file {path}: cannot write into {path.parent} ({reason}): "
            "create the folder or name another"
        ) from None


def to_frames(video: "Tensor") -> np.ndarray:
    """(3, F, H, W) in [-1, 1] to uint8 (F, H, W, 3), truncated as the official writer does."""
    scaled = (video.float().clamp(-1, 1) + 1) / 2 * 255
    return scaled.byte().permute(1, 2, 3, 0).cpu().numpy()


def to_image(video: "Tensor") -> np.ndarray:
    """(3, 1, H, W) in [-1, 1] to uint8 (H, W, 3), rounded as the official writer does."""
    scaled = (video[:, 0].float().clamp(-1, 1) + 1) / 2 * 255
    return scaled.add(0.5).clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def save_video(video: "Tensor", path: Path, fps: int) -> None:
    """Write an H.264 file at quality 8; InputError when that fails, and then no file is left."""
    frames = to_frames(video)
    with _complete_or_absent(path) as temporary:
        iio.imwrite(
            temporary,
            frames,
            plugin="FFMPEG",
            fps=fps,
            codec="libx264",
            quality=8,
            macro_block_size=1,  # else sizes that are no multiple of 16 are resized silently
            ffmpeg_log_level="quiet",
        )
        _check_complete(temporary, len(frames))


def save_image(video: "Tensor", path: Path) -> None:
    """Write the only frame of a clip; InputError when that fails, and then no file is left."""
    with _complete_or_absent(path) as temporary:
        iio.imwrite(temporary, to_image(video))


def _check_complete(path: Path, frames: int) -> None:
    """OSError unless the file has so many frames: ffmpeg's exit code is lost inside imageio."""
    try:
        found, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        found = 0  # not even readable
    if found != frames:
        raise OSError(f"{found} of {frames} frames are in the file: is the disk full?")


@contextmanager
def _complete_or_absent(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` if the block succeeds, else is removed.

    It lies in a folder of its own: an interrupted ffmpeg may make its file after we are gone, and
    cannot once the folder is.
    """
    try:
        with tempfile.TemporaryDirectory(
            prefix=".", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            temporary = Path(folder) / f"clip{path.suffix}"
            yield temporary
            os.replace(temporary, path)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"save_file {path}: writing failed ({reason})") from error

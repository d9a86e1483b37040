"""Frames to files: a clip or an image is complete or not there."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np

from profiling_core.errors import InputError
from profiling_core.files import first_line


def write_video(frames: np.ndarray, path: Path, fps: int, option: str) -> None:
    """Write uint8 frames (F, H, W, 3) as an H.264 file of quality 8.

    InputError that names `option` when that fails, and then no file is left.
    """
    with _complete_or_absent(path, option) as temporary:
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


def write_image(frame: np.ndarray, path: Path, option: str) -> None:
    """Write one uint8 frame (H, W, 3); InputError when that fails, and then no file is left."""
    with _complete_or_absent(path, option) as temporary:
        iio.imwrite(temporary, frame)


def _check_complete(path: Path, frames: int) -> None:
    """OSError unless the file has so many frames: ffmpeg's exit code is lost inside imageio."""
    try:
        found, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        found = 0  # not even readable
    if found != frames:
        raise OSError(f"{found} of {frames} frames are in the file: is the disk full?")


@contextmanager
def _complete_or_absent(path: Path, option: str) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` if the block succeeds, else is removed.

    It lies in a folder of its own: an interrupted ffmpeg may make its file after we are gone, and
    cannot once the folder is. The folder of `path` is made where it is missing.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            temporary = Path(folder) / f"clip{path.suffix}"
            yield temporary
            os.replace(temporary, path)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{option} {path}: writing failed ({first_line(error)})") from error

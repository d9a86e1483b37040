"""Frames to files: a clip or an image is complete or not there, and frames are never lost."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np

from profiling_core.errors import InputError
from profiling_core.files import check_writable, first_line, whole_file

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CODEC = "libx264"
TRIAL_SECONDS = 60


def check_target(path: Path, option: str, *, still: bool) -> None:
    """InputError unless a clip, or an image, can be written at `path`; both are tried."""
    check_writable(path, option)
    suffixes = IMAGE_SUFFIXES if still else VIDEO_SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{option} {path}: end its name in one of {', '.join(suffixes)}")
    fault = _image_fault(path.suffix) if still else _video_fault(os.getenv("IMAGEIO_FFMPEG_EXE"))
    if fault is not None:
        raise InputError(f"{option} {path}: {fault}")


def write_video(frames: np.ndarray, path: Path, fps: int, option: str, *, rescue: bool) -> None:
    """Write uint8 frames (F, H, W, 3) as an H.264 file of quality 8.

    InputError that names `option` when that fails. No part of the file is left then, and with
    `rescue` the frames are kept as PNG files, whose place the error names.
    """
    with _written(path, option, frames if rescue else None) as temporary:
        iio.imwrite(
            temporary,
            frames,
            plugin="FFMPEG",
            fps=fps,
            codec=CODEC,
            quality=8,
            macro_block_size=1,  # else sizes that are no multiple of 16 are resized silently
            ffmpeg_log_level="quiet",
        )
        _check_complete(temporary, len(frames))


def write_image(frame: np.ndarray, path: Path, option: str) -> None:
    """Write one uint8 frame (H, W, 3); on an error as `write_video`."""
    with _written(path, option, frame[None]) as temporary:
        temporary.write_bytes(_encoded(frame, path.suffix))


def _encoded(frame: np.ndarray, suffix: str) -> bytes:
    """An image as bytes: imageio closes a file again where a full disk had failed it already."""
    return iio.imwrite("<bytes>", frame, extension=suffix)


def _check_complete(path: Path, frames: int) -> None:
    """OSError unless the file has so many frames: ffmpeg's exit code is lost inside imageio."""
    try:
        found, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        found = 0  # not even readable
    if found != frames:
        raise OSError(f"{found} of {frames} frames are in the file: is the disk full?")


@contextmanager
def _written(path: Path, option: str, frames: np.ndarray | None) -> Iterator[Path]:
    """`whole_file` with errors as InputError, after which the frames are kept some other way."""
    try:
        with whole_file(path) as temporary:
            yield temporary
    except (OSError, RuntimeError, ValueError) as error:
        kept = "" if frames is None else f"; {_rescued(frames, path)}"
        raise InputError(f"{option} {path}: writing failed ({first_line(error)}){kept}") from error


def _rescued(frames: np.ndarray, path: Path) -> str:
    """Keep the frames as PNG files beside `path`, else among the temporary files; says where."""
    for place in (path.parent, Path(tempfile.gettempdir())):
        folder = place / f"{path.stem[:60]}.frames-{os.getpid()}"
        try:
            folder.mkdir(parents=True)
            for number, frame in enumerate(frames):
                (folder / f"{number:05d}.png").write_bytes(_encoded(frame, ".png"))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return f"the frames are kept as PNG in {folder}"
    return "the frames could not be kept either"


@cache
def _video_fault(executable: str | None) -> str | None:
    """Why ffmpeg cannot encode here; None where it can. executable: that the environment names."""
    way_out = f"set IMAGEIO_FFMPEG_EXE to an ffmpeg with {CODEC}, or pip install imageio-ffmpeg"
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo"]
        command += ["-pix_fmt", "rgb24", "-s", "16x16", "-i", "-", "-c:v", CODEC, "-f", "null", "-"]
        frame = bytes(16 * 16 * 3)
        done = subprocess.run(command, input=frame, capture_output=True, timeout=TRIAL_SECONDS)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        return f"ffmpeg does not run ({first_line(error)}): {way_out}"
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").split("\n")[0] or f"exit code {done.returncode}"
    return f"ffmpeg cannot encode with {CODEC} ({said}): {way_out}"


@cache
def _image_fault(suffix: str) -> str | None:
    try:
        _encoded(np.zeros((16, 16, 3), np.uint8), suffix)
    except (OSError, RuntimeError, ValueError) as error:
        return f"images of this kind cannot be written ({first_line(error)}): take .png"
    return None

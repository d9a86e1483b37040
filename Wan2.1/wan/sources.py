"""What a VACE clip is made from: a video, a mask, pictures; no torch, so that bad input ends early.

ffmpeg gives the frames of a file upright, with 8 bits and at a constant rate.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL.Image import Image

from profiling_core.errors import InputError

from .configs import MOST_LATENTS, check_frame_num
from .pictures import read_picture

CELL = 16  # pixels along a side of a token
LONGEST = 21  # latent frames of a clip of the full area: 81 frames
LEAST = 5  # frames of a video: two latent frames

# it warns of a video that is turned upright as its file asks
logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Video:
    """A video file; size: (width, height)."""

    path: Path
    option: str
    size: tuple[int, int]
    frames: int

    def at(self, numbers: Collection[int]) -> Iterator[np.ndarray]:
        """The frames of these numbers in their order in the file, uint8 (H, W, 3)."""
        _, found = _opened(self.path, self.option)
        width, height = self.size
        for number, frame in enumerate(found):
            if number in numbers:
                yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)


@dataclass(frozen=True)
class Sources:
    """The files of one clip, and its size (width, height) and number of frames."""

    size: tuple[int, int]
    frame_num: int
    video: Video | None = None
    mask: Video | None = None
    pictures: tuple[Image, ...] = ()

    @property
    def encoded_frames(self) -> int:
        """Frames of a clip whose latent has also the pictures', one latent frame each."""
        return self.frame_num + 4 * len(self.pictures)


def read_sources(
    src_video: str | Path | None,
    src_mask: str | Path | None,
    src_ref_images: Sequence[str | Path],
    size: tuple[int, int],
    frame_num: int,
    prefix: str = "",
) -> Sources:
    """Check the files; InputError names the option, after `prefix`, the file and what is wrong.

    A video decides on the number of frames and on the aspect, `size` (width, height) gives the
    area; without one both are as given. Officially a mask without a video is ignored, and one of
    another length or size than the video is cut and scaled to it; here both are errors.
    """
    pictures = tuple(read_picture(Path(p), f"{prefix}src_ref_images") for p in src_ref_images)
    if src_video is None:
        if src_mask is not None:
            raise InputError(
                f"{prefix}src_mask {src_mask} has no video to mask: name one in {prefix}src_video"
            )
        return Sources(size, frame_num, pictures=pictures)
    video, mask = read_video(Path(src_video), f"{prefix}src_video"), None
    if src_mask is not None:
        mask = read_video(Path(src_mask), f"{prefix}src_mask")
        if (mask.size, mask.frames) != (video.size, video.frames):
            raise InputError(
                f"{_shape(mask)} and {_shape(video)}: take a mask of the video's size and length"
            )
    return Sources(*clip_of(video, size), video, mask, pictures)


def read_video(path: Path, option: str) -> Video:
    """A video file, decoded to its end; InputError unless it has 5 frames or more."""
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"{option} {path} {what}: name a video")
    size, frames = _opened(path, option)
    video = Video(path, option, size, sum(1 for _ in frames))
    if video.frames < LEAST:
        raise InputError(f"{_shape(video)}: take a video of {LEAST} frames or more")
    return video


def clip_of(video: Video, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """(width, height) and number of frames, 4n + 1, of the clip that a video asks for.

    Officially: tokens of one frame are at most those of the area and those of the video, and tokens
    of the clip at most 21 times the area's, so that a small video may be longer than 81 frames.
    """
    width, height = video.size
    area = size[0] * size[1] // CELL**2
    tokens = min(area, (width // CELL) * (height // CELL))
    if tokens:
        count = min((video.frames - 1) // 4 + 1, LONGEST * area // tokens)
        tokens = min(tokens, LONGEST * area // count)
        rows = round(sqrt(tokens * height / width))
        columns = tokens // rows if rows else 0
    if not tokens or not 1 <= min(rows, columns) <= max(rows, columns) <= MOST_LATENTS // 2:
        raise InputError(f"{_shape(video)}: take one of {CELL}x{CELL} or more and a usual aspect")
    check_frame_num(4 * count - 3)
    return (columns * CELL, rows * CELL), 4 * count - 3


def sampled(frames: int, count: int) -> list[int]:
    """Numbers of `count` of a video's frames, evenly over its length; the last is among them.

    Officially the k-th is the frame that is shown at k (frames - 1/2) / (count - 1) frame
    durations, the earlier one where two meet.
    """
    return [max(0, -(-k * (2 * frames - 1) // (2 * count - 2)) - 1) for k in range(count)]


def _shape(video: Video) -> str:
    width, height = video.size
    frames = "frame" if video.frames == 1 else "frames"
    return f"{video.option} {video.path} has {video.frames} {frames} of {width}x{height}"


def _opened(path: Path, option: str) -> tuple[tuple[int, int], Iterator[bytes]]:
    """The size (width, height) of a file's frames, and the frames."""
    reader = imageio_ffmpeg.read_frames(path)
    try:
        return next(reader)["size"], reader
    except (OSError, RuntimeError, IndexError, KeyError, ValueError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{option} {path} cannot be read as a video ({said[-1]}): take a whole MP4 file"
        ) from None

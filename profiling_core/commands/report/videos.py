"""Videos that are embedded in the page: checked, measured and encoded."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiling_core.errors import ProfileError

INSTALL = "pip install 'imageio[ffmpeg]'"


@dataclass(frozen=True)
class Video:
    """One embedded video."""

    name: str
    mime: str
    frames: int
    fps: float
    base64: str


def read_videos(paths: Sequence[str | os.PathLike[str]]) -> list[Video]:
    """The videos at these paths; ProfileError for the first that cannot be embedded."""
    return [read_video(Path(path)) for path in paths]


def read_video(path: Path) -> Video:
    """One mp4 or webm file; ProfileError when it is missing, something else, or damaged."""
    if not path.is_file():
        raise ProfileError(f"video {path}: no such file")
    content = path.read_bytes()
    mime = _mime(content)
    if mime is None:
        raise ProfileError(f"video {path}: neither mp4 nor webm, which is what browsers play")
    frames, fps = _frames(path)
    return Video(path.stem, mime, frames, fps, base64.b64encode(content).decode())


def _mime(content: bytes) -> str | None:
    """By the first bytes: an mp4's "ftyp" box, or the EBML header and "webm"."""
    if content[4:8] == b"ftyp":
        return "video/mp4"
    if content[:4] == b"\x1a\x45\xdf\xa3" and b"webm" in content[:64]:
        return "video/webm"
    return None


def _frames(path: Path) -> tuple[int, float]:
    """Number of frames and frames per second."""
    try:
        from imageio_ffmpeg import count_frames_and_secs, read_frames
    except ImportError as error:
        raise ProfileError(f"embedding videos needs imageio-ffmpeg: {INSTALL} ({error})") from None
    try:
        reader = read_frames(str(path))
        fps = float(next(reader)["fps"])
        reader.close()
        frames = int(count_frames_and_secs(str(path))[0])
    except (OSError, RuntimeError, KeyError, StopIteration) as error:
        reason = (str(error).strip().splitlines() or ["no frame"])[-1]
        raise ProfileError(f"video {path}: cannot be read ({reason}): write it again") from None
    if frames < 1 or not fps > 0:
        raise ProfileError(f"video {path}: {frames} frames at {fps:g} fps, expected some")
    return frames, fps

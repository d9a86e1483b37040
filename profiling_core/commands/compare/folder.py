"""The folder of a comparison: its settings, its rows, its full clips; resumable at any moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from profiling_core.commands.compare.prompts import Pair
from profiling_core.commands.compare.rows import Rows
from profiling_core.errors import CompareError
from profiling_core.files import UNFINISHED, check_writable, write_whole
from profiling_core.plan.describe import format_bytes

FORMAT = 1
FOLDERS = ("full", "strips")
FRAMES_OF_A_STRIP = 4
LARGEST_THUMBNAIL = 160  # pixels
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Reference:
    """A full run: its clip (3, F, H, W) in [-1, 1] and its latent, fp32 on the CPU."""

    video: Tensor
    latent: Tensor


def check_out(path: Path, settings: Mapping[str, Any], clip_bytes: int, clips: int) -> None:
    """CompareError unless a comparison with these settings can go into `path`; writes nothing."""
    if path.exists() and not path.is_dir():
        raise CompareError(f"--out {path}: this is a file, name a folder")
    if (path / "settings.json").exists():
        _check_settings(path, settings)
    elif path.is_dir() and any(not e.name.startswith(UNFINISHED) for e in path.iterdir()):
        raise CompareError(
            f"--out {path}: the folder is not empty and holds no comparison: name a new one"
        )
    existing = check_writable(path / "settings.json", "--out")
    kept = len(list((path / "full").glob("*.safetensors"))) if path.exists() else 0
    needed, free = max(0, clips - kept) * clip_bytes, shutil.disk_usage(existing).free
    if needed > free:
        raise CompareError(
            f"--out {path}: the full clips need {format_bytes(needed)}, {format_bytes(free)} are "
            "free: name another folder, or take fewer prompts"
        )


class Folder:
    """The folder at `path`, for which `check_out` was called; `rows` while it is opened."""

    rows: Rows

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def opened(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Make the folder where it is missing; CompareError when another process works in it."""
        for name in FOLDERS:
            (self.path / name).mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            if not (self.path / "settings.json").exists():
                self.write("settings.json", _dumped(settings))
            self.rows = Rows(self.path / "rows.jsonl")
            yield

    def write(self, name: str, text: str) -> Path:
        write_whole(self.path / name, text.encode())
        return self.path / name

    def keep_reference(self, pair: Pair, reference: Reference) -> None:
        """Store a full run; the file is whole or not there."""
        tensors = {"video": reference.video, "latent": reference.latent}
        content = save({name: t.contiguous() for name, t in tensors.items()})
        write_whole(self._reference_path(pair), content)

    def reference(self, pair: Pair) -> Reference | None:
        """The stored full run; None when there is none yet."""
        path = self._reference_path(pair)
        if not path.exists():
            return None
        try:
            return Reference(**load_file(path))
        except (SafetensorError, TypeError, OSError) as error:
            raise CompareError(f"{path}: damaged ({error}): remove it and start again") from None

    def keep_strip(self, pair: Pair, plan_sha256: str | None, video: Tensor) -> None:
        """Store four frames of the clip beside each other as a small JPEG."""
        write_whole(self.strip(pair, plan_sha256), strip_of(video))

    def strip(self, pair: Pair, plan_sha256: str | None) -> Path:
        return self.path / "strips" / f"{(plan_sha256 or 'full')[:16]}-{pair.key}.jpg"

    def _reference_path(self, pair: Pair) -> Path:
        return self.path / "full" / f"{pair.key}.safetensors"


def to_frames(video: Tensor) -> np.ndarray:
    """(3, F, H, W) in [-1, 1] to uint8 (F, H, W, 3), rounded."""
    scaled = (video.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def strip_of(video: Tensor) -> bytes:
    """Frames from first to last beside each other, as JPEG."""
    from io import BytesIO

    from PIL import Image

    count = min(FRAMES_OF_A_STRIP, video.shape[1])
    picks = torch.linspace(0, video.shape[1] - 1, count).round().int().tolist()
    pictures = [Image.fromarray(frame) for frame in to_frames(video[:, picks])]
    for picture in pictures:
        picture.thumbnail((LARGEST_THUMBNAIL, LARGEST_THUMBNAIL))
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * count, height))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * width, 0))
    buffer = BytesIO()
    strip.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, where the system has such locks; it ends with the process."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes would do the same runs twice
        yield
        return
    with open(path / ".lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CompareError(
                f"--out {path}: another process works there: wait, or name another folder"
            ) from None
        yield


def _dumped(settings: Mapping[str, Any]) -> str:
    document = {"format": FORMAT, "settings": dict(settings)}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Every setting as in the folder; CompareError says which are not."""
    file = path / "settings.json"
    try:
        document = json.loads(file.read_bytes())
        before = document["settings"]
        known = document["format"] == FORMAT and isinstance(before, dict)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise CompareError(f"{file}: not the settings of a comparison: name another --out")
    now = json.loads(_dumped(settings))["settings"]  # tuples as lists, as in the file
    changed = [
        f"{name} was {_shown(before, name)}, is {_shown(now, name)}"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise CompareError(
            f"--out {path} holds a comparison with other settings: {'; '.join(changed)}: name "
            "another folder, or go back to them"
        )


def _shown(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name)
    return "not set" if value is None else str(value)

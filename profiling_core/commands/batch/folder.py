"""The folder of a batch: finished clips with their rows, summaries, and nothing half-written.

DIR/clips/NAME.mp4 with NAME.jpg (four frames) and NAME.json: its row, written last, so that a clip
without it is not finished. DIR/failed/NAME.txt: the errors of a clip that failed.
DIR/pairs/KEY.safetensors: a clip in fp16, as long as one of the same job with another plan is still
to be compared with it. With workers on several machines DIR lies on a file system they share.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from profiling_core.commands.batch.clips import Clip
from profiling_core.errors import BatchError
from profiling_core.files import UNFINISHED, write_whole
from profiling_core.runtime.terminal import csv_cell

COLUMNS = (
    "name",
    "prompt",
    "pictures",
    "tree",
    "seed",
    "plan",
    "state",
    "psnr",
    "speedup",
    "denoise_seconds",
    "decode_seconds",
    "seconds",
    "block_runs",
    "block_runs_full",
    "attempts",
    "worker",
    "error",
)

SUMMARIES = ("summary.csv", "summary.json", "index.html")


class Folder:
    """One folder, one batch at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self.work = path, path / ".work"

    def check(self) -> None:
        """BatchError unless it is a folder of a batch, or one can be made there."""
        if self.path.exists() and not self.path.is_dir():
            raise BatchError(f"--out {self.path}: this is a file, name a folder")
        foreign = [
            entry.name
            for entry in (self.path.iterdir() if self.path.is_dir() else ())
            if entry.name not in ("clips", "failed", "pairs", ".work", ".lock")
            and not entry.name.startswith(UNFINISHED)
            and entry.name not in SUMMARIES
        ]
        if foreign:
            raise BatchError(
                f"--out {self.path}: holds {foreign[0]}, which is of no batch: name another folder"
            )

    @contextmanager
    def opened(self) -> Iterator[Folder]:
        """Made where missing, and locked; what an interrupted run left is removed."""
        from profiling_core.commands.compare.folder import locked

        for name in ("clips", "failed", "pairs"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            self.clear()
            self.work.mkdir()
            try:
                yield self
            finally:
                self.clear()

    def done(self, clip: Clip) -> dict[str, Any] | None:
        """The row of a finished clip of this job."""
        row, video = self._clips(clip, ".json"), self._clips(clip, ".mp4")
        if not (row.is_file() and video.is_file()):
            return None
        try:
            found = json.loads(row.read_text(encoding="utf-8"))
        except ValueError:
            return None
        if not isinstance(found, dict) or found.get("key") != clip.key:
            return None
        size = video.stat().st_size
        return found if 0 < size == found.get("bytes", size) else None  # else cut off since

    def keep(self, clip: Clip, row: dict[str, Any], made_in: Path) -> None:
        """Move a clip's files in; the row comes last. BatchError for a clip without content."""
        row["bytes"] = (made_in / "clip.mp4").stat().st_size
        if row["bytes"] == 0:
            raise BatchError("the clip's file is empty")
        self._clips(clip, ".json").unlink(missing_ok=True)
        for ending in (".mp4", ".jpg"):
            os.replace(made_in / f"clip{ending}", self._clips(clip, ending))
        tensor = made_in / "clip.safetensors"
        if tensor.exists():
            os.replace(tensor, self.tensor(clip))
        self.write_row(clip, row)
        self.failure(clip).unlink(missing_ok=True)

    def write_row(self, clip: Clip, row: dict[str, Any]) -> None:
        text = json.dumps(row, indent=1, ensure_ascii=False) + "\n"
        write_whole(self._clips(clip, ".json"), text.encode())

    def write_failure(self, clip: Clip, errors: Sequence[str]) -> None:
        """Every attempt's error."""
        write_whole(self.failure(clip), ("\n\n".join(errors) + "\n").encode())

    def failure(self, clip: Clip) -> Path:
        return self.path / "failed" / f"{clip.stem}.txt"

    def tensor(self, clip: Clip) -> Path:
        return self.path / "pairs" / f"{clip.key[:32]}.safetensors"

    def drop_tensors(self, kept: Sequence[Clip]) -> None:
        """All but those of the clips that wait for their other half."""
        names = {self.tensor(clip).name for clip in kept}
        for path in (self.path / "pairs").iterdir():
            if path.name not in names:
                path.unlink()

    def write_summary(self, rows: Sequence[dict[str, Any]]) -> None:
        """summary.csv and summary.json, in the order of the jobs."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in rows)
        write_whole(self.path / "summary.csv", text.getvalue().encode())
        write_whole(
            self.path / "summary.json",
            (json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n").encode(),
        )

    def _clips(self, clip: Clip, ending: str) -> Path:
        return self.path / "clips" / f"{clip.stem}{ending}"

    def reserve(self, clips: int) -> None:
        """Take the room that summary and index of so many clips need; `clear` gives it back."""
        written = sum((self.path / name).stat().st_size for name in SUMMARIES)
        (self.work / "reserve").write_bytes(bytes(2 * written + 2048 * clips))

    def clear(self) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self.work, ignore_errors=True)


def check_names(clips: Sequence[tuple[int, Clip]]) -> list[str]:
    """What is wrong with two clips of one name, or of one content."""
    found: list[str] = []
    names: dict[str, int] = {}
    keys: dict[str, int] = {}
    for number, clip in clips:
        name = clip.stem.casefold()
        if clip.key in keys:
            found.append(f"line {number}: this is the clip of line {keys[clip.key]} once more")
        elif name in names:
            found.append(f"line {number}: its files are called as those of line {names[name]}")
        names.setdefault(name, number)
        keys.setdefault(clip.key, number)
    return found


def own_folder(work: Path) -> Path:
    """A folder for one attempt, as long as the batch runs; a killed process leaves it behind."""
    return Path(tempfile.mkdtemp(dir=work))

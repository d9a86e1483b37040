"""Clips in the layout of the official tools of VBench and FID, and the commands to run there.

VBench reads a folder a method, takes the text before the last "-<number>" of a file's name as its
prompt, and does not look into what it cannot play. No file system takes every prompt as a name:
what one of them forbids (/ \\ : * ? " < > | and control characters) becomes a space, and a name is
cut at 200 bytes; two prompts that then have one name get a number. The prompts themselves are in
prompts.json, which VBench takes as --prompt_file. n counts the seeds, from 0.

FID tools read all pictures of one folder, without looking deeper.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from profiling_core.commands.compare.folder import to_frames
from profiling_core.commands.compare.prompts import Pair
from profiling_core.files import write_whole
from profiling_core.trees.tree_model import TreeModel

MOST_NAME_BYTES = 200  # of 255, and of the 260 characters of a whole path on Windows
FORBIDDEN = r'[/\\:*?"<>|\x00-\x1f\x7f]+'
# what VBench measures on clips of one's own prompts
VBENCH = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)


class Exports:
    """Where the clips go: DIR/videos/<method>/<prompt>-<n>.mp4 and DIR/frames/<method>/*.png."""

    def __init__(self, root: Path, model: TreeModel, pairs: Sequence[Pair]) -> None:
        self.root, self.model = root, model
        prompts = {pair.prompt_number: pair.prompt for pair in pairs}
        self.names = dict(zip(prompts, file_names(list(prompts.values())), strict=True))

    def video(self, pair: Pair, label: str) -> Path:
        return (
            self.root
            / "videos"
            / label
            / f"{self.names[pair.prompt_number]}-{pair.seed_number}.mp4"
        )

    def frame(self, pair: Pair, label: str, number: int) -> Path:
        return self.root / "frames" / label / f"{pair.key}-{number:04d}.png"

    def has(self, pair: Pair, label: str) -> bool:
        last = self.model.clip_shape[0] - 1
        return self.video(pair, label).is_file() and self.frame(pair, label, last).is_file()

    def write(self, pair: Pair, label: str, video: Any) -> None:
        """The clip as mp4, and every frame as PNG, the last of them when all others are there."""
        from PIL import Image

        path = self.video(pair, label)
        for folder in (path.parent, self.root / "frames" / label):
            folder.mkdir(parents=True, exist_ok=True)
        self.model.save(video, path)
        for number, frame in enumerate(to_frames(video)):
            buffer = BytesIO()
            Image.fromarray(frame).save(buffer, "PNG")
            write_whole(self.frame(pair, label, number), buffer.getvalue())

    def write_prompts(self, pairs: Sequence[Pair]) -> None:
        """videos/prompts.json: the prompt of every file name, the same for all methods."""
        (self.root / "videos").mkdir(parents=True, exist_ok=True)
        prompts = {self.video(pair, "full").name: pair.prompt for pair in pairs}
        text = json.dumps(prompts, indent=1, ensure_ascii=False) + "\n"
        write_whole(self.root / "videos" / "prompts.json", text.encode())

    def commands(self, labels: Sequence[str]) -> list[str]:
        """The commands that measure the written clips with the official tools."""
        videos, frames = self.root.absolute() / "videos", self.root.absolute() / "frames"
        dimensions = " ".join(VBENCH)
        found = [
            f"vbench evaluate --videos_path {_quoted(videos / label)} --dimension {dimensions} "
            f"--mode=custom_input --prompt_file {_quoted(videos / 'prompts.json')}"
            for label in labels
        ]
        return found + [
            f"fidelity --gpu 0 --fid --input1 {_quoted(frames / label)} "
            f"--input2 {_quoted(frames / 'full')}"
            for label in labels
            if label != "full"
        ]


def file_names(prompts: Sequence[str]) -> list[str]:
    """A name for every prompt, without ending, that no file system refuses and no other has."""
    taken: set[str] = set()
    names = []
    for prompt in prompts:
        name, number = file_name(prompt), 2
        while name.casefold() in taken:
            name = f"{file_name(prompt, MOST_NAME_BYTES - 8)} ({number})"
            number += 1
        taken.add(name.casefold())
        names.append(name)
    return names


def file_name(prompt: str, most: int = MOST_NAME_BYTES) -> str:
    """The prompt without what a file system forbids, at most so many bytes of UTF-8."""
    name = " ".join(re.sub(FORBIDDEN, " ", prompt).split()).lstrip(".")
    return name.encode()[:most].decode(errors="ignore").strip() or "prompt"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))

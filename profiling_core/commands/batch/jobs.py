"""The jobs file: one JSON object a line, checked before anything runs."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from profiling_core.commands.arguments import object_of, read_lines
from profiling_core.commands.compare.prompts import LARGEST_SEED, Prompt, Text
from profiling_core.errors import BatchError
from profiling_core.trees.tree_model import ModelRequest

MOST_NAME_BYTES = 200  # file systems take 255, endings and temporary names included
SIGNS = " .,()+=-"  # in a name, though not first
JOINERS = "\u200c\u200d"  # between the letters of Persian and of India's scripts

MOST_SHOWN = 300  # characters of a mistake


class Job(Prompt):
    """One clip. What is not given is the default of the tree's own command line.

    size: width*height in pixels; plan: a preset or a plan file, absent: every step is computed;
    name: of the clip's files, absent: made from the prompt and what identifies the job.
    """

    tree: Literal["wan", "hunyuan"]
    task: Text | None = None  # of HunyuanVideo: its --model
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0
    size: Text | None = None
    frame_num: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    solver: Text | None = None
    shift: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    guidance: Annotated[float, Field(allow_inf_nan=False)] | None = None
    plan: Text | None = None
    ckpt_dir: Text | None = None
    dit_weight: Text | None = None
    name: str | None = None

    @field_validator("name")
    @classmethod
    def _names_a_file(cls, name: str | None) -> str | None:
        if name is None:
            return None
        if not (name and _letter(name[0]) and all(_letter(s) or s in SIGNS for s in name)):
            raise ValueError(
                f"{name[:60]!r} is no name of a file: a letter, digit or _, then also spaces and "
                f"{SIGNS.strip()}"
            )
        if (size := len(name.encode())) > MOST_NAME_BYTES:
            raise ValueError(
                f"{name[:20]!r}... has {size} bytes of UTF-8, expected at most {MOST_NAME_BYTES}"
            )
        return unicodedata.normalize("NFC", name)

    @property
    def request(self) -> ModelRequest:
        """Model and clip, as the trees understand it."""
        return ModelRequest.of(self, self.task)


@dataclass(frozen=True)
class Line:
    """A job and the number of its line, from 1."""

    number: int
    job: Job


def read_jobs(path: Path) -> tuple[list[Line], list[str]]:
    """The jobs, and what is wrong with the other lines; empty lines and # are skipped.

    BatchError for a file that cannot be read or holds no line at all.
    """
    lines, mistakes = [], []
    names: dict[str, int] = {}
    same: dict[str, int] = {}
    for number, text in enumerate(read_lines(path, "jobs file", BatchError), start=1):
        if not text or text.startswith("#"):
            continue
        try:
            job = object_of(text, Job, BatchError).beside(path.parent)
            if job.name is not None and job.name.casefold() in names:
                earlier = names[job.name.casefold()]
                raise BatchError(f"the name {job.name!r} is that of line {earlier}, too")
            content = job.model_dump_json(exclude={"name"})
            if content in same:
                raise BatchError(f"this is the job of line {same[content]} once more")
        except BatchError as error:
            mistakes.append(mistake_in(number, error))
            continue
        names[(job.name or f"/{number}").casefold()] = same[content] = number
        lines.append(Line(number, job))
    if not lines and not mistakes:
        raise BatchError(f"{path}: no job in it, expected one JSON object a line")
    return lines, mistakes


def _letter(sign: str) -> bool:
    """A letter, a mark on one or a digit, of any script."""
    return sign in "_" + JOINERS or unicodedata.category(sign)[0] in "LMN"


def mistake_in(number: int, error: Exception) -> str:
    """One line on a line that cannot be used; values of any length are cut."""
    text = " ".join(str(error).split())
    return f"line {number}: {text[:MOST_SHOWN]}{'...' if len(text) > MOST_SHOWN else ''}"

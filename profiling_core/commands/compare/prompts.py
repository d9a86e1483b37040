"""The prompts file, the seeds, and the clips that they ask for."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from profiling_core.commands.arguments import object_of, read_lines
from profiling_core.commands.compare.rows import Clip
from profiling_core.errors import CompareError
from profiling_core.plan.schema import Checked
from profiling_core.trees.tree_model import NO_PICTURES, Pictures

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_SEEDS = 10_000
LARGEST_SEED = 2**63 - 1
NOT_IN_A_LINE = ("Cc", "Zl", "Zp")  # control characters, line and paragraph separators
Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]  # no path holds a zero byte


class Prompt(Checked):
    """A prompt and the files of the pictures that its clip begins and ends with."""

    prompt: Annotated[str, Field(min_length=1)]
    image: Text | None = None
    last_image: Text | None = None

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is empty: say what is to be seen")
        return prompt

    @property
    def pictures(self) -> Pictures:
        given = (self.image, self.last_image)
        return Pictures(*(None if path is None else Path(path) for path in given))

    def beside(self, folder: Path) -> Self:
        """The same with whole paths; pictures lie relative to the folder."""
        given = {"image": self.image, "last_image": self.last_image}
        whole = {n: str((folder / p).absolute()) for n, p in given.items() if p is not None}
        return self.model_copy(update=whole)


@dataclass(frozen=True)
class Pair:
    """One clip: a prompt and a seed, and their places in the lists."""

    prompt: str
    seed: int
    prompt_number: int
    seed_number: int
    pictures: Pictures = NO_PICTURES

    @property
    def clip(self) -> Clip:
        """What tells it from all others, as in `Row.clip`."""
        return self.prompt, self.seed, self.pictures.sha256

    @property
    def key(self) -> str:
        """A file name of its own among all clips."""
        text = self.prompt + (self.pictures.sha256 or "")
        return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-{self.seed}"


def pairs_of(prompts: Iterable[Prompt], seeds: list[int]) -> tuple[Pair, ...]:
    """Every prompt with every seed."""
    return tuple(
        Pair(one.prompt, seed, n, k, pictures)
        for n, one in enumerate(prompts)
        for pictures in [one.pictures]  # whose content is read once
        for k, seed in enumerate(seeds)
    )


def read_prompts(path: Path) -> dict[int, Prompt]:
    """By line: a prompt a line, UTF-8; of a .jsonl file an object with its pictures.

    Empty lines and lines that begin with # are skipped. CompareError names the line that holds a
    control character, no UTF-8, no such object, or a prompt again.
    """
    found: dict[Prompt, int] = {}
    for number, line in enumerate(read_lines(path, "--prompts", CompareError), start=1):
        if not line or line.startswith("#"):
            continue
        try:
            one = _prompt(line, path)
        except CompareError as error:
            raise CompareError(f"--prompts {path}: line {number}: {error}") from None
        for character in one.prompt:
            if unicodedata.category(character) in NOT_IN_A_LINE:
                raise CompareError(
                    f"--prompts {path}: line {number} holds the control character "
                    f"U+{ord(character):04X}: write plain text"
                )
        if one in found:
            raise CompareError(
                f"--prompts {path}: line {number} repeats line {found[one]}: take more --seeds "
                "for more clips of one prompt"
            )
        found[one] = number
    if not found:
        raise CompareError(f"--prompts {path}: no prompt in it, expected one a line")
    return {number: one for one, number in found.items()}


def _prompt(line: str, path: Path) -> Prompt:
    if path.suffix != ".jsonl":
        return Prompt(prompt=line)
    return object_of(line, Prompt, CompareError).beside(path.parent)


def read_seeds(text: str) -> list[int]:
    """How many, counted from 0 ("3"), or which ones, with commas ("7,8,9", alone "42,")."""
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise CompareError(f"--seeds {text!r}: expected a number of seeds (3), or a list (7,8,9)")
    if "," not in text:
        if not 1 <= numbers[0] <= MOST_SEEDS:
            raise CompareError(
                f"--seeds {text}: expected 1 to {MOST_SEEDS} seeds; for the seed {text} alone "
                f"write {text},"
            )
        return list(range(numbers[0]))
    for seed in numbers:
        if not 0 <= seed <= LARGEST_SEED:
            raise CompareError(f"--seeds {text}: {seed} is no seed, take 0 to {LARGEST_SEED}")
    if len(set(numbers)) < len(numbers):
        raise CompareError(f"--seeds {text}: a seed is named twice")
    return numbers

"""The prompts file, the seeds, and the clips that they ask for."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from profiling_core.commands.arguments import read_lines
from profiling_core.errors import CompareError

MOST_SEEDS = 10_000
LARGEST_SEED = 2**63 - 1
NOT_IN_A_LINE = ("Cc", "Zl", "Zp")  # control characters, line and paragraph separators


@dataclass(frozen=True)
class Pair:
    """One clip: a prompt and a seed, and their places in the lists."""

    prompt: str
    seed: int
    prompt_number: int
    seed_number: int

    @property
    def key(self) -> str:
        """A file name of its own among all clips."""
        return f"{hashlib.sha256(self.prompt.encode()).hexdigest()[:16]}-{self.seed}"


def pairs_of(prompts: list[str], seeds: list[int]) -> tuple[Pair, ...]:
    """Every prompt with every seed."""
    return tuple(
        Pair(prompt, seed, n, k) for n, prompt in enumerate(prompts) for k, seed in enumerate(seeds)
    )


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, UTF-8; empty lines and lines that begin with # are skipped.

    CompareError names the line that holds a control character, no UTF-8, or a prompt again.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "--prompts", CompareError), start=1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        for character in prompt:
            if unicodedata.category(character) in NOT_IN_A_LINE:
                raise CompareError(
                    f"--prompts {path}: line {number} holds the control character "
                    f"U+{ord(character):04X}: write plain text"
                )
        if prompt in found:
            raise CompareError(
                f"--prompts {path}: line {number} repeats line {found[prompt]}: take more --seeds "
                "for more clips of one prompt"
            )
        found[prompt] = number
    if not found:
        raise CompareError(f"--prompts {path}: no prompt in it, expected one a line")
    return list(found)


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

"""How many processes share a clip along every axis; no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from profiling_core.errors import ParallelError


@dataclass(frozen=True)
class Degrees:
    """The number of processes along every axis."""

    ulysses: int = 1
    ring: int = 1
    cfg: int = 1  # guidance branches on groups of their own: 1 or 2

    @property
    def sequence(self) -> int:
        """Processes that share the tokens of one model call."""
        return self.ulysses * self.ring

    @property
    def world(self) -> int:
        return self.sequence * self.cfg


def degrees_from(ulysses: str, ring: str, cfg: str, values: Sequence[int]) -> Degrees:
    """The degrees of options with these names.

    ParallelError for a number below 1, or when they do not account for every process of this run.
    """
    names = (ulysses, ring, cfg)
    for name, value in zip(names, values, strict=True):
        if value < 1:
            raise ParallelError(f"{name} {value} is no number of processes: take 1 or more")
    if values[2] > 2:
        raise ParallelError(f"{cfg} {values[2]}: there are two guidance branches, take 1 or 2")
    degrees, started = Degrees(*values), world_size()
    if degrees.world == started:
        return degrees
    asked = " x ".join(f"{n} {v}" for n, v in zip(names, values, strict=True))
    if started == 1:
        way_out = f"start them with torchrun --nproc_per_node={degrees.world}"
    else:
        way_out = f"change the degrees, {ulysses} {started} for example"
    raise ParallelError(
        f"{asked} = {degrees.world} processes, but this run has {started}: {way_out}"
    )


def check_heads(degrees: Degrees, heads: int, name: str) -> None:
    """ParallelError unless Ulysses can share out the heads; name: of the option."""
    if heads % degrees.ulysses:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ParallelError(
            f"{name} {degrees.ulysses} does not divide the model's {heads} heads: take one of "
            f"{', '.join(map(str, fitting))}, the ring degree takes any number"
        )


def environment_int(name: str, default: int) -> int:
    """A whole number that a launcher left in the environment; ParallelError for another text."""
    text = os.getenv(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise ParallelError(f"the environment's {name} {text!r} is no whole number") from None


def world_size() -> int:
    """Processes that the launcher started for this run."""
    return environment_int("WORLD_SIZE", 1)

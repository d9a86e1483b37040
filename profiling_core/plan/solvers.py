"""The flow solvers that plans are made for, and how each of them can skip. No torch."""

from __future__ import annotations

SOLVERS = ("euler", "unipc", "dpm++")
SKIPS = ("hold", "linear", "corrected", "fitted", "jump")


def skips_of(solver: str) -> tuple[str, ...]:
    """The reuse modes that differ: Euler's jump is holding, and a jump needs no correction.

    `fitted` did not pay with DPM++ (docs/research/did-not-pay.md).
    """
    others = {"euler": ("fitted", "jump"), "unipc": ("corrected",)}
    return tuple(s for s in SKIPS if s not in others.get(solver, ("corrected", "fitted")))

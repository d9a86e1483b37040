"""The flow solvers that plans are made for, and how each of them can skip. No torch."""

from __future__ import annotations

SOLVERS = ("euler", "unipc", "dpm++")
SKIPS = ("hold", "linear", "corrected", "fitted", "jump")


def skips_of(solver: str) -> tuple[str, ...]:
    """The reuse modes that differ: Euler's jump is holding, and a jump has its own corrector."""
    others = ("fitted", "jump") if solver == "euler" else ("corrected",)
    return tuple(skip for skip in SKIPS if skip not in others)

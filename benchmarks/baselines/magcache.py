"""MagCache (Ma et al., arXiv 2506.09045): a fixed schedule from the residual's mean norm ratios.

Since the last computed step the calibrated ratios are multiplied up; |1 - product| is summed, and
the residual is reused while the sum is below the threshold and at most K steps follow each other.
The first 20 % of the steps are computed. One residual per branch is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from torch import Tensor

from .base import BRANCHES, Peer, Rule, Variant, intercepted
from .residual import Branch, Entry, ResidualRule

if TYPE_CHECKING:
    from benchmarks.lib.clips import Inputs, Tree

PUBLISHED_SKIPS = (2, 4, 6)  # K of the authors' tables and scripts
RETENTION = 0.2  # their default


@dataclass(frozen=True)
class MagVariant(Variant):
    most_skips: int  # K
    retention: float


class MagBranch(Branch):
    """The schedule of one branch, decided as the steps come."""

    def __init__(self, ratios: Sequence[float], variant: MagVariant, threshold: float) -> None:
        self.ratios, self.threshold = ratios, threshold
        self.most_skips = variant.most_skips
        self.protected = max(1, int(len(ratios) * variant.retention))
        self.product, self.error, self.skipped = 1.0, 0.0, 0

    def reuses(self, step: int, entry: Entry | None) -> bool:
        if step >= self.protected:
            self.product *= self.ratios[step]
            self.error += abs(1 - self.product)
            if self.error < self.threshold and self.skipped < self.most_skips:
                self.skipped += 1
                return True
        self.product, self.error, self.skipped = 1.0, 0.0, 0
        return False


class Magnitudes(Branch):
    """Calibration: the token mean of |residual| over |the step before's|; the first is 1."""

    def __init__(self) -> None:
        self.ratios: list[float] = []

    def reuses(self, step: int, entry: Entry) -> bool:
        return False

    def keep(self, entry: Entry, residual: Tensor) -> None:
        norms = residual.float().norm(dim=-1)  # (B, N)
        self.ratios.append(1.0 if self.residual is None else (norms / self.residual).mean().item())
        self.residual = norms  # the norms are all that the next step needs


class MagCache(Peer):
    name: ClassVar[str] = "MagCache"

    def __init__(self) -> None:
        self.tree: str | None = None
        self.ratios: dict[str, list[float]] = {}  # per branch, one for each step

    def variants(self, tree: Tree) -> list[MagVariant]:
        return [
            MagVariant(f"K {most}, {RETENTION:.0%} retained", most, RETENTION)
            for most in PUBLISHED_SKIPS
        ]

    def calibrate(self, tree: Tree, inputs: Sequence[Inputs], *, solver: str | None = None) -> None:
        """Ratios per branch and step, averaged over the prompts (their authors take one prompt)."""
        runs = []
        for item in inputs:
            branches = {name: Magnitudes() for name in BRANCHES[tree.name]}
            with intercepted(tree, ResidualRule(branches)):
                tree.denoise(item, solver=solver)
            runs.append([branch.ratios for branch in branches.values()])
        means = np.mean(runs, axis=0).tolist()
        self.tree, self.ratios = tree.name, dict(zip(BRANCHES[tree.name], means, strict=True))

    def span(self, variant: MagVariant) -> tuple[float, float]:
        """From 0 to just above the largest sum that the K skips of any step can reach."""
        if not self.ratios:
            raise ValueError("MagCache is not calibrated: its span follows from the ratios")
        largest = 0.0
        for ratios in self.ratios.values():
            for start in range(max(1, int(len(ratios) * variant.retention)), len(ratios)):
                products = np.cumprod(ratios[start : start + variant.most_skips])
                largest = max(largest, float(np.abs(1 - products).sum()))
        return 0.0, 1.01 * largest

    def rule(self, tree: Tree, variant: MagVariant, threshold: float) -> Rule:
        if self.tree != tree.name or any(len(r) != tree.steps for r in self.ratios.values()):
            raise ValueError(
                f"MagCache has no ratios of {tree.steps} steps of {tree.name}: calibrate it first"
            )
        return ResidualRule(
            {name: MagBranch(ratios, variant, threshold) for name, ratios in self.ratios.items()}
        )

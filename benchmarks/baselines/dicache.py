"""DiCache (Bu et al., arXiv 2508.17356): the first block probes whether the rest is needed.

The first block always runs. The relative L1 change of its output from step to step is summed; while
the sum is below the threshold the other blocks are skipped, and the residual is a line through the
residuals of the last two computed steps: with the probe's residual p (first block's output minus
its input) the position on it is |p - p2| / |p1 - p2|, from 1 up to a limit. On a computed step the
model goes on from the probe. The first 20 % of the steps are computed. Kept per branch: two
residuals, two of the probe and the probe's output; the scripts keep four tensors more that
decide nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from .base import BRANCHES, Peer, Rule, Variant, relative_l1
from .residual import Branch, Entry, ResidualRule

if TYPE_CHECKING:
    from benchmarks.lib.clips import Tree

PROBE_DEPTH = 1  # blocks; the scripts' value
RETENTION = 0.2
LIMIT = {"wan": 2.0, "hunyuan": 1.5}  # of the position on the line, in the scripts


@dataclass(frozen=True)
class DiVariant(Variant):
    retention: float


class DiBranch(Branch):
    """The probe of one branch and its last two residuals."""

    def __init__(self, protected: int, limit: float, threshold: float) -> None:
        self.protected, self.limit, self.threshold = protected, limit, threshold
        self.error = 0.0
        self.probe: Tensor | None = None  # the probe's output at the step before
        self.probed: list[Tensor] = []  # probe residuals of the last two computed steps
        self.residuals: list[Tensor] = []  # and those of the whole model

    def reuses(self, step: int, entry: Entry) -> bool:
        before, self.probe = self.probe, entry.run(PROBE_DEPTH)
        if step < self.protected:
            return False
        self.error += relative_l1(self.probe, before)
        if self.error < self.threshold:
            return True
        self.error = 0.0
        return False

    def forecast(self, entry: Entry) -> Tensor:
        if len(self.residuals) < 2:
            return self.residuals[-1]
        older, newer = self.probed
        moved = (self.probe - entry.stream - older).abs().mean()
        position = (moved / (newer - older).abs().mean()).clip(1, self.limit)
        return self.residuals[0] + position * (self.residuals[1] - self.residuals[0])

    def keep(self, entry: Entry, residual: Tensor) -> None:
        self.residuals = [*self.residuals[-1:], residual]
        self.probed = [*self.probed[-1:], self.probe - entry.stream]


class DiCache(Peer):
    name: ClassVar[str] = "DiCache"
    # no calibration: full runs of the miniatures sum 1.3 (Wan) and 1.7
    thresholds: ClassVar[tuple[float, float]] = (0.0, 8.0)

    def variants(self, tree: Tree) -> list[DiVariant]:
        return [DiVariant(f"first block as probe, {RETENTION:.0%} retained", RETENTION)]

    def rule(self, tree: Tree, variant: DiVariant, threshold: float) -> Rule:
        protected = max(1, int(tree.steps * variant.retention))
        limit = LIMIT[tree.name]
        return ResidualRule(
            {name: DiBranch(protected, limit, threshold) for name in BRANCHES[tree.name]}
        )

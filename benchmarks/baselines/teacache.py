"""TeaCache (Liu et al., arXiv 2411.19108): a polynomial of the change of the model's input.

The relative L1 change of a signal from step to step, rescaled by a polynomial of degree 4 fitted to
the change of the output, is summed; the residual is reused while the sum is below the threshold.
The signal is the modulated input of the first block on HunyuanVideo, and on Wan the time embedding
e, or its projection e0 with protected first steps: the same for every prompt. A residual and a
signal per branch are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from hyvideo.layers import modulate

from .base import BRANCHES, Call, Peer, Rule, Variant, intercepted, latent_of, relative_l1
from .residual import Branch, Entry, ResidualRule

if TYPE_CHECKING:
    from benchmarks.lib.clips import Inputs, Tree

DEGREE = 4
MARGIN = 1.25  # of the span's upper end: another prompt's sum may be larger than the calibrated


@dataclass(frozen=True)
class TeaVariant(Variant):
    signal: str  # one of SIGNALS
    first: int  # protected steps at the start
    last: int  # and at the end


# the authors' scripts, Wan's second being --use_ret_steps; HunyuanVideo has one, and Wan's
# protected first steps are offered to it as well
VARIANTS = {
    "wan": (
        TeaVariant("e, first and last step protected", "embedding", 1, 1),
        TeaVariant("e0, first 5 steps protected", "projection", 5, 0),
    ),
    "hunyuan": (
        TeaVariant("first and last step protected", "modulated", 1, 1),
        TeaVariant("first 5 and last step protected", "modulated", 5, 1),
    ),
}


def _embedding(model: nn.Module, entry: Entry) -> Tensor:
    return model.embed_time(entry.call.arguments["t"])[0]


def _projection(model: nn.Module, entry: Entry) -> Tensor:
    return entry.kwargs["e"]


def _modulated(model: nn.Module, entry: Entry) -> Tensor:
    img, _, vec = entry.start[:3]
    block = entry.waiting[0]
    shift, scale, *_ = block.img_mod(vec)
    return modulate(block.img_norm1, img, shift, scale)


SIGNALS: dict[str, Callable[[nn.Module, Entry], Tensor]] = {
    "embedding": _embedding,
    "projection": _projection,
    "modulated": _modulated,
}


@dataclass(frozen=True)
class Changes:
    """Relative L1 changes from step to step of one branch of calibration runs, and their steps."""

    steps: list[int] = field(default_factory=list)
    signal: list[float] = field(default_factory=list)
    output: list[float] = field(default_factory=list)

    def from_step(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Changes of signal and output into the steps that the rule decides on."""
        chosen = np.asarray(self.steps) >= first
        return np.asarray(self.signal)[chosen], np.asarray(self.output)[chosen]


class TeaBranch(Branch):
    """The summed estimate of one branch."""

    def __init__(
        self,
        model: nn.Module,
        polynomial: np.ndarray,
        variant: TeaVariant,
        steps: int,
        threshold: float,
    ) -> None:
        self.model, self.polynomial, self.threshold = model, polynomial, threshold
        self.decided = range(variant.first, steps - variant.last)
        self.signal_of, self.signal, self.error = SIGNALS[variant.signal], None, 0.0

    def reuses(self, step: int, entry: Entry) -> bool:
        signal, before = self.signal_of(self.model, entry), self.signal
        self.signal = signal
        if step not in self.decided:
            self.error = 0.0
            return False
        self.error += float(np.polyval(self.polynomial, relative_l1(signal, before)))
        # 0 is the plain model in the authors' tables, also where the polynomial is negative
        if self.error < self.threshold and self.threshold > 0:
            return True
        self.error = 0.0
        return False


class RecordedBranch(Branch):
    """Calibration: computes every step and notes the changes of each signal."""

    def __init__(self, model: nn.Module, found: dict[str, Changes]) -> None:
        self.model, self.found = model, found
        self.before: dict[str, Tensor] = {}
        self.output: Tensor | None = None

    def reuses(self, step: int, entry: Entry) -> bool:
        for name, changes in self.found.items():
            signal = SIGNALS[name](self.model, entry)
            if name in self.before:
                changes.signal.append(relative_l1(signal, self.before[name]))
            self.before[name] = signal
        return False

    def keep(self, entry: Entry, residual: Tensor) -> None:
        """The residual is not needed."""

    def note_output(self, step: int, output: Tensor) -> None:
        if self.output is not None:
            change = relative_l1(output, self.output)
            for changes in self.found.values():
                changes.steps.append(step)
                changes.output.append(change)
        self.output = output


class RecordingRule(ResidualRule):
    """Calibration: every call runs, and its branch sees the prediction."""

    branches: dict[str, RecordedBranch]

    def answer(self, call: Call) -> Any:
        output = super().answer(call)
        self.branches[call.branch].note_output(call.step, latent_of(output))
        return output


class TeaCache(Peer):
    name: ClassVar[str] = "TeaCache"

    def __init__(self) -> None:
        self.tree: str | None = None
        self.steps = self.runs = 0
        self.changes: dict[str, Changes] = {}  # per signal, over all prompts and branches

    def variants(self, tree: Tree) -> list[TeaVariant]:
        return list(VARIANTS[tree.name])

    def calibrate(self, tree: Tree, inputs: Sequence[Inputs], *, solver: str | None = None) -> None:
        """Changes of the signals and of the prediction in every step of full runs."""
        model, names = tree.pipeline.model, BRANCHES[tree.name]
        signals = {variant.signal for variant in VARIANTS[tree.name]}
        changes = {name: Changes() for name in signals}
        for item in inputs:
            branches = {name: RecordedBranch(model, changes) for name in names}
            with intercepted(tree, RecordingRule(branches)):
                tree.denoise(item, solver=solver)
        self.tree, self.steps, self.changes = tree.name, tree.steps, changes
        self.runs = len(inputs) * len(names)

    def polynomial(self, variant: TeaVariant) -> np.ndarray:
        """Five coefficients, highest power first, fitted to the steps that the rule decides on."""
        return fit(*self._calibrated(variant).from_step(variant.first))

    def span(self, variant: TeaVariant) -> tuple[float, float]:
        """From 0 to above the sum of all estimates of a calibration run."""
        signal, _ = self._calibrated(variant).from_step(variant.first)
        estimates = np.polyval(self.polynomial(variant), signal)
        return 0.0, MARGIN * float(np.abs(estimates).sum()) / self.runs

    def rule(self, tree: Tree, variant: TeaVariant, threshold: float) -> Rule:
        if (self.tree, self.steps) != (tree.name, tree.steps):
            raise ValueError(
                f"TeaCache has no polynomial for {tree.steps} steps of {tree.name}: "
                "calibrate it first"
            )
        polynomial, model = self.polynomial(variant), tree.pipeline.model
        return ResidualRule(
            {
                name: TeaBranch(model, polynomial, variant, tree.steps, threshold)
                for name in BRANCHES[tree.name]
            }
        )

    def _calibrated(self, variant: TeaVariant) -> Changes:
        if variant.signal not in self.changes:
            raise ValueError(f"TeaCache is not calibrated for {variant.label!r}")
        return self.changes[variant.signal]


def fit(signal: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Least-squares polynomial of degree 4; ValueError with fewer than 5 different abscissae."""
    different = len(np.unique(signal))
    if different <= DEGREE:
        raise ValueError(
            f"a polynomial of degree {DEGREE} needs {DEGREE + 1} different changes, the "
            f"calibration has {different}: take more steps"
        )
    return np.polyfit(signal, output, DEGREE)

"""The rules of the peers, asked at every step and not followed: the answer is forced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.baselines import DiCache, EasyCache, MagCache, Peer, TeaCache, Variant
from benchmarks.baselines.base import BRANCHES, Call, standing_before
from benchmarks.baselines.dicache import LIMIT, DiBranch
from benchmarks.baselines.easycache import EasyRule
from benchmarks.baselines.magcache import MagBranch
from benchmarks.baselines.residual import Branch, Entry, ResidualRule
from benchmarks.baselines.teacache import DEGREE, TeaBranch
from benchmarks.lib.timing import Subject, timed
from profiling_core.engine.anchors import tensors_of
from profiling_core.plan.presets import STEPS

THRESHOLD = 0.1  # of the rules

PROTECTED: dict[type[Peer], Callable[[Any], int]] = {
    TeaCache: lambda variant: variant.first + variant.last,
    MagCache: lambda variant: int(STEPS * variant.retention),
    EasyCache: lambda variant: variant.warmup + 1,
    DiCache: lambda variant: int(STEPS * variant.retention),
}


@dataclass
class Clock:
    """Seconds of the parts of a call."""

    device: torch.device
    found: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, name: str, call: Callable[[], Any]) -> None:
        self.found.setdefault(name, []).append(timed(call, self.device))


class Forced(Branch):
    """Asks a branch of a rule, and gives the forced answer."""

    reusing: ClassVar[bool] = False

    def __init__(self, real: Branch, clock: Clock) -> None:
        self.real, self.clock = real, clock

    def reuses(self, step: int, entry: Entry) -> bool:
        self.clock("decision", lambda: self.real.reuses(step, entry))
        return self.reusing

    def forecast(self, entry: Entry) -> Tensor:
        return self.real.forecast(entry)

    def keep(self, entry: Entry, residual: Tensor) -> None:
        self.clock("keep", lambda: self.real.keep(entry, residual))


class ForcedRule(ResidualRule):
    branches: dict[str, Forced]

    def force(self, reusing: bool) -> None:
        for branch in self.branches.values():
            branch.reusing = reusing

    def held(self) -> Iterable[Tensor]:
        return tensors_of([vars(branch.real) for branch in self.branches.values()])


class ForcedEasy(EasyRule):
    """The conditional branch decides for both; the other costs no more than it."""

    forced = False
    clock: Clock

    def force(self, reusing: bool) -> None:
        self.forced = reusing

    def _decide(self, step: int, latent: Tensor) -> bool:
        self.clock("decision", lambda: super(ForcedEasy, self)._decide(step, latent))
        return self.forced

    def _update(self, output: Tensor) -> None:
        self.clock("keep", lambda: super(ForcedEasy, self)._update(output))


def forced_rule(
    model: nn.Module, tree: str, peer: Peer, variant: Variant, clock: Clock
) -> ForcedRule | ForcedEasy:
    if isinstance(peer, EasyCache):
        rule = ForcedEasy(STEPS, variant, THRESHOLD)
        rule.clock = clock
        return rule
    polynomial, ratios = np.ones(DEGREE + 1), [1.0] * STEPS
    build: dict[type[Peer], Callable[[], Branch]] = {
        TeaCache: lambda: TeaBranch(model, polynomial, variant, STEPS, THRESHOLD),
        MagCache: lambda: MagBranch(ratios, variant, THRESHOLD),
        DiCache: lambda: DiBranch(PROTECTED[DiCache](variant), LIMIT[tree], THRESHOLD),
    }
    made = build[type(peer)]
    return ForcedRule({branch: Forced(made(), clock) for branch in BRANCHES[tree]})


class Driven:
    """Calls of a subject that a rule answers."""

    def __init__(self, subject: Subject, rule: ForcedRule | ForcedEasy) -> None:
        self.subject, self.rule, self.position = subject, rule, (0, "cond")
        self.plain = subject.model.forward
        self.signature = inspect.signature(self.plain)
        names = subject.planned.fingerprint.block_lists
        self.walks = rule.walks({name: list(getattr(subject.model, name)) for name in names})

    def call(self, step: int, branch: str, *, reusing: bool) -> None:
        self.position = (step, branch)
        self.rule.force(reusing)
        with standing_before(self.subject.model, {"forward": self._forward}):
            self.subject.call()

    def caller(self, step: int, *, reusing: bool) -> Callable[[], None]:
        """`call` in the first branch, to be timed."""
        return lambda: self.call(step, "cond", reusing=reusing)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            with standing_before(self.subject.model, self.walks):
                return self.plain(*args, **kwargs)

        arguments = dict(self.signature.bind(*args, **kwargs).arguments)
        return self.rule.answer(Call(*self.position, arguments, run))

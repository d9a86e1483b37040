"""Caching policies on a full-size model: what single calls cost, how many of each a budget takes.

A policy is measured by a few calls of the model, not by a clip. Plans go through DeltaCache. The
peers' rules are asked at every step and pay for their decision (signals, norms, host reads, the
probe of DiCache), but the answer is forced: random weights give no decisions worth counting.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines import DiCache, EasyCache, MagCache, Peer, TeaCache, Variant
from benchmarks.baselines.base import BRANCHES, Call, Rule, standing_before, storage_bytes
from benchmarks.baselines.dicache import LIMIT, PROBE_DEPTH, DiBranch
from benchmarks.baselines.easycache import EasyRule
from benchmarks.baselines.magcache import MagBranch
from benchmarks.baselines.residual import Branch, Entry, ResidualRule
from benchmarks.baselines.teacache import DEGREE, TeaBranch
from benchmarks.lib.timing import Subject, kinds, peak_memory, reset_peak, timed, visit
from profiling_core.engine.anchors import tensors_of
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.site_schedule import corrections

FIRST_ASKED = 20  # a step at which every rule decides
THRESHOLD = 0.1  # of the rules; their answers are forced


@dataclass(frozen=True)
class Schedule:
    """Calls of every kind in one clip, and the ideal speed-up by block FLOPs."""

    counts: dict[str, int]
    ideal: float


@dataclass(frozen=True)
class Costs:
    """Median seconds of a call in the first branch; 'run' is a bare one.

    parts: of those, 'decision' and 'keep' where a rule has them. held: bytes between calls of all
    branches; peak: most bytes allocated, over the model's weights and inputs alone.
    """

    seconds: dict[str, float]
    parts: dict[str, float] = field(default_factory=dict)
    held: int = 0
    peak: int = 0

    def loop(self, schedule: Schedule) -> float:
        """Seconds of all model calls of a clip."""
        return sum(count * self.seconds[kind] for kind, count in schedule.counts.items())


class Policy(ABC):
    """One way to save compute on a subject."""

    name: str
    own_speed = False  # it has its own speed, budgets do not apply

    @abstractmethod
    def schedule(self, budget: float) -> Schedule:
        """What it does at the budget, or as near to it as it comes."""

    @abstractmethod
    def costs(self, rounds: int, device: torch.device) -> Costs:
        """Measured in rounds, a bare call in each."""


@dataclass(frozen=True)
class FewerSteps(Policy):
    subject: Subject
    steps: int
    name: str = "fewer steps"

    def schedule(self, budget: float) -> Schedule:
        count = max(1, round(self.steps / budget))
        calls = count * len(self.subject.planned.family.branches)
        return Schedule({"run": calls}, self.steps / count)

    def costs(self, rounds: int, device: torch.device) -> Costs:
        return bare_costs(self.subject, rounds, device)


@dataclass(frozen=True)
class Planned(Policy):
    """at: the plan of a budget; its calls are timed on that of the budget `timed_at`."""

    subject: Subject
    name: str
    at: Callable[[float], CachePlan]
    timed_at: float = 3.0  # long stretches of skipped steps
    own_speed: bool = False

    def schedule(self, budget: float) -> Schedule:
        plan = self.at(budget)
        counts = Counter(k for branch in plan.branches for k in kinds_of(plan, branch).values())
        return Schedule(dict(counts), speedup_flops(plan))

    def costs(self, rounds: int, device: torch.device) -> Costs:
        plan = self.at(self.timed_at)
        first, *others = plan.branches
        kind_of, steps = kinds_of(plan, first), walked(plan, first)
        if not steps:
            return bare_costs(self.subject, rounds, device)
        found: dict[str, list[float]] = {"run": []}
        held = 0
        reset_peak(device)
        for number in range(rounds):
            found["run"].append(timed(self.subject.call, device))
            cache = DeltaCache(plan)
            with cache.attached(self.subject.model):
                for step in steps:
                    cache.begin(step, first)
                    taken = timed(self.subject.call, device)
                    found.setdefault(kind_of[step], []).append(taken)
                    for branch in others if number == 0 else ():  # their anchors count as well
                        cache.begin(step, branch)
                        self.subject.call()
            held = max(held, cache.stats.peak_bytes)
        return Costs(medians(found), held=held, peak=peak_memory(device))


@dataclass(frozen=True)
class Ruled(Policy):
    """A peer whose answers are forced; calls are timed in the first branch."""

    subject: Subject
    tree: str
    steps: int
    peer: Peer
    variant: Variant

    @property
    def name(self) -> str:
        return self.peer.name

    @property
    def protected(self) -> int:
        """Steps that are computed without being asked."""
        return PROTECTED[type(self.peer)](self.variant, self.steps)

    def schedule(self, budget: float) -> Schedule:
        depth = sum(self.subject.planned.fingerprint.block_lists.values())
        probe = PROBE_DEPTH / depth if isinstance(self.peer, DiCache) else 0.0
        asked = self.steps - self.protected
        reused = min(asked, round(self.steps * (1 - 1 / budget) / (1 - probe)))
        each = {"protected": self.protected, "compute": asked - reused, "reuse": reused}
        calls = {kind: count * len(BRANCHES[self.tree]) for kind, count in each.items()}
        return Schedule(calls, 1 / (1 - reused / self.steps * (1 - probe)))

    def costs(self, rounds: int, device: torch.device) -> Costs:
        clock, subject = Clock(device), self.subject
        driven = Driven(subject, forced_rule(self, clock))
        found: dict[str, list[float]] = {"run": [], "compute": [], "reuse": []}
        reset_peak(device)
        for step in range(2):  # what a rule compares with and the line of DiCache
            for branch in BRANCHES[self.tree]:
                driven.call(step, branch, reusing=False)
        clock.found.clear()
        for number in range(rounds):
            found["run"].append(timed(subject.call, device))
            step = FIRST_ASKED + 3 * number
            for kind in ("reuse", "reuse", "compute"):
                call = driven.caller(step, reusing=kind == "reuse")
                found[kind].append(timed(call, device))
                step += 1
        seconds, parts = medians(found), medians(clock.found)
        seconds["protected"] = seconds["run"] + parts.get("keep", 0.0)
        held = storage_bytes(driven.rule.held())
        return Costs(seconds, parts, held, peak_memory(device))


def bare_costs(subject: Subject, rounds: int, device: torch.device) -> Costs:
    """Of a policy that has no other kind of call."""
    reset_peak(device)
    seconds = [timed(subject.call, device) for _ in range(rounds)]
    return Costs({"run": median(seconds)}, peak=peak_memory(device))


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: median(seconds) for name, seconds in found.items()}


def kinds_of(plan: CachePlan, branch: str) -> dict[int, str]:
    """`calls.kinds`, and 'correct' for a compute step that makes forecasts good."""
    return {**kinds(plan, branch), **dict.fromkeys(corrections(plan, branch), "correct")}


def walked(plan: CachePlan, branch: str) -> list[int]:
    """Steps that show every kind of call but 'run', with all that they build on."""
    kind_of = kinds_of(plan, branch)
    steps = visit(plan, branch, set(kinds(plan, branch).values()) - {"run"})
    if steps and kind_of[steps[-1]] == "reuse" == kind_of.get(steps[-1] + 1):
        steps.append(steps[-1] + 1)
    later = [step for step in corrections(plan, branch) if steps and step > steps[-1]]
    return [*steps, *later[:1]]


# -- the peers' rules, asked and not followed

PROTECTED: dict[type[Peer], Callable[[Any, int], int]] = {
    TeaCache: lambda variant, steps: variant.first + variant.last,
    MagCache: lambda variant, steps: int(steps * variant.retention),
    EasyCache: lambda variant, steps: variant.warmup + 1,
    DiCache: lambda variant, steps: int(steps * variant.retention),
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


def forced_rule(policy: Ruled, clock: Clock) -> ForcedRule | ForcedEasy:
    model, steps, variant = policy.subject.model, policy.steps, policy.variant
    if isinstance(policy.peer, EasyCache):
        rule = ForcedEasy(steps, variant, THRESHOLD)
        rule.clock = clock
        return rule
    polynomial, ratios = np.ones(DEGREE + 1), [1.0] * steps
    build: dict[type[Peer], Callable[[], Branch]] = {
        TeaCache: lambda: TeaBranch(model, polynomial, variant, steps, THRESHOLD),
        MagCache: lambda: MagBranch(ratios, variant, THRESHOLD),
        DiCache: lambda: DiBranch(
            PROTECTED[DiCache](variant, steps), LIMIT[policy.tree], THRESHOLD
        ),
    }
    made = build[type(policy.peer)]
    return ForcedRule({branch: Forced(made(), clock) for branch in BRANCHES[policy.tree]})


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
        rule: Rule = self.rule
        return rule.answer(Call(*self.position, arguments, run))

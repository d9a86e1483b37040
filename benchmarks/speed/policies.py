"""What plans and policies cost: single calls, and the loops that are put together from them.

Single calls of every plan and policy of the comparison are timed (computed, keeping, reused, the
decision alone). A loop's seconds are their medians by the schedule's counts: the model's calls
alone, without guidance and the solver's step. A shipped plan has one schedule, a policy one for
each of BUDGETS. The rules of the peers are asked at every step and pay for their decision
(signals, norms, host reads, the probe of DiCache), but the answer is forced, as many reused calls
as the budget wants: random weights give no decisions worth counting. The packages of the
comparison are left out, so that torch, NumPy and pydantic are enough.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import log
from statistics import median
from types import SimpleNamespace
from typing import ClassVar

import torch

from benchmarks.baselines import PEERS, DiCache, MagCache, Peer, Variant
from benchmarks.baselines.base import BRANCHES, storage_bytes
from benchmarks.baselines.dicache import PROBE_DEPTH
from benchmarks.lib.rows import Row
from benchmarks.lib.schedules import even, plan_on, protected_ends
from benchmarks.lib.timing import Subject, all_compute, kinds, peak_memory, reset_peak, timed, visit
from benchmarks.speed.forced_rules import PROTECTED, Clock, Driven, forced_rule
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import block_share, bytes_held, every_kind, speedup_flops
from profiling_core.plan.importers import from_shrinking, from_steps
from profiling_core.plan.presets import STEPS, build_preset
from profiling_core.plan.schedule import stepwise
from profiling_core.plan.schema import Branch
from profiling_core.plan.site_schedule import corrections

BUDGETS = (1.5, 1.9, 2.3, 3.0)
TIMED_AT = 3.0  # budget of the plan whose calls are timed: long stretches of skipped steps
WARMUPS, LONGEST = (6, 4, 2, 1), 24  # of the paper's plan, the release's warm-up first
TMAX, TMIN = 12, 2  # the release's
FIRST_ASKED = 20  # a step at which every rule decides
TREE_OF = {"wan2.1": "wan", "hunyuan-video": "hunyuan"}
PRESETS = ("paper", "balanced", "foreground", "release")  # the most wanted first
POLICIES = (*(peer.name for peer in PEERS), "ours corrected", "ours jump", "ours linear", "paper")
POLICIES += ("uniform linear", "uniform hold", "fewer steps")
CallCounts = dict[str, int]  # calls of every kind in one clip


@dataclass(frozen=True)
class Costs:
    """Median seconds of a call in the first branch; 'run' is a bare one.

    parts: of those, 'decision' and 'keep' where a rule has them. bytes_held: between calls, of all
    branches. facts: further fields of the row.
    """

    seconds: dict[str, float]
    parts: dict[str, float] = field(default_factory=dict)
    bytes_held: int = 0
    facts: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Policy(ABC):
    """A row: seconds of its calls, and of the loops that its schedules make of them."""

    subject: Subject
    name: str
    part: ClassVar[str] = "policy"
    budgets: ClassVar[tuple[float | None, ...]] = BUDGETS

    def row(self, rounds: int, device: torch.device) -> Row:
        reset_peak(device)
        costs = self.costs(rounds, device)
        return {
            "seconds": rounded(costs.seconds),
            "parts": rounded(costs.parts),
            "bytes_held": costs.bytes_held,
            "peak_bytes": peak_memory(device),
            **costs.facts,
            "loops": [self._loop(costs, budget) for budget in self.budgets],
        }

    def _loop(self, costs: Costs, budget: float | None) -> Row:
        counts, ideal = self.schedule(budget or 1.0)
        seconds = sum(count * costs.seconds[kind] for kind, count in counts.items())
        about = {"budget": budget, "calls": counts}
        return about | loop_row(self.subject, costs.seconds["run"], seconds, ideal)

    @abstractmethod
    def schedule(self, budget: float) -> tuple[CallCounts, float]:
        """Calls at the budget, or as near to it as it comes, and their ideal speed-up by FLOPs."""

    @abstractmethod
    def calls(self, rounds: int) -> float:
        """What `costs` takes, in full calls of the model."""

    @abstractmethod
    def costs(self, rounds: int, device: torch.device) -> Costs:
        """Measured in rounds, a bare call in each."""


class FewerSteps(Policy):
    def schedule(self, budget: float) -> tuple[CallCounts, float]:
        count = max(1, round(STEPS / budget))
        return {"run": count * len(self.subject.planned.family.branches)}, STEPS / count

    def calls(self, rounds: int) -> float:
        return rounds

    def costs(self, rounds: int, device: torch.device) -> Costs:
        return Costs({"run": median(timed(self.subject.call, device) for _ in range(rounds))})


@dataclass(frozen=True)
class Planned(Policy):
    """at: the plan of a budget."""

    at: Callable[[float], CachePlan]

    def schedule(self, budget: float) -> tuple[CallCounts, float]:
        plan = self.at(budget)
        counts = Counter(k for branch in plan.branches for k in kinds_of(plan, branch).values())
        return dict(counts), speedup_flops(plan)

    def calls(self, rounds: int) -> float:
        plan = self.at(TIMED_AT)
        first, others, steps = walk(plan)
        shares = {b: sum(block_share(plan, step, b) for step in steps) for b in plan.branches}
        return rounds * (1 + shares[first]) + sum(shares[branch] for branch in others)

    def costs(self, rounds: int, device: torch.device) -> Costs:
        plan = self.at(TIMED_AT)
        first, others, steps = walk(plan)
        kind_of = kinds_of(plan, first)
        found: dict[str, list[float]] = {"run": []}
        at_most = visit(plan, first, {"reuse"})[:-1]  # after these, as much is kept as ever
        held, allocations, resting = [0], [0], allocated(device)
        for number in range(rounds):
            found["run"].append(timed(self.subject.call, device))
            cache = DeltaCache(plan)
            with cache.attached(self.subject.model):
                for step in steps:
                    cache.begin(step, first)
                    taken = timed(self.subject.call, device)
                    kind = kind_of[step]
                    found.setdefault("attached" if kind == "run" else kind, []).append(taken)
                    for branch in others if number == 0 else ():  # their anchors count as well
                        cache.begin(step, branch)
                        self.subject.call()
                    if step in at_most and number == 0:
                        held.append(cache.bytes_held)
                        allocations.append(allocated(device) - resting)
        facts = {"bytes_formula": formula_bytes(self.subject, plan)}
        return Costs(medians(found), {}, max(held), facts | {"bytes_allocated": max(allocations)})


class Shipped(Planned):
    """A plan that has one schedule: budgets do not apply."""

    part: ClassVar[str] = "plan"
    budgets: ClassVar[tuple[float | None, ...]] = (None,)


class Attached(Shipped):
    """A plan that computes every step: what the engine costs while nothing is reused."""

    part: ClassVar[str] = "attached"

    def __init__(self, subject: Subject) -> None:
        plan = all_compute(subject.plan("paper"))
        super().__init__(subject, "all computed", lambda budget: plan)


@dataclass(frozen=True)
class Ruled(Policy):
    """A peer whose answers are forced; calls are timed in the first branch."""

    tree: str
    peer: Peer
    variant: Variant

    @property
    def probe(self) -> float:
        """Share of the blocks that run before a decision."""
        depth = sum(self.subject.planned.fingerprint.block_lists.values())
        return PROBE_DEPTH / depth if isinstance(self.peer, DiCache) else 0.0

    def schedule(self, budget: float) -> tuple[CallCounts, float]:
        protected = PROTECTED[type(self.peer)](self.variant)
        reused = min(STEPS - protected, round(STEPS * (1 - 1 / budget) / (1 - self.probe)))
        each = {"protected": protected, "compute": STEPS - protected - reused, "reuse": reused}
        calls = {kind: count * len(BRANCHES[self.tree]) for kind, count in each.items()}
        return calls, 1 / (1 - reused / STEPS * (1 - self.probe))

    def calls(self, rounds: int) -> float:
        return 2 * len(BRANCHES[self.tree]) + rounds * (2 + 2 * self.probe)

    def costs(self, rounds: int, device: torch.device) -> Costs:
        clock, subject = Clock(device), self.subject
        rule = forced_rule(subject.model, self.tree, self.peer, self.variant, clock)
        driven = Driven(subject, rule)
        found: dict[str, list[float]] = {"run": [], "compute": [], "reuse": []}
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
        return Costs(seconds, parts, storage_bytes(rule.held()))


def loop_row(subject: Subject, run: float, seconds: float, ideal: float) -> Row:
    """A loop's seconds beside those of bare calls alone."""
    full = STEPS * len(subject.planned.family.branches) * run
    return {
        "full_seconds": round(full, 4),
        "loop_seconds": round(seconds, 4),
        "ideal": round(ideal, 4),
        "achieved": round(full / seconds, 4),
        "achieved_over_ideal": round(full / seconds / ideal, 4),
    }


def formula_bytes(subject: Subject, plan: CachePlan) -> int:
    """Bytes of anchors by the plan's formula, for the types that bf16 autocast gives."""
    family, clip = subject.planned.family, subject.planned.clip
    return bytes_held(
        plan,
        tokens=clip.tokens,
        latent_numel=clip.latent,
        stream_itemsize=getattr(torch, family.stream).itemsize,
        prediction_itemsize=getattr(torch, family.prediction).itemsize,
    )


def allocated(device: torch.device) -> int:
    """Bytes of live tensors on a GPU; 0 on the CPU, which keeps no count."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: median(seconds) for name, seconds in found.items()}


def kinds_of(plan: CachePlan, branch: str) -> dict[int, str]:
    """`timing.kinds`, and 'correct' for a compute step that makes forecasts good."""
    return {**kinds(plan, branch), **dict.fromkeys(corrections(plan, branch), "correct")}


def walk(plan: CachePlan) -> tuple[Branch, list[Branch], list[int]]:
    """The branch to time, others that keep anchors as well, and the steps to visit."""
    first, *others = plan.branches
    steps = every_kind(plan, first)
    return (first, others, steps) if steps else (first, [], [0])


def policies(subject: Subject) -> Iterator[Policy]:
    """Those that the subject's tree and solver have."""
    planned = subject.planned
    tree, euler = TREE_OF[planned.fingerprint.family], planned.family.solver == "euler"
    for build in PEERS:
        peer = build()
        # the authors' own settings; of MagCache the K that reaches every budget
        variants = peer.variants(SimpleNamespace(name=tree))  # all that they depend on
        variant = variants[-1 if isinstance(peer, MagCache) else 0]
        yield Ruled(subject, peer.name, tree, peer, variant)
    for skip in ("corrected" if euler else "jump", "linear"):
        yield Planned(subject, f"ours {skip}", partial(whole, subject, skip, False))
    yield Planned(subject, "paper", partial(paper, subject))
    for skip in ("linear", "hold"):
        yield Planned(subject, f"uniform {skip}", partial(whole, subject, skip, True))
    yield FewerSteps(subject, "fewer steps")


def shipped(subject: Subject) -> Iterator[Shipped]:
    """The subject's presets, the most wanted first."""
    for name in PRESETS:
        if name in subject.presets:
            plan = subject.plan(name)
            yield Shipped(subject, name, lambda budget, plan=plan: plan)


def whole(subject: Subject, skip: str, uniform: bool, budget: float) -> CachePlan:
    """The whole prediction reused: even steps, or a protected start and end like `balanced`."""
    count = max(1, round(STEPS / budget))
    computed = even(STEPS, count) if uniform else protected_ends(STEPS, count)
    sites = from_steps(STEPS, computed, subject.planned.family.branches, skip)
    like = build_preset(subject.planned, "release")
    return plan_on(like, f"{skip} {count}", sites, f"{count} computed steps")


def paper(subject: Subject, budget: float) -> CachePlan:
    """The released background blocks of all lists on one shrinking list of steps.

    Warm-up, Tmax and Tmin: of those that come within 1 % of the budget the nearest to the
    release's, else those that come nearest to the budget.
    """
    planned = subject.planned
    runs = {n: r.background_at(planned.depth(n)) for n, r in planned.family.released.items()}
    reused = sum(last - first + 1 for each in runs.values() for first, last in each)
    share = reused / sum(planned.fingerprint.block_lists.values())

    def misses(settings: tuple[int, int, int]) -> tuple[float, float]:
        computed = len(stepwise(STEPS, *settings))
        off = abs(log(budget * (1 - share * (1 - computed / STEPS))))
        warmup, tmax, tmin = settings
        far = abs(log(tmax / TMAX)) + abs(log(tmin / TMIN)) + abs(warmup - WARMUPS[0]) / STEPS
        return max(off, 0.01), far

    found = product(WARMUPS, range(2, LONGEST + 1), range(1, LONGEST + 1))
    warmup, tmax, tmin = min((each for each in found if each[2] <= each[1]), key=misses)
    shape = {"steps": STEPS, "warmup": warmup, "longest": tmax, "shortest": tmin}
    shape["branches"] = planned.family.branches
    sites = [site for name, of in runs.items() for site in from_shrinking(name, of, **shape)]
    words = f"warm-up {warmup}, Tmax {tmax}, Tmin {tmin}"
    return plan_on(build_preset(planned, "release"), f"paper {budget:g}x", sites, words)


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}

"""Tuning on calibration prompts: every candidate run once, kept in a file, the best one taken.

A threshold is found by bisection on a log scale until the mean speed-up by block FLOPs is within
TOLERANCE of the budget. All variants of a peer are tuned on the first tuning prompt; the FINALISTS
with the best PSNR there are tuned on all of them, and the best of these is taken. Several processes
share the files: who tunes a policy holds its lock, the others wait and then find the results.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isnan, sqrt
from math import log as ln
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.baselines import MagCache, Peer, TeaCache, Variant
from benchmarks.baselines.magcache import MagBranch
from benchmarks.baselines.teacache import Changes
from benchmarks.compare.samplers import Reference, Sampler, Thresholded, measured
from benchmarks.lib.clips import Inputs, Tree
from benchmarks.lib.command_line import log
from profiling_core.files import write_whole

TOLERANCE = 0.02  # of the speed-up that is asked for
REACH = 0.1  # a threshold further off than this does not reach the budget
NARROW = 1.01  # ratio of a bracket's ends that ends the bisection
AROUND = 1.6  # finalists: from the threshold of the first prompt divided by this to times this
FINALISTS = 2
SMALLEST = 1e-3  # of a span, where the log scale begins
WHOLE = ("diffusers TaylorSeer", "diffusers PAB")  # their threshold is a number of steps


class UnreachableError(ValueError):
    """A policy cannot be run at a budget; says why."""


@dataclass(frozen=True)
class Score:
    """Means over tuning prompts."""

    speedup: float  # full over spent block FLOPs of all prompts together
    psnr: float

    @property
    def rank(self) -> float:
        return float("-inf") if isnan(self.psnr) else self.psnr

    def off(self, budget: float) -> float:
        """Relative distance from the budget, the same in both directions."""
        return abs(ln(self.speedup / budget))


class Tuning:
    """Scores of samplers on the tuning prompts; what was run is kept in `folder`."""

    def __init__(self, tree: Tree, references: Sequence[Reference], folder: Path) -> None:
        self.tree, self.references, self.folder = tree, references, folder
        self.known: dict[str, dict[str, list[float]]] = {}  # sampler, prompt: speed-up and PSNR
        self.policy = ""
        self.runs = 0

    @contextmanager
    def locked(self, policy: str) -> Iterator[None]:
        """Inside, this process alone tunes the policy, and knows what was run for it before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.policy = policy
        with open(self.path("lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the system if the process dies
            path = self.path("json")
            self.known = json.loads(path.read_text("utf-8")) if path.exists() else {}
            yield

    def path(self, kind: str) -> Path:
        return self.folder / f"{re.sub('[^A-Za-z0-9]+', '-', self.policy)}.{kind}"

    def score(self, sampler: Sampler, prompts: int | None = None) -> Score:
        """Means over the first tuning prompts, by default all."""
        found = [self._figures(sampler, reference) for reference in self.references[:prompts]]
        return Score(1 / mean(1 / speed for speed, _ in found), mean(psnr for _, psnr in found))

    def best(self, samplers: Sequence[Sampler], budget: float) -> Sampler:
        """The best PSNR of those that meet the budget; UnreachableError when none is near.

        Compute is equal: who misses the budget counts only where nobody meets it.
        """
        scores = [self.score(sampler) for sampler in samplers]
        closest = min(score.off(budget) for score in scores)
        if closest > REACH:
            nearest = min(scores, key=lambda score: score.off(budget)).speedup
            raise UnreachableError(f"{budget:g}x is not reached: the nearest is {nearest:.2f}x")
        limit = max(closest, TOLERANCE) + 1e-3
        near = [n for n, score in enumerate(scores) if score.off(budget) <= limit]
        return samplers[max(near, key=lambda n: scores[n].rank)]

    def _figures(self, sampler: Sampler, reference: Reference) -> list[float]:
        of_sampler = self.known.setdefault(sampler.key, {})
        name = f"{reference.prompt} ({reference.seed})"
        if name not in of_sampler:
            row = measured(self.tree, sampler, reference)
            of_sampler[name] = [row["speedup"], row["psnr_frames"]]
            self.runs += 1
            write_json(self.path("json"), self.known)
            speed, psnr = of_sampler[name]
            log(f"{self.tree.name} tuning {self.policy}: {sampler.key}: {speed:.2f}x {psnr:.1f} dB")
        return of_sampler[name]


def tuned(tuning: Tuning, peer: Peer, budget: float) -> Sampler:
    """The peer at the budget: its best variant and threshold on the tuning prompts.

    UnreachableError when no variant comes near the budget.
    """
    samplers = []
    for variant in peer.variants(tuning.tree):
        make = _maker(peer, variant)
        low, high = peer.span(variant)
        quick = _quick(tuning, peer, variant, make)
        samplers.append(make(bisect(quick, max(low, high * SMALLEST), high, budget)))
    scores = {sampler.key: tuning.score(sampler, 1) for sampler in samplers}
    closest = min(score.off(budget) for score in scores.values())
    near = [
        sampler for sampler in samplers if scores[sampler.key].off(budget) <= max(closest, REACH)
    ]
    near.sort(key=lambda sampler: -scores[sampler.key].rank)
    return tuning.best([_refined(tuning, sampler, budget) for sampler in near[:FINALISTS]], budget)


def bisect(speedup_at: Callable[[float], float], low: float, high: float, target: float) -> float:
    """The threshold whose speed-up comes nearest to the target, of those tried.

    speedup_at grows with the threshold; steps are allowed. Budgets try the same thresholds first,
    since the span is always halved at the same places.
    """
    tried = {high: speedup_at(high)}
    while tried[high] > target and high > low * NARROW:
        middle = sqrt(low * high)
        tried[middle] = speedup_at(middle)
        if abs(tried[middle] / target - 1) <= TOLERANCE:
            return middle
        low, high = (middle, high) if tried[middle] < target else (low, middle)
    return min(tried, key=lambda threshold: abs(ln(tried[threshold] / target)))


def calibrated(peer: Peer, tree: Tree, inputs: Callable[[], Sequence[Inputs]], path: Path) -> Peer:
    """The peer with the calibration in `path`, which is recorded first where it is missing."""
    names = list(vars(type(peer)()))  # what a calibration fills
    if not path.exists():
        peer.calibrate(tree, inputs())
        write_json(path, {name: getattr(peer, name) for name in names})
    state = json.loads(path.read_text("utf-8"))
    if isinstance(peer, TeaCache):
        state["changes"] = {name: Changes(**found) for name, found in state["changes"].items()}
    vars(peer).update(state)
    return peer


def write_json(path: Path, value: Any) -> None:
    """Write under a temporary name, then rename; dataclasses become objects."""
    write_whole(path, json.dumps(value, default=asdict, ensure_ascii=False).encode())


def _maker(peer: Peer, variant: Variant) -> Callable[[float], Thresholded]:
    def make(threshold: float) -> Thresholded:
        digits = round(threshold) if peer.name in WHOLE else float(f"{threshold:.4g}")
        return Thresholded(peer, variant, digits)

    return make


def _quick(
    tuning: Tuning, peer: Peer, variant: Variant, make: Callable[[float], Thresholded]
) -> Callable[[float], float]:
    """Speed-up at a threshold on the first tuning prompt; without a run where a rule allows it."""
    if isinstance(peer, MagCache):
        return lambda threshold: magcache_speedup(peer, variant, make(threshold).threshold)
    return lambda threshold: tuning.score(make(threshold), 1).speedup


def magcache_speedup(peer: MagCache, variant: Any, threshold: float) -> float:
    """The schedule follows from the ratios alone, and a reused call runs no block."""
    calls = reused = 0
    for ratios in peer.ratios.values():
        branch = MagBranch(ratios, variant, threshold)
        reused += sum(branch.reuses(step, None) for step in range(len(ratios)))
        calls += len(ratios)
    return calls / (calls - reused)


def _refined(tuning: Tuning, sampler: Thresholded, budget: float) -> Sampler:
    """The same variant, its threshold right for the mean over all tuning prompts."""
    if tuning.score(sampler).off(budget) <= TOLERANCE:
        return sampler
    make = _maker(sampler.peer, sampler.variant)
    low = sampler.threshold / AROUND
    high = min(sampler.threshold * AROUND, sampler.peer.span(sampler.variant)[1])
    found = make(bisect(lambda t: tuning.score(make(t)).speedup, low, high, budget))
    return min((sampler, found), key=lambda one: tuning.score(one).off(budget))

"""Alternating timing, and the cost of the calls that a plan is made of: bare, keeping, reusing."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.lib.schedules import plan_on
from profiling_core.engine.anchors import tensors_of
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.engine.run_stats import timed_call
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held, kinds, speedup_flops, visit
from profiling_core.plan.model_specs import MODELS, PlannedModel
from profiling_core.plan.presets import build_preset, load_preset, presets_of

Call = Callable[[], Any]
PLANS = ("release", "paper", "foreground", "balanced")


@dataclass(frozen=True)
class Subject:
    """A model and one call of it with fixed inputs, as a denoising loop makes it."""

    name: str
    model: nn.Module
    call: Call
    planned: PlannedModel  # its block lists, family and clip: the presets are made for them
    kernel: str = ""  # of attention, as choose_kernel names it

    @property
    def presets(self) -> list[str]:
        return [preset for preset in PLANS if preset in presets_of(self.planned)]

    def plan(self, preset: str) -> CachePlan:
        """The shipped plan where this is a shipped model's size, else its like for this one."""
        name, fingerprint = self.planned.fingerprint.name, self.planned.fingerprint
        if name in MODELS and MODELS[name].fingerprint == fingerprint:
            return load_preset(name, preset)
        return build_preset(self.planned, preset)


def all_compute(plan: CachePlan) -> CachePlan:
    """The same model with every step computed, all seams in place and walked."""
    every = dict.fromkeys(plan.branches, tuple(range(plan.steps)))
    intervals = [
        {
            "kind": "intervals",
            "block_list": name,
            "intervals": [[0, length - 1]],
            "compute_steps": every,
            "skip": "hold",
        }
        for name, length in plan.model.block_lists.items()
    ]
    sites = [{"kind": "prediction", "compute_steps": every, "skip": "hold"}, *intervals]
    return plan_on(plan, "all compute", sites, "every step computed")


@dataclass(frozen=True)
class CallCosts:
    """Median seconds per call of the model, from rounds in which they alternate."""

    bare: float
    seconds: dict[str, float]  # per kind of call; 'run' is taken for a bare one
    counts: dict[str, int]  # calls of each kind in one clip
    calls: int  # of one clip without a plan
    attached_over_bare: float  # all-compute plan attached, paired by round
    ideal: float

    @property
    def keeping(self) -> float:
        """All blocks run, anchors are stored."""
        return self.seconds.get("keep", self.bare)

    @property
    def reusing(self) -> float:
        """All sites reuse; 0 where the solver jumps: there is no such call."""
        return self.seconds.get("reuse", 0.0)

    @property
    def achieved(self) -> float:
        """Speed-up of the whole loop, built from these calls and the plan's counts of them."""
        each = {**self.seconds, "run": self.bare}
        return self.calls * self.bare / sum(each[kind] * n for kind, n in self.counts.items())

    def as_row(self) -> dict[str, Any]:
        names = ("bare", "keeping", "reusing", "attached_over_bare", "achieved", "ideal")
        return {
            **{name: round(getattr(self, name), 5) for name in names},
            "achieved_over_ideal": round(self.achieved / self.ideal, 4),
            "kinds": {
                kind: {"calls": count, "seconds": round(self.seconds.get(kind, self.bare), 5)}
                for kind, count in self.counts.items()
            },
        }


def measure(subject: Subject, plan: CachePlan, rounds: int, device: torch.device) -> CallCosts:
    """Alternate bare calls, all-compute ones and one of every kind that the plan has.

    Calls are timed in the plan's first branch; they cost the same in the others.
    """
    first = plan.branches[0]
    kind_of = kinds(plan, first)
    steps = visit(plan, first, set(kind_of.values()) - {"run"})
    empty = all_compute(plan)
    bare, attached, by_kind = [], [], {kind_of[step]: [] for step in steps}
    for number in range(rounds + 1):
        bare_now = timed(subject.call, device)
        attached_now = _attached(subject, empty, [0], device)[0]
        planned = _attached(subject, plan, steps, device)
        if number:  # the first round warms up
            bare.append(bare_now)
            attached.append(attached_now)
            for step, seconds in zip(steps, planned, strict=True):
                by_kind[kind_of[step]].append(seconds)
    return CallCosts(
        bare=median(bare),
        seconds={kind: median(seconds) for kind, seconds in by_kind.items()},
        counts=Counter(kind for b in plan.branches for kind in kinds(plan, b).values()),
        calls=plan.steps * len(plan.branches),
        attached_over_bare=paired_ratio(attached, bare),
        ideal=speedup_flops(plan),
    )


def cost_row(
    subject: Subject, plan: CachePlan, rounds: int, device: torch.device
) -> dict[str, Any]:
    """What a plan costs on a subject: seconds of its calls, the most memory, bytes of anchors."""
    reset_peak(device)
    costs, peak = measure(subject, plan, rounds, device), peak_memory(device)
    held, formula = measured_bytes(subject, plan, device)
    facts = {"tokens": subject.planned.clip.tokens, "rounds": rounds, **costs.as_row()}
    return {**facts, "bytes": held, "bytes_formula": formula, "peak_bytes": peak}


def _attached(
    subject: Subject, plan: CachePlan, steps: list[int], device: torch.device
) -> list[float]:
    cache = DeltaCache(plan)
    taken = []
    with cache.attached(subject.model):
        for step in steps:
            cache.begin(step, plan.branches[0])
            taken.append(timed(subject.call, device))
    return taken


def measured_bytes(subject: Subject, plan: CachePlan, device: torch.device) -> tuple[int, int]:
    """Bytes really held once all branches kept what a step reuses at most, and the plan's formula.

    On CUDA the allocator's count, on the CPU the storages of all live tensors.
    """
    cache, sizes = DeltaCache(plan), formula_sizes(subject)
    with cache.attached(subject.model):
        before = live_bytes(device)
        for step in visit(plan, plan.branches[0], {"reuse"})[:-1]:
            for branch in plan.branches:
                cache.begin(step, branch)
                subject.call()
        held = live_bytes(device) - before
    return held, bytes_held(plan, **sizes)


def formula_sizes(subject: Subject) -> dict[str, int]:
    """What the formula of bytes is given: the clip's sizes, and the types of one bare call."""
    stream: set[int] = set()

    def see(block: nn.Module, args: tuple, output: Any) -> None:
        stream.update(tensor.element_size() for tensor in tensors_of(output))

    lists = [getattr(subject.model, name) for name in subject.planned.fingerprint.block_lists]
    hooks = [block.register_forward_hook(see) for blocks in lists for block in blocks]
    prediction = {tensor.element_size() for tensor in tensors_of(subject.call())}
    for hook in hooks:
        hook.remove()
    if len(stream) > 1 or len(prediction) > 1:
        raise ValueError(f"blocks return items of {stream} bytes, predictions of {prediction}")
    return {
        "tokens": subject.planned.clip.tokens,
        "latent_numel": subject.planned.clip.latent,
        "stream_itemsize": stream.pop(),
        "prediction_itemsize": prediction.pop(),
    }


def live_bytes(device: torch.device) -> int:
    """Bytes of live tensor memory on the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    storages = {}
    for item in gc.get_objects():
        if type(item) is torch.Tensor or type(item) is nn.Parameter:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def alternate(
    variants: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every variant, taken in turn: a slow moment of the machine hits all of them.

    One round is run and thrown away first. The order turns around every round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        order = list(variants) if number % 2 else list(reversed(variants))
        for name in order:
            taken = timed(variants[name], device)
            if number:
                seconds[name].append(taken)
    return seconds


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    return timed_call(call, device)[1]


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes allocated on a GPU since reset_peak; 0 on the CPU, which keeps no count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def paired_ratio(one: list[float], other: list[float]) -> float:
    """Median over rounds of one / other, each pair from the same round."""
    return median(a / b for a, b in zip(one, other, strict=True))

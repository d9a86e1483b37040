"""Cost of the calls that a plan is made of: bare, keeping anchors, reusing them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from common import paired_ratio, timed
from profiling_core.cost import anchor_lifetimes, bytes_held, speedup_flops
from profiling_core.delta_cache import DeltaCache
from profiling_core.plan import BRANCHES, CachePlan

Call = Callable[[], Any]


def all_compute(plan: CachePlan) -> CachePlan:
    """The same model with every step computed, both seams in place and walked."""
    every = dict.fromkeys(plan.branches, tuple(range(plan.steps)))
    last = plan.model.block_lists["blocks"] - 1
    return CachePlan.build(
        name="all compute",
        model=plan.model,
        steps=plan.steps,
        sigmas=plan.sigmas,
        solver=plan.solver,
        shift=plan.shift,
        sites=[
            {"kind": "prediction", "compute_steps": every, "skip": "hold"},
            {
                "kind": "intervals",
                "block_list": "blocks",
                "intervals": [[0, last]],
                "compute_steps": every,
                "skip": "hold",
            },
        ],
        provenance={"made_by": "benchmarks", "source": "every step computed"},
    )


@dataclass(frozen=True)
class CallCosts:
    """Median seconds per call of the model, from rounds in which they alternate."""

    bare: float
    keeping: float  # all blocks run, anchors are stored
    reusing: float  # 0 where the solver jumps: there is no such call
    attached_over_bare: float  # all-compute plan attached, paired by round
    achieved: float  # speed-up of the whole loop, built from these calls
    ideal: float

    def as_row(self) -> dict[str, float]:
        rounded = {key: round(value, 5) for key, value in vars(self).items()}
        return {**rounded, "achieved_over_ideal": round(self.achieved / self.ideal, 4)}


def measure(
    model: nn.Module, call: Call, plan: CachePlan, rounds: int, device: torch.device
) -> CallCosts:
    """Alternate bare, all-compute, keeping and reusing calls of `model` made by `call`.

    The loop's time is put together from the plan's own counts of each kind of call.
    """
    computed, reused = first_reuse(plan)
    empty = all_compute(plan)
    seconds: dict[str, list[float]] = {name: [] for name in ("bare", "all", "keep", "reuse")}
    for number in range(rounds + 1):
        taken = {"bare": timed(call, device), "all": _attached(model, call, empty, [0], device)[0]}
        if reused is not None:
            *_, taken["keep"], taken["reuse"] = _attached(
                model, call, plan, [*computed, reused], device
            )
        if number:  # the first round warms up
            for name, value in taken.items():
                seconds[name].append(value)
    bare = median(seconds["bare"])
    keeping = median(seconds["keep"]) if seconds["keep"] else bare
    reusing = median(seconds["reuse"]) if seconds["reuse"] else 0.0
    return CallCosts(
        bare=bare,
        keeping=keeping,
        reusing=reusing,
        attached_over_bare=paired_ratio(seconds["all"], seconds["bare"]),
        achieved=_loop_speedup(plan, bare, keeping, reusing),
        ideal=speedup_flops(plan),
    )


def measured_bytes(
    model: nn.Module, call: Call, plan: CachePlan, device: torch.device, **sizes: int
) -> tuple[int, int]:
    """Bytes really held after both branches kept their anchors, and the plan's formula.

    On CUDA the allocator's count, on the CPU the storages of all live tensors.
    """
    computed, _ = first_reuse(plan)
    cache = DeltaCache(plan)
    with cache.attached(model):
        before = live_bytes(device)
        for step in computed:
            for branch in plan.branches:
                cache.begin(step, branch)
                call()
        held = live_bytes(device) - before
    return held, bytes_held(plan, **sizes)


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


def _attached(
    model: nn.Module, call: Call, plan: CachePlan, steps: list[int], device: torch.device
) -> list[float]:
    cache = DeltaCache(plan)
    taken = []
    with cache.attached(model):
        for step in steps:
            cache.begin(step, BRANCHES[0])
            taken.append(timed(call, device))
    return taken


def first_reuse(plan: CachePlan) -> tuple[list[int], int | None]:
    """The first reuse step that needs the most anchors, and the compute steps it needs."""
    best: tuple[list[int], int | None] = ([], None)
    for site in plan.sites:
        for step, forecast in sorted(plan.forecasts(site, BRANCHES[0]).items()):
            if len(forecast) > len(best[0]):
                best = (sorted(anchor for anchor, _ in forecast), step)
    return best


def _loop_speedup(plan: CachePlan, bare: float, keeping: float, reusing: float) -> float:
    """Steps x bare call over the plan's own mix of calls, one site deciding per step."""
    site = plan.sites[0]
    total = 0.0
    for branch in plan.branches:
        kept = anchor_lifetimes(plan, site, branch)
        computed = plan.computes(site, branch)
        reused = plan.forecasts(site, branch)
        total += keeping * len(kept) + bare * (len(computed) - len(kept)) + reusing * len(reused)
    return plan.steps * len(plan.branches) * bare / total

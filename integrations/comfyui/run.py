"""One run of a ComfyUI sampler by a plan.

ComfyUI's solvers ask for the clean latent D of x at a noise level sigma; a plan speaks of the flow

    v = (x - D) / sigma,   so that   D = x - sigma v.

The prediction that is computed or reused is the guided one, the last before the solver: batches,
context windows, ControlNets and guidance nodes all lie below it, and one latent of it is kept. It
is a model of its own to the engine's DeltaCache, which holds, forecasts and corrects it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

import torch
from torch import nn

from profiling_core.engine.block_lists import block_list, hidden_width, unwrapped
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.errors import PlanError
from profiling_core.loops.diffusers_models import (
    checked_name,
    fingerprint_of,
    named_lists,
    plan_for_solver,
)
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import block_runs, block_runs_full
from profiling_core.plan.describe import format_bytes, summary_lines
from profiling_core.plan.regrid import at_speed, regrid
from profiling_core.plan.restrict import on_visited_steps, plain_jumps, plan_of_both

from .intervals import BlockDeltas, against_intervals
from .samplers import solver_of

KEY, RUN = "profiling_dit", "profiling_dit_run"  # in a MODEL's transformer_options; during a run
_SHORTENED: dict[tuple[float, ...], int] = {}  # noise levels that ProfilingDiT Sigmas made

logger = logging.getLogger("profiling_core")


@dataclass(frozen=True)
class Request:
    """What a Plan node asks for; `lines` is the report of the last run.

    plan: a plan, or a preset's name; speedup: 0 for the plan's own; whole: the noise levels of the
    whole run where a sampler has a part of it.
    """

    plan: CachePlan | str
    speedup: float = 0.0
    whole: tuple[float, ...] = ()
    lines: list[str] = field(default_factory=list)

    def __deepcopy__(self, memo: dict) -> Request:
        return self  # a clone of the MODEL has the same report


def levels_of(sigmas: torch.Tensor) -> tuple[float, ...]:
    """The noise level of every step: SIGMAS without the last, which is where they lead to."""
    return tuple(float(sigma) for sigma in sigmas[:-1])


def mark_shortened(levels: tuple[float, ...], shortened: torch.Tensor) -> None:
    """Remember what ProfilingDiT Sigmas made, so that no plan shortens it again."""
    if len(shortened) <= len(levels):
        _SHORTENED[levels_of(shortened)] = len(levels)


def refuse_other_caches(options: dict[str, Any], wrappers: dict[str, dict[str, Any]]) -> None:
    """PlanError names another cache on the model: two would skip each other's steps."""
    keys = [*options, *(key for kind in wrappers.values() for key in kind)]
    other = next((key for key in keys if isinstance(key, str) and "cache" in key.lower()), None)
    if other is not None:
        raise PlanError(
            f"this MODEL has another cache ({other!r}): two caches would reuse what the other one "
            "reused; take one of the two nodes out"
        )


def settle(
    request: Request,
    model: nn.Module,
    levels: Sequence[float],
    end: float,
    solver: str,
    shift: float,
) -> CachePlan:
    """The plan of one guided prediction a step, on the levels of a run that leads to `end`.

    PlanError for a plan of another model, or one that this solver cannot follow.
    """
    fingerprint = fingerprint_of(model)
    plan = plan_for_solver(checked_name(request.plan, fingerprint), fingerprint, solver)
    plan.check_model(fingerprint.block_lists, fingerprint.width)
    plan = plan_of_both(at_speed(plan, request.speedup) if request.speedup else plain_jumps(plan))
    whole = request.whole or None
    return regrid(plan, levels, solver=solver, shift=shift, whole_run=whole, end=end)


class Flow(nn.Module):
    """The guided flow as a model: what DeltaCache is attached to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, path in named_lists(model).items():
            setattr(self, name, block_list(model, name, {name: path}))
        self.dim = hidden_width(model)
        self.clean: tuple[torch.Tensor, torch.Tensor] | None = None  # the last flow, and its D

    def forward(
        self, x: torch.Tensor, sigma: torch.Tensor, compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        clean = compute()
        flow = (x - clean) / sigma
        self.clean = (flow, clean)
        return flow


class Run:
    """The state of one run; `sigmas` are those that the sampler is given."""

    def __init__(
        self, plan: CachePlan, model: nn.Module, sigmas: torch.Tensor, request: Request, place: str
    ) -> None:
        self.plan, self.request = plan, request
        self.sigmas = sigmas[[*plan.solver_steps, plan.steps]] if plan.jumps else sigmas
        visited = on_visited_steps(plan)
        self._levels = visited.sigmas
        sites = [plan.prediction] if plan.prediction and not plan.jumps else []
        self.cache = DeltaCache(visited.replace(sites=sites))
        self.flow = Flow(model)
        self.cache.attach(self.flow)
        self.deltas = BlockDeltas(visited, place) if visited.interval_sites else None
        self._bytes, self._start = 0, time.monotonic()

    @classmethod
    def settled(cls, request: Request, guider: Any, sampler: Any, sigmas: torch.Tensor) -> Run:
        """The run of `sampler` over `sigmas`; PlanError where it cannot run by the plan."""
        request.lines.clear()
        patcher = guider.model_patcher
        model = unwrapped(patcher.model.diffusion_model)
        refuse_other_caches(
            guider.model_options["transformer_options"],
            guider.model_options["transformer_options"].get("wrappers", {}),
        )
        sampling = patcher.get_model_object("model_sampling")
        if not any(kind.__name__ == "CONST" for kind in type(sampling).__mro__):
            raise PlanError(
                f"{type(model).__name__} is not sampled as a flow, whose noise levels fall from 1 "
                "to 0: plans are made for flow models, take the ProfilingDiT Plan out"
            )
        solver, levels = solver_of(sampler), levels_of(sigmas)
        if levels in _SHORTENED:
            raise PlanError(
                f"these SIGMAS were shortened from {_SHORTENED[levels]} to {len(levels)} steps by "
                "ProfilingDiT Sigmas: connect the whole ones, or take ProfilingDiT Plan out"
            )
        shift, end = float(getattr(sampling, "shift", 1.0)), float(sigmas[-1])
        plan = settle(request, model, levels, end, solver, shift)
        if plan.interval_sites:
            reason = against_intervals(model, guider)
            if reason is not None:
                raise PlanError(
                    f"plan {plan.name!r} reuses blocks, but {reason}: take a plan that reuses the "
                    "whole prediction (quality, balanced, fast)"
                )
        offloads = patcher.offload_device != patcher.load_device
        place = "host" if offloads else plan.storage_place
        run = cls(plan, model, sigmas, request, place)
        run._log(*plan.notes, *summary_lines(plan))
        return run

    def installed(self, options: dict[str, Any]) -> dict[str, Any]:
        """transformer_options with this run, and with the blocks' replacements."""
        if self.deltas is None:
            return options | {RUN: self}
        replaced = options.get("patches_replace", {})
        dit = replaced.get("dit", {})
        dit = dit | self.deltas.replacements(dit)
        return options | {RUN: self, "patches_replace": replaced | {"dit": dit}}

    def predict(
        self, x: torch.Tensor, timestep: torch.Tensor, compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """The clean latent of x, computed or from earlier flows."""
        sigma = timestep.reshape(-1, *[1] * (x.ndim - 1)).to(x)
        step = self._step(float(timestep.max()))
        self.cache.begin(step)
        if self.deltas is not None:
            self.deltas.begin(step)
        flow = self.flow(x, sigma, compute)
        if self.deltas is not None:
            self.deltas.check_asked()
        computed, self.flow.clean = self.flow.clean, None
        self._bytes = max(self._bytes, self.cache.stats.peak_bytes + self._delta_bytes())
        if computed is not None and computed[0] is flow:
            return computed[1]
        return x - sigma * flow

    def evaluate(self, window: Any, compute: Callable[[], Any]) -> Any:
        """One evaluation of the conditionings."""
        if self.deltas is None:
            return compute()
        with self.deltas.evaluation(window):
            return compute()

    def finish(self) -> None:
        """Report what the run did; PlanError for a run that never asked for a prediction."""
        stats, plan = self.cache.stats, self.plan
        if not stats.model_calls:
            raise PlanError(
                "the sampler never called the model through ComfyUI's guider, so the plan was not "
                "used: take the ProfilingDiT Plan out"
            )
        share = stats.model_calls / plan.steps
        if self.deltas is not None:
            share *= self.deltas.share
        place = self.deltas.place if self.deltas is not None else "device"
        self._log(
            f"computed {stats.model_calls} of {plan.steps} steps in "
            f"{time.monotonic() - self._start:.1f} s",
            f"{100 * share:.1f} % of the blocks ran, expected "
            f"{100 * block_runs(plan) / block_runs_full(plan):.1f} %",
            f"held at most {format_bytes(self._bytes)} in {place} memory",
        )

    def close(self) -> None:
        """Free everything."""
        self.cache.detach()
        if self.deltas is not None:
            self.deltas.clear()

    def _delta_bytes(self) -> int:
        return 0 if self.deltas is None else self.deltas.nbytes

    def _step(self, sigma: float) -> int:
        for step, level in enumerate(self._levels):
            if isclose(sigma, level, rel_tol=1e-5):
                return step
        raise PlanError(
            f"the sampler asks for noise level {sigma:.6g}, which is none of this run's "
            f"{len(self._levels)}: it does not visit the SIGMAS that it was given"
        )

    def _log(self, *lines: str) -> None:
        self.request.lines.extend(lines)
        for line in lines:
            logger.info(line)

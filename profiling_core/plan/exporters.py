"""A plan's computed steps in the formats of other engines (formats.py).

They hold or extrapolate in ways of their own, so an export says what is lost. What a format cannot
say is refused: intervals of blocks, branches that differ, noise levels that are stepped over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from profiling_core.errors import PlanError
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.formats import (
    SglangCalibration,
    SglangPredictor,
    SglangRequest,
    SglangSchedule,
    check_levels,
    checked,
)
from profiling_core.plan.plan import CachePlan
from profiling_core.plan.schema import Branch, Steps


@dataclass(frozen=True)
class Export:
    """A plan in another engine's format."""

    document: Any  # JSON
    notes: tuple[str, ...]  # how the engine takes it, and what is lost there


def export(plan: CachePlan, target: str, *, file: str = "FILE", request: Any = None) -> Export:
    """The plan for `target`, one of TARGETS.

    file: the name of the file to be, for the notes; request: for SGLang alone, the decoded JSON of
    a schedule of its own for the same request, or of that one's `request`. PlanError where the
    format cannot hold the plan.
    """
    engine, write = TARGETS[target]
    if (request is None) is (target == "sglang-dpcache"):
        raise PlanError(
            "--request FILE goes with --to sglang-dpcache and only with it: a schedule that SGLang "
            "made for the same request, whose checkpoint, size, guidance and scheduler it compares"
        )
    steps = _steps_for(plan, target, engine)
    document, notes = write(plan, steps, file, request)
    if target != "sglang-dpcache":
        run = f"{plan.steps} {plan.solver} steps at shift {plan.shift:g}"
        notes.append(f"for {run} alone: the file has step numbers, no noise levels")
    return Export(document, tuple(notes))


def _steps_for(plan: CachePlan, target: str, engine: str) -> dict[Branch, Steps]:
    """The computed steps of each branch; PlanError for what step lists cannot say."""
    if plan.interval_sites:
        raise PlanError(
            f"plan {plan.name!r} reuses intervals of {plan.interval_sites[0].block_list}, but "
            f"{engine} takes steps of the whole model: take a plan that reuses the prediction"
        )
    every = tuple(range(plan.steps))
    site = plan.prediction
    steps = {branch: site.compute_steps[branch] if site else every for branch in plan.branches}
    if plan.jumps and steps["cond"] != every and target != "steps":
        raise PlanError(
            f"plan {plan.name!r} lets the solver step over noise levels, but {engine} visits all: "
            "take a plan that holds (profiling-dit plan --modes hold, a list by profiling-dit "
            "import), run this one with cache_pipeline, or export it --to steps"
        )
    if len(set(steps.values())) > 1 and target != "lightx2v":
        raise PlanError(
            f"plan {plan.name!r} computes other steps for uncond than for cond, but {engine} has "
            "one list for both: take a plan whose branches agree, or --to lightx2v"
        )
    return steps


def _for_cache_dit(
    plan: CachePlan, steps: dict[Branch, Steps], file: str, _: Any
) -> tuple[Any, list[str]]:
    computed = steps["cond"]
    mask = [int(step in computed) for step in range(plan.steps)]
    config = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "num_inference_steps": plan.steps,
        "enable_separate_cfg": len(plan.branches) == 2,
        "steps_computation_mask": mask,
        "steps_computation_policy": "static",
    }
    bins = [(value, sum(1 for _ in run)) for value, run in groupby(mask)]
    compute, reuse = (",".join(str(n) for v, n in bins if v == value) for value in (1, 0))
    depths = plan.model.block_lists.values()
    runs = len(computed) * sum(depths) + (plan.steps - len(computed)) * len(depths)
    bound = plan.steps * sum(depths) / runs
    return {"cache_config": config}, [
        f'use: cache_dit.enable_cache(pipe, **cache_dit.load_configs("{file}"))',
        "use in SGLang, without the file: SGLANG_CACHE_DIT_ENABLED=true "
        f"SGLANG_CACHE_DIT_SCM_POLICY=static SGLANG_CACHE_DIT_SCM_COMPUTE_BINS={compute} "
        f"SGLANG_CACHE_DIT_SCM_CACHE_BINS={reuse}",
        f"lost: mode {_mode(plan)}; cache-dit adds what the blocks added at the last computed step",
        "lost: the first block of each list runs at every step, so at most "
        f"{bound:.2f}x instead of {speedup_flops(plan):.2f}x",
        *["lost: one mask for cond and uncond"] * (len(steps) == 2),
    ]


def _for_sglang(
    plan: CachePlan, steps: dict[Branch, Steps], _: str, given: Any
) -> tuple[Any, list[str]]:
    computed = steps["cond"]
    if computed[:2] != (0, 1):
        raise PlanError(
            f"plan {plan.name!r} computes {list(computed[:2])} first, but SGLang draws a line "
            "through two: take a plan that computes steps 0 and 1"
        )
    try:
        own = isinstance(given, dict) and "request" in given
        request = checked(SglangRequest, given["request"] if own else given)
        check_levels(request, plan.sigmas)
    except PlanError as error:
        raise PlanError(f"--request: {error}") from None
    document = SglangSchedule(
        schema="sglang-dpcache-schedule-v2",
        schedule_method="profiling-dit",
        predictor=SglangPredictor(),
        objective="pact-mean-abs-final-feature-predicted-steps-only-v1",
        source_commit=f"profiling-dit plan {plan.label}",
        request=request,
        mandatory_full_steps=(0, 1),
        force_last_full=False,
        max_gap=None,
        num_full_steps=len(computed),
        full_steps=computed,
        calibrated_cost=0.0,
        calibration=SglangCalibration(
            manifest_sha256=hashlib.sha256(plan.dumps().encode()).hexdigest(), num_samples=0
        ),
    )
    return document.model_dump(mode="json", by_alias=True), [
        "use: the folder of the file as --dpcache-schedule-dir, and in a request "
        f"dpcache_budget {len(computed)}",
        f"lost: mode {_mode(plan)}; SGLang draws a line by step number through the last two "
        "outputs of the blocks, with one list of steps for cond and uncond",
        "calibrated_cost 0 and num_samples 0 mean that SGLang measured nothing for these steps",
    ]


def _for_lightx2v(
    plan: CachePlan, steps: dict[Branch, Steps], _: str, __: Any
) -> tuple[Any, list[str]]:
    first, last = steps["cond"], steps[plan.branches[-1]]
    document = {
        "caching_records": [step in first for step in range(plan.steps)],
        "caching_records_2": [step in last for step in range(plan.steps)],
    }
    return document, [
        "use: feature_caching TaylorSeer, and set both lists on its scheduler once that is made",
        f"lost: mode {_mode(plan)}; LightX2V draws a line by step number for attention and FFN of "
        "every block",
    ]


def _as_steps(
    plan: CachePlan, steps: dict[Branch, Steps], _: str, __: Any
) -> tuple[Any, list[str]]:
    return list(steps["cond"]), [f"lost: mode {_mode(plan)}"]


def _mode(plan: CachePlan) -> str:
    """The reuse mode, in quotes; of a plan that computes everything hold."""
    return repr(plan.prediction.skip if plan.prediction else "hold")


Writer = Callable[[CachePlan, dict[Branch, Steps], str, Any], tuple[Any, list[str]]]
TARGETS: dict[str, tuple[str, Writer]] = {
    "cache-dit": ("cache-dit", _for_cache_dit),
    "sglang-dpcache": ("SGLang", _for_sglang),
    "lightx2v": ("LightX2V", _for_lightx2v),
    "steps": ("a list of steps", _as_steps),
}

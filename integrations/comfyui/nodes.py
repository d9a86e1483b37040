"""The three nodes: a plan on a MODEL, the shortened SIGMAS of a plan that jumps, and the report.

Nothing of ComfyUI is imported: the nodes use the methods of the MODEL and SIGMAS that they get.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch

from profiling_core.errors import PlanError
from profiling_core.loops.diffusers_models import checked_name, fingerprint_of, plan_for_solver
from profiling_core.plan import CachePlan
from profiling_core.plan.describe import summary_lines
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.plan import small_file
from profiling_core.plan.presets import ORDER
from profiling_core.plan.regrid import SPEEDUPS, at_speed, regrid

from .run import KEY, Request, levels_of, mark_shortened, refuse_other_caches
from .wrappers import WRAPPERS

PRESETS = [*SPEEDUPS, *(name for name in ORDER if name not in SPEEDUPS)]
CATEGORY = "ProfilingDiT"
CHOICE = {
    "plan": (
        PRESETS,
        {
            "tooltip": "quality 1.5x, balanced 2x, fast 3x; paper and release reuse "
            "blocks of every step"
        },
    ),
}
OPTIONS = {
    "plan_file": ("STRING", {"default": "", "tooltip": "a plan file, in place of the preset"}),
    "speedup": (
        "FLOAT",
        {
            "default": 0.0,
            "min": 0.0,
            "max": 10.0,
            "step": 0.05,
            "tooltip": "how many times fewer steps are computed; 0: as planned",
        },
    ),
}


def asked(plan: str, plan_file: str) -> CachePlan | str:
    """The plan of a file, or the preset's name."""
    return CachePlan.load(plan_file.strip()) if plan_file.strip() else plan


def file_hash(plan_file: str) -> str | float:
    """Tells ComfyUI when a plan file has changed; nan, equal to nothing, for no such file."""
    if not plan_file.strip():
        return ""
    try:
        found = small_file(Path(plan_file.strip()), "plan file")
        return hashlib.sha256(found).hexdigest()
    except PlanError:
        return math.nan


class Plan:
    """MODEL in, MODEL out: samplers run the second one by the plan."""

    CATEGORY, FUNCTION = CATEGORY, "apply"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        whole = {"tooltip": "all noise levels of a run that several samplers share"}
        return {
            "required": {"model": ("MODEL",), **CHOICE},
            "optional": {**OPTIONS, "whole_run": ("SIGMAS", whole)},
        }

    @classmethod
    def IS_CHANGED(cls, plan_file: str = "", **others: Any) -> str | float:
        return file_hash(plan_file)

    def apply(
        self,
        model: Any,
        plan: str = "balanced",
        plan_file: str = "",
        speedup: float = 0.0,
        whole_run: torch.Tensor | None = None,
    ) -> tuple[Any]:
        options = model.model_options.get("transformer_options", {})
        if KEY in options:
            raise PlanError(
                "this MODEL has a ProfilingDiT Plan already: two plans would skip each other's "
                "steps; take one of the nodes out"
            )
        refuse_other_caches(options, model.wrappers)
        fingerprint = fingerprint_of(model.model.diffusion_model)
        chosen = asked(plan, plan_file)
        checked_name(chosen, fingerprint)
        if isinstance(chosen, CachePlan):
            chosen.check_model(fingerprint.block_lists, fingerprint.width)
        request = Request(chosen, speedup, levels_of(whole_run) if whole_run is not None else ())
        planned = model.clone()
        planned.model_options.setdefault("transformer_options", {})[KEY] = request
        for kind, wrapper in WRAPPERS.items():
            planned.add_wrapper_with_key(kind, KEY, wrapper)
        return (planned,)


class Sigmas:
    """SIGMAS in, SIGMAS out: the noise levels that a plan that jumps lets the solver visit.

    For samplers that take SIGMAS and no MODEL of ComfyUI's. No prediction is reused, so nothing
    is cached; a sampler behind it must not have a ProfilingDiT Plan as well.
    """

    CATEGORY, FUNCTION = CATEGORY, "shorten"
    RETURN_TYPES, RETURN_NAMES = ("SIGMAS", "STRING"), ("sigmas", "report")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"sigmas": ("SIGMAS",), "model_name": ([*MODELS],), **CHOICE},
            "optional": OPTIONS,
        }

    IS_CHANGED = Plan.IS_CHANGED

    def shorten(
        self,
        sigmas: torch.Tensor,
        model_name: str,
        plan: str = "balanced",
        plan_file: str = "",
        speedup: float = 0.0,
    ) -> tuple[torch.Tensor, str]:
        if len(sigmas) < 2:  # no step, as of a part that begins at the end
            return sigmas, "no steps"
        chosen = plan_for_solver(asked(plan, plan_file), MODELS[model_name].fingerprint, "unipc")
        if not chosen.jumps:
            raise PlanError(
                f"plan {chosen.name!r} reuses what the model computed, which SIGMAS alone cannot: "
                "take the node ProfilingDiT Plan, or one of " + ", ".join(SPEEDUPS)
            )
        chosen, levels = at_speed(chosen, speedup) if speedup else chosen, levels_of(sigmas)
        there = regrid(
            chosen, levels, solver=chosen.solver, shift=chosen.shift, end=float(sigmas[-1])
        )
        shortened = sigmas[[*there.solver_steps, len(levels)]]
        mark_shortened(levels, shortened)
        return shortened, "\n".join([*there.notes, *summary_lines(there)])


class Report:
    """What the last run of a planned MODEL computed, as text."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "read", True
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        after = {"tooltip": "the sampler's output, so that the report comes after its run"}
        return {"required": {"model": ("MODEL",), "after": ("LATENT", after)}}

    def read(self, model: Any, after: Any) -> dict[str, Any]:
        request = model.model_options.get("transformer_options", {}).get(KEY)
        if request is None:
            raise PlanError("this MODEL has no plan: connect the output of ProfilingDiT Plan")
        text = "\n".join(request.lines)
        if not text:
            raise PlanError(
                "no sampler has run this MODEL: connect the output of ProfilingDiT Plan to the "
                "sampler as well, and the sampler's LATENT to `after`"
            )
        return {"ui": {"text": (text,)}, "result": (text,)}


NODE_CLASS_MAPPINGS = {
    "ProfilingDiTPlan": Plan,
    "ProfilingDiTSigmas": Sigmas,
    "ProfilingDiTReport": Report,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ProfilingDiTPlan": "ProfilingDiT Plan",
    "ProfilingDiTSigmas": "ProfilingDiT Sigmas",
    "ProfilingDiTReport": "ProfilingDiT Report",
}

"""Which of ComfyUI's samplers can run by a plan, and as which solver."""

from __future__ import annotations

from typing import Any

from profiling_core.errors import PlanError

# by the function: once a level, no noise added, the guided prediction alone
SOLVERS = {
    "euler": "euler",
    "unipc": "unipc",
    "unipc_bh2": "unipc",
    "dpmpp_2m": "dpm++",
    "res_multistep": "res_multistep",
    "ipndm": "ipndm",
    "deis": "deis",
    "lms": "lms",
    "gradient_estimation": "gradient_estimation",
}
NAMES = "euler, ddim, uni_pc, uni_pc_bh2, dpmpp_2m, " + ", ".join([*SOLVERS][4:])
_MODULES = ("comfy.k_diffusion.sampling", "comfy.extra_samplers.uni_pc")
_NOISE = ("s_churn", "eta")  # options that let a sampler add noise


def solver_of(sampler: Any) -> str:
    """The name of the plan's solver for a ComfyUI SAMPLER, by its function.

    PlanError for one that calls the model several times a step, adds noise, reads more than the
    guided prediction, or is not ComfyUI's own.
    """
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    short = name.removeprefix("sample_")
    if function is None or function.__module__ not in _MODULES or short not in SOLVERS:
        raise PlanError(
            f"the sampler {short!r} cannot run by a plan: it calls the model more than once a "
            "step, adds noise, reads more than the prediction, or is not ComfyUI's own; take one "
            f"of {NAMES}"
        )
    options = getattr(sampler, "extra_options", {})
    noisy = next((option for option in _NOISE if options.get(option)), None)
    if noisy is not None:
        raise PlanError(
            f"the sampler {short!r} adds noise ({noisy} = {options[noisy]:g}), which a prediction "
            f"of an earlier step knows nothing of: set {noisy} to 0"
        )
    return SOLVERS[short]

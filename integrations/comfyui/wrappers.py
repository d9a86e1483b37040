"""What stands in front of three of ComfyUI's calls; plain functions, all state is in the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from profiling_core.errors import PlanError

from .run import KEY, RUN, Run


def outer_sample(
    executor: Any,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    sampler: Any,
    sigmas: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """One run of a sampler: settles the plan on its noise levels, and frees everything at its end.

    sigmas: (steps + 1,), falling; those of a plan that jumps are shortened.
    """
    if len(sigmas) < 2:  # no step, as of a part that begins at the end
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    guider = executor.class_obj
    plain = guider.model_options
    if len(kwargs.get("latent_shapes") or ()) > 1:
        raise PlanError(
            "this model samples several latents packed into one, as video with audio: no plan is "
            "made for such a model, take the ProfilingDiT Plan out"
        )
    options = plain["transformer_options"]
    run = Run.settled(options[KEY], guider, sampler, sigmas)
    guider.model_options = plain | {"transformer_options": run.installed(options)}
    try:
        result = executor(noise, latent_image, sampler, run.sigmas, *args, **kwargs)
        run.finish()
        return result
    finally:  # also of a run that was cancelled
        guider.model_options = plain
        run.close()


def predict_noise(
    executor: Any,
    x: torch.Tensor,
    timestep: torch.Tensor,
    model_options: dict[str, Any] | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """One guided prediction: the clean latent of x, (B, C, T, H, W), at the sigmas (B,)."""
    run = _run_of(model_options)
    return run.predict(x, timestep, lambda: executor(x, timestep, model_options, seed, **kwargs))


def calc_cond_batch(
    executor: Any, model: Any, conds: Any, x: Any, timestep: Any, model_options: dict[str, Any]
) -> Any:
    """One evaluation of the conditionings, of one context window where there are several.

    The first of a step is the model's own; a further one is a guidance node's, and runs in full.
    """
    run = _run_of(model_options)
    window = model_options["transformer_options"].get("context_window")
    return run.evaluate(window, lambda: executor(model, conds, x, timestep, model_options))


def _run_of(model_options: dict[str, Any] | None) -> Run:
    run = (model_options or {}).get("transformer_options", {}).get(RUN)
    if run is None:
        raise PlanError(
            "the model was called outside of a sampler's run: a node that samples by itself cannot "
            "run by a plan, connect it to the MODEL before ProfilingDiT Plan"
        )
    return run


WRAPPERS: dict[str, Callable[..., Any]] = {  # by ComfyUI's names of the calls
    "outer_sample": outer_sample,
    "predict_noise": predict_noise,
    "calc_cond_batch": calc_cond_batch,
}

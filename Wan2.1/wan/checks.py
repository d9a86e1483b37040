"""What is checked before a run, and how a plan is put on its noise levels."""

from dataclasses import dataclass
from pathlib import Path

import torch

from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.regrid import on_grid, regrid
from profiling_core.plan.schema import BRANCHES
from profiling_core.runtime.memory import check_room

from .configs import WanConfig
from .sigmas import sigmas_fp32
from .weights import model_kwargs, transformer_bytes


def check_plan(
    plan: CachePlan, checkpoint_dir: Path, solver: str, steps: int, shift: float
) -> CachePlan:
    """`plan_for_run`, and PlanError when the checkpoint's model is not the plan's; no weights."""
    sizes = model_kwargs(checkpoint_dir)
    plan.check_model({"blocks": sizes["num_layers"]}, sizes["dim"])
    return plan_for_run(plan, solver, steps, shift)


def plan_for_run(plan: CachePlan, solver: str, steps: int, shift: float) -> CachePlan:
    """The plan on this run's noise levels; PlanError when it cannot be put on them."""
    if plan.branches != BRANCHES:
        raise PlanError(
            f"plan {plan.name!r} knows the branch {plan.branches[0]!r} alone, Wan2.1 calls the "
            "model for cond and uncond: take a plan with both"
        )
    return regrid(plan, sigmas_fp32(solver, steps, shift), solver=solver, shift=shift)


def check_on_grid(plan: CachePlan, solver: str, steps: int, shift: float) -> None:
    """PlanError for a plan of other noise levels than this run's."""
    if not on_grid(plan, sigmas_fp32(solver, steps, shift), solver=solver):
        raise PlanError(
            f"plan {plan.name!r} is for {plan.steps} {plan.solver} steps, shift {plan.shift:g}, "
            f"this run has {steps} {solver} steps, shift {shift:g}: take checks.plan_for_run first"
        )


@dataclass(frozen=True)
class Shards:
    """Over how many processes FSDP shares out the weights."""

    transformer: int = 1
    encoder: int = 1


def check_memory(
    folder: Path,
    config: WanConfig,
    device: torch.device,
    dtype: torch.dtype,
    t5_cpu: bool,
    offload_model: bool = True,
    shards: Shards | None = None,
) -> None:
    """InputError when this process's weights do not fit, on the device or on the host."""
    shards = shards or Shards()
    encoder = {"text encoder": (folder / config.t5_checkpoint).stat().st_size // shards.encoder}
    models = {
        "transformer": transformer_bytes(folder, dtype) // shards.transformer,
        "VAE": (folder / config.vae_checkpoint).stat().st_size,
    }
    if device.type == "cpu":
        check_room(models | encoder, device)
        return
    if offload_model:  # before decoding both lie on the host
        on_host = {"transformer": models["transformer"]} | encoder
        keep = "keep the transformer on the GPU with --offload_model false, "
        check_room(on_host, torch.device("cpu"), keep)
    else:
        check_room(encoder, torch.device("cpu"))
    if t5_cpu:
        check_room(models, device)
    else:
        check_room(models | encoder, device, "keep the text encoder on the CPU with --t5_cpu, ")

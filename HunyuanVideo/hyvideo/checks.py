"""What is checked and drawn before a run, and how a plan is put on its noise levels."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from loguru import logger

from profiling_core.errors import InputError, PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.regrid import on_grid, regrid
from profiling_core.runtime.memory import check_room

from .checkpoint import Files
from .config import HunyuanConfig
from .model import emulates
from .sigmas import SOLVER, sigmas_fp32
from .text_encoder import encoder_bytes
from .vae import vae_bytes
from .weights import DTYPES, transformer_bytes

LARGEST_DRAWN_SEED = 1_000_000


def clip_seeds(seed: int | Sequence[int] | None, num_videos: int) -> list[int]:
    """One seed per clip: drawn, counted up from the given one, or as given."""
    if num_videos < 1:
        raise InputError(f"num-videos {num_videos} is too few: take at least 1")
    if seed is None:
        return [random.randint(0, LARGEST_DRAWN_SEED) for _ in range(num_videos)]
    if isinstance(seed, int):
        return [seed + number for number in range(num_videos)]
    if len(seed) != num_videos:
        raise InputError(f"{len(seed)} seeds for num-videos {num_videos}: give one for each")
    return list(seed)


def computing_config(
    config: HunyuanConfig, device: torch.device, *, fp32: bool = False
) -> HunyuanConfig:
    """`config`, in fp32 where that is asked for or the processor would emulate its precision."""
    if fp32 or emulates(DTYPES[config.precision], device):
        return replace(config, precision="fp32")
    return config


def check_autocast(config: HunyuanConfig) -> None:
    """InputError for weights in half precision without autocast, which upstream fails on."""
    if config.disable_autocast and config.precision != "fp32":
        raise InputError(
            f"disable-autocast with precision {config.precision}: the transformer mixes types that "
            "only autocast brings together, take --precision fp32 with it"
        )


def warn_of_noise(recorded: bool) -> None:
    """What a run without flow_reverse gives; InputError when it is to be recorded."""
    if recorded:
        raise InputError("a profile is for falling noise levels: record with --flow-reverse")
    logger.warning(
        "without --flow-reverse THE RESULT IS NOISE: the noise levels run from 0 to 1, as upstream "
        "has it by default; add --flow-reverse for a video"
    )


def check_plan(plan: CachePlan, config: HunyuanConfig, steps: int, shift: float) -> CachePlan:
    """`plan_for_run`, and PlanError when the configured model is not the plan's; no weights."""
    sizes = config.transformer
    lists = {f"{kind}_blocks": sizes[f"mm_{kind}_blocks_depth"] for kind in ("double", "single")}
    plan.check_model(lists, sizes["hidden_size"])
    return plan_for_run(plan, steps, shift)


def plan_for_run(plan: CachePlan, steps: int, shift: float) -> CachePlan:
    """The plan on this run's noise levels; PlanError when it cannot be put on them."""
    if plan.branches != ("cond",):
        raise PlanError(
            f"plan {plan.name!r} knows the branches {' and '.join(plan.branches)}, HunyuanVideo "
            "calls the model once a step: take a plan with cond alone"
        )
    return regrid(plan, sigmas_fp32(steps, shift), solver=SOLVER, shift=shift)


def check_on_grid(plan: CachePlan, steps: int, shift: float) -> None:
    """PlanError for a plan of other noise levels than this run's."""
    if not on_grid(plan, sigmas_fp32(steps, shift), solver=SOLVER):
        raise PlanError(
            f"plan {plan.name!r} is for {plan.steps} {plan.solver} steps, shift {plan.shift:g}, "
            f"this run has {steps} {SOLVER} steps, shift {shift:g}: take checks.plan_for_run first"
        )


def check_memory(
    files: Files, config: HunyuanConfig, device: torch.device, offload: bool = False
) -> None:
    """InputError when the weights do not fit, on the device or on the host."""
    on_host = device.type == "cpu"

    def stored(precision: str) -> torch.dtype:
        return torch.float32 if on_host else DTYPES[precision]

    transformer = {"transformer": transformer_bytes(computing_config(config, device))}
    others = {
        "text encoder": encoder_bytes(files.text_encoder, stored(config.text_encoder_precision)),
        "second text encoder": encoder_bytes(
            files.text_encoder_2, stored(config.text_encoder_precision_2)
        ),
        "VAE": vae_bytes(files.vae_config, stored(config.vae_precision)),
    }
    if on_host or not offload:
        way_out = "" if on_host else "keep the others on the host with --use-cpu-offload, "
        check_room(transformer | others, device, way_out)
        return
    check_room(others, torch.device("cpu"))
    visitor = max(others, key=others.__getitem__)
    check_room(transformer | {visitor: others[visitor]}, device)

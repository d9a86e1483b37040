"""What is checked and drawn before a run, and how a plan is put on its noise levels."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import torch
from loguru import logger

from profiling_core.errors import InputError, PlanError
from profiling_core.parallel.degrees import Degrees
from profiling_core.parallel.ranks import ALONE
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.regrid import on_grid, regrid
from profiling_core.runtime.memory import Needs, check_room, sparing

from .checkpoint import Files
from .config import HunyuanConfig
from .model import emulates
from .sigmas import SOLVER, sigmas_fp32
from .text_encoder import encoder_bytes
from .vae import VaeSizes, decode_bytes, vae_sizes
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


@dataclass(frozen=True)
class Load:
    """What decides on the memory of one process, beside its checkpoint."""

    precision: str
    vae_precision: str
    use_fp8: bool = False
    offload: bool = False
    degrees: Degrees = ALONE
    latent: tuple[int, ...] | None = None  # of one clip; None: weights alone
    rows: int = 1  # samples of a model call: 2 with real guidance
    plan: CachePlan | None = None


def activation_bytes(config: HunyuanConfig, load: Load) -> int:
    """The most memory that one model call takes beside the weights.

    For each of a process's n tokens, text included, of width D and an MLP of m D, computed in c
    bytes, alive at once in a single-stream block are

        GELU       x c, linear1 (3 + m) c, attended c, both joined (1 + m) c
        Ulysses    x c, linear1 (3 + m) c, q c, k c; stacked, sent, received, joined and with the
                   text 15 c
        ring       the first four; stacked 3 c, blocks 6 c, one output c; merged, two products and
                   a copy in fp32 16

    times D bytes: (6 + 2 m) c, (21 + m) c and (16 + m) c + 16. The largest counts,
    or the embedded clip while a process copies its share of the N tokens (c D (N + n)); times the
    samples of a call (both guidance halves are alive at once, unless they have processes of their
    own); with the rope tables (16 head_dim a token), the text (12 a row and width of the encoder),
    the largest weight back from fp8 (2 c (3 + m) D^2), and eight latents of the solver.
    """
    if load.latent is None:
        return 0
    given = config.transformer
    c = DTYPES[load.precision].itemsize
    dim, m = given["hidden_size"], given.get("mlp_width_ratio", 4)
    every = config.tokens(load.latent)
    own = -(-every // load.degrees.sequence) + config.text_len
    rows = load.rows // load.degrees.cfg
    moments = [(6 + 2 * m) * c]
    if load.degrees.ulysses > 1:
        moments.append((21 + m) * c)
    if load.degrees.ring > 1:
        moments.append((16 + m) * c + 16)
    fixed = 8 * dim // given["heads_num"] * (every + own)
    fixed += 12 * rows * config.text_len * given["text_states_dim"]
    fixed += int(2 * c * (3 + m) * dim**2) if load.use_fp8 else 0
    largest = rows * dim * max(int(own * max(moments)), c * (every + own))
    return largest + fixed + 8 * 4 * load.rows * prod(load.latent)


def plan_bytes(config: HunyuanConfig, load: Load) -> int:
    """Of anchors on the device, and of the input that an interval keeps until its last block."""
    if load.plan is None or load.latent is None:
        return 0
    plan, c = load.plan, DTYPES[load.precision].itemsize
    tokens = -(-config.tokens(load.latent) // load.degrees.sequence) + config.text_len
    tokens *= load.rows // load.degrees.cfg
    held = bytes_held(
        plan,
        tokens=tokens,
        stream_itemsize=c,
        latent_numel=load.rows * prod(load.latent),
        prediction_itemsize=c,
    )
    kept = c * tokens * config.transformer["hidden_size"] * bool(plan.interval_sites)
    return held * (plan.storage_place == "device") + kept


def device_needs(
    encoders: dict[str, int], vae: VaeSizes, config: HunyuanConfig, load: Load
) -> Needs:
    """What a device holds while prompts are encoded, while a clip is denoised and decoded.

    encoders: their bytes; their activations, below 0.2 GB, are left out. With offload one part is
    there at a time.
    """
    computing = replace(config, precision=load.precision, use_fp8=load.use_fp8)
    transformer = {"transformer": transformer_bytes(computing)}
    vae_dtype, decoding = DTYPES[load.vae_precision], {}
    weights = {"VAE": vae.parameters * vae_dtype.itemsize}
    if load.latent is not None:
        decoding["frames"] = decode_bytes(load.latent, vae_dtype, *vae[1:])
    denoising = {"activations": activation_bytes(config, load)}
    if load.plan is not None:
        denoising["plan"] = plan_bytes(config, load)
    if not load.offload:
        every = transformer | encoders | weights
        return {"denoising": every | denoising, "decoding": every | decoding}
    visitor = max(encoders, key=encoders.__getitem__)
    return {
        "encoding": {visitor: encoders[visitor]},
        "denoising": transformer | denoising,
        "decoding": weights | decoding,
    }


def memory_load(
    files: Files, config: HunyuanConfig, device: torch.device, offload: bool = False, **clip: Any
) -> tuple[Callable[[Load], Needs], Load]:
    """What a run needs of the device, and its load; see `check_memory`."""
    on_host = device.type == "cpu"

    def stored(precision: str) -> str:
        return "fp32" if on_host else precision

    encoders = {
        "text encoder": encoder_bytes(
            files.text_encoder, DTYPES[stored(config.text_encoder_precision)]
        ),
        "second text encoder": encoder_bytes(
            files.text_encoder_2, DTYPES[stored(config.text_encoder_precision_2)]
        ),
    }
    vae = vae_sizes(files.vae_config)
    load = Load(
        computing_config(config, device).precision,
        stored(config.vae_precision),
        config.use_fp8,
        offload and not on_host,
        **clip,
    )
    return partial(device_needs, encoders, vae, config), load


def check_memory(
    files: Files, config: HunyuanConfig, device: torch.device, offload: bool = False, **clip: Any
) -> list[str]:
    """InputError when what a run needs does not fit, on the device or on the host.

    clip: further fields of `Load`; without a latent the weights alone count. Returns the options
    that would lower what the device needs.
    """
    needs, load = memory_load(files, config, device, offload, **clip)
    ways: dict[str, dict[str, Any]] = {}
    if device.type != "cpu":
        if load.degrees.world == 1:
            ways["--use-cpu-offload"] = {"offload": True}
        ways |= {
            "--precision bf16": {"precision": "bf16"},
            "--use-fp8 with the official fp8 file": {"use_fp8": True},
            "--vae-precision fp16": {"vae_precision": "fp16"},
        }
    if load.offload:
        check_room(partial(_host_needs, needs), load, torch.device("cpu"))
    if (note := check_room(needs, load, device, ways)) is not None:
        logger.warning(note)
    return [*sparing(needs, load, ways)]


def _host_needs(needs: Callable[[Load], Needs], load: Load) -> Needs:
    """Parts that wait for each other: the weights of all."""
    return {"": needs(replace(load, offload=False, latent=None, plan=None))["decoding"]}

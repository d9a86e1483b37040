"""What is checked before a run, and how a plan is put on its noise levels."""

from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from profiling_core.errors import InputError, PlanError
from profiling_core.parallel.degrees import Degrees, local_processes
from profiling_core.parallel.ranks import ALONE, Ranks
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.regrid import on_grid, regrid
from profiling_core.plan.restrict import plan_of_both
from profiling_core.plan.schema import BRANCHES, StoragePlace
from profiling_core.runtime.memory import (
    GB,
    Needs,
    available_bytes,
    check_room,
    largest,
    sizes_text,
    sparing,
    with_gaps,
)

from .clip import encoder_bytes as clip_bytes
from .configs import WanConfig
from .sigmas import sigmas_fp32
from .t5 import embedding_bytes
from .vae import BASE_DIM, SCALE, base_dim, decode_bytes
from .weights import blocks_of, build_transformer, model_kwargs

PATCH = 4  # latents of a token: a patch is 1 x 2 x 2


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


def check_processes(ranks: Ranks, rank: int, *, use_usp: bool, **fsdp: bool) -> None:
    """InputError for official arguments of several processes that `ranks` does not have."""
    sequence, world = ranks.degrees.sequence, ranks.world
    asked = {f"rank={rank}": rank not in (0, ranks.rank), "use_usp=True": use_usp and sequence < 2}
    asked |= {f"{name}=True": given and world < 2 for name, given in fsdp.items()}
    for argument, alone in asked.items():
        if alone:
            raise InputError(
                f"{argument}: this is process {ranks.rank} of {world}: give the processes that "
                "share the clip as ranks (profiling_core.parallel.ranks.start), or run generate.py "
                "under torchrun"
            )


def gpu_or_cpu(device_id: int) -> torch.device:
    """The GPU of that number; the CPU on a machine without one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if device_id not in range(count):
        raise InputError(f"device_id {device_id}: this machine has GPUs 0 to {count - 1}")
    return torch.device("cuda", device_id)


@dataclass(frozen=True)
class Load:
    """What decides on the memory of one process, beside its checkpoint."""

    dtype: torch.dtype = torch.float32  # of the transformer's weights
    computing: torch.dtype = torch.bfloat16  # of its linears and attention
    t5_cpu: bool = False
    offload_model: bool = True
    dit_fsdp: bool = False
    t5_fsdp: bool = False
    degrees: Degrees = ALONE
    latent: tuple[int, ...] | None = None  # of the clip; None: weights alone
    plan: CachePlan | None = None

    @property
    def tokens(self) -> int:
        """Of this process."""
        if self.latent is None:
            return 0
        return -(-prod(self.latent[1:]) // PATCH // self.degrees.sequence)


@dataclass(frozen=True)
class Sizes:
    """Of a checkpoint: the transformer's arguments, its numbers of parameters, bytes of parts."""

    transformer: dict[str, Any]
    parameters: int
    outside_blocks: int
    encoder: int
    embedding: int  # of the encoder's tokens
    vae: int
    vae_dim: int = BASE_DIM
    image_encoder: int = 0
    encodes_frames: bool = False  # before a clip is denoised
    hints: int = 0  # blocks of VACE that make one


def sizes_of(folder: Path, config: WanConfig) -> Sizes:
    model = build_transformer(folder)
    blocks = ("blocks.", "vace_blocks.")
    outside = (p.numel() for name, p in model.named_parameters() if not name.startswith(blocks))
    vae = folder / config.vae_checkpoint
    return Sizes(
        model_kwargs(folder),
        sum(p.numel() for p in model.parameters()),
        sum(outside),
        (folder / config.t5_checkpoint).stat().st_size,
        embedding_bytes(folder / config.t5_checkpoint),
        vae.stat().st_size,
        base_dim(vae),
        0 if config.clip_checkpoint is None else clip_bytes(folder / config.clip_checkpoint),
        config.encodes_frames,
        len(blocks_of(model)) - len(model.blocks),
    )


def activation_bytes(sizes: Sizes, load: Load) -> int:
    """The most memory that one model call takes beside the weights.

    For each of a process's n tokens of width D, computing in c bytes, alive at once are

        norm of k  x 4, modulated, v, q and k 4 c; its fp32 copy and square 8
        FFN        x 4, the block's own x 4, modulated c, the hidden values c F / D  (F = ffn_dim)
        Ulysses    x 4, modulated, v, q and k 4 c; stacked, sent, received and joined 12 c
        ring       x 4, modulated, v, q and k 4 c; stacked 3 c, blocks 6 c, one output c; merged,
                   two products and a copy in fp32 16

    times D bytes: 12 + 4 c, 8 + c + c F / D, 4 + 16 c and 20 + 14 c. Where rms_norm is one kernel,
    as on a GPU since torch 2.9, the first is smaller: c and the product with the weight, not 8.
    Every hint of VACE is c D n more. The largest counts, or the three copies of the embedded clip
    before a process takes its share of the N tokens (3 c D N); with the rope factors (8 head_dim a
    token), the text (T rows of 12 text_dim), the largest weight in the computing type (c D F), and
    eight latents of the solver. One guidance branch is alive at a time.
    """
    if load.latent is None:
        return 0
    given, c, own = sizes.transformer, load.computing.itemsize, load.tokens
    dim, ffn, every = given["dim"], given["ffn_dim"], prod(load.latent[1:]) // PATCH
    moments = [12 + 4 * c, 8 + c + c * ffn / dim]
    if load.degrees.ulysses > 1:
        moments.append(4 + 16 * c)
    if load.degrees.ring > 1:
        moments.append(20 + 14 * c)
    fixed = 8 * (dim // given["num_heads"]) * own + 12 * given["text_len"] * given["text_dim"]
    fixed += c * dim * ffn if load.dtype.itemsize != c else 0
    hints = sizes.hints * c * own * dim
    largest_moment = max(int(own * dim * max(moments)) + hints, 3 * c * dim * every)
    return largest_moment + fixed + 8 * 4 * prod(load.latent)


def plan_bytes(sizes: Sizes, load: Load, place: StoragePlace) -> int:
    """Of anchors where they lie, and of what an interval keeps on the device until its last block.

    That is the input of its first block.
    """
    if load.plan is None or load.latent is None:
        return 0
    plan = plan_of_both(load.plan) if load.degrees.cfg > 1 else load.plan
    latents = load.degrees.cfg * prod(load.latent)
    held = bytes_held(plan, tokens=load.tokens, stream_itemsize=4, latent_numel=latents)
    kept = 4 * load.tokens * sizes.transformer["dim"] * bool(plan.interval_sites)
    return held * (plan.storage_place == place) + kept * (place == "device")


def device_needs(sizes: Sizes, load: Load) -> Needs:
    """What a GPU holds while prompts are encoded, while a clip is denoised and while it is decoded.

    With offload_model the text encoder is there in the first moment and the transformer in the
    second; what FSDP shares out stays, and of it come gathered the tensors outside the blocks and
    three blocks: the one that runs, the next, and one that is copied. An encoder's activations,
    below 0.2 GB, are left out.
    """
    world = load.degrees.world
    transformer = {"transformer": sizes.parameters * load.dtype.itemsize}
    if load.dit_fsdp:
        layers = sizes.transformer["num_layers"] + sizes.hints
        layer = (sizes.parameters - sizes.outside_blocks) // layers
        gathered = sizes.outside_blocks * load.dtype.itemsize + 3 * layer * load.computing.itemsize
        shared = transformer["transformer"] // world
        transformer = {"transformer's share": shared, "gathered weights": gathered}
    encoder = {"text encoder": sizes.encoder}
    if load.t5_fsdp:
        encoder = {"text encoder's share": sizes.encoder // world, "embedding": sizes.embedding}
    encoder = {} if load.t5_cpu else encoder
    image = {"image encoder": sizes.image_encoder} if sizes.image_encoder else {}
    vae = {"VAE": sizes.vae}
    denoising = {"activations": activation_bytes(sizes, load)}
    if load.plan is not None:
        denoising["plan"] = plan_bytes(sizes, load, "device")
    decoding, pictures = {}, {}
    if load.latent is not None:
        decoding["frames"] = decode_bytes(load.latent, sizes.vae_dim, world)
        if sizes.encodes_frames:  # all of them on every process, which takes less than a decode
            pictures["frames"] = decode_bytes(load.latent, sizes.vae_dim)
        if sizes.hints:  # a video and twice its mask, in fp32, beside the frames that are encoded
            _, frames, rows, columns = load.latent
            pictures["sources"] = 5 * 4 * (4 * frames - 3) * rows * columns * SCALE**2
    stays = load.dit_fsdp or not load.offload_model
    waiting = encoder if load.t5_fsdp or not load.offload_model else {}
    waiting = waiting if load.offload_model else waiting | image
    beside = transformer if stays else {}
    return {
        "encoding": beside | encoder | image | vae | pictures,
        "denoising": transformer | waiting | vae | denoising,
        "decoding": beside | waiting | vae | decoding,
    }


def host_needs(sizes: Sizes, load: Load) -> Needs:
    """What waits on the host: the text encoder always, since it is loaded there.

    The processes of a machine share the encoder's mapped file; each has a transformer of its own.
    """
    parts = {"text encoder": sizes.encoder // (load.degrees.world if load.t5_fsdp else 1)}
    if sizes.image_encoder:
        parts["image encoder"] = sizes.image_encoder
    if load.offload_model and not load.dit_fsdp:
        each = sizes.parameters * load.dtype.itemsize
        parts = {"transformer": each * local_processes()} | parts
    if held := plan_bytes(sizes, load, "host"):
        parts["plan"] = held
    return {"": parts}


def check_memory(sizes: Sizes, load: Load, device: torch.device) -> list[str]:
    """InputError when what this process needs does not fit, on the device or on the host.

    Returns the options that would lower what the device needs.
    """
    ways: dict[str, dict[str, Any]] = {}
    needs = partial(device_needs, sizes)
    if device.type == "cpu":  # everything lies there, and stays
        load = replace(load, t5_cpu=False, offload_model=False)
    else:
        keep = {"--offload_model false": {"offload_model": False}}
        check_room(partial(host_needs, sizes), load, torch.device("cpu"), keep)
        ways = {"--convert_model_dtype": {"dtype": torch.bfloat16}, "--t5_cpu": {"t5_cpu": True}}
        if load.degrees.world == 1:
            ways["--offload_model true"] = {"offload_model": True}
        else:
            ways |= {f"--{name}": {name: True} for name in ("dit_fsdp", "t5_fsdp")}
    if (note := check_room(needs, load, device, ways)) is not None:
        logger.warning(note)
    return [*sparing(needs, load, ways)]


def offload_by_memory(sizes: Sizes, load: Load, device: torch.device) -> tuple[bool, str]:
    """--offload_model where it is not given, false where everything fits at once, and why.

    Otherwise the transformer crosses the bus twice a clip. On the CPU it has no effect; without a
    clip that is known it is true. The reason is empty where memory does not decide.
    """
    if device.type == "cpu" or load.degrees.world > 1 or load.latent is None:
        return load.degrees.world == 1, ""
    _, parts, total = largest(device_needs(sizes, replace(load, offload_model=False)))
    free = available_bytes(device)
    offload = free is None or with_gaps(total) > free
    room = "unknown" if free is None else f"{free / GB:.1f} GB"
    what = "parts that do not work leave the GPU" if offload else "everything stays on the GPU"
    return offload, (
        f"offload_model is not specified, set to {offload}: {sizes_text(parts)} at most, {room} "
        f"free, {what}"
    )

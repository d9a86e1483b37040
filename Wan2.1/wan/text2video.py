"""Text to video: encode the prompts, denoise a latent, decode it."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.engine.full_run import FullRun
from profiling_core.engine.run_stats import Run, RunStats, shown_steps, timed
from profiling_core.errors import InputError
from profiling_core.parallel.cfg_parallel import BranchPair
from profiling_core.parallel.ranks import Ranks, one_noise
from profiling_core.parallel.sharding import Precision
from profiling_core.parallel.xdit import sequence_share
from profiling_core.plan.describe import summary_lines
from profiling_core.plan.plan import CachePlan
from profiling_core.plan.restrict import plan_of_both
from profiling_core.plan.schema import BRANCHES
from profiling_core.recording.perturbed_run import PerturbedRun
from profiling_core.recording.recorder import Recorder
from profiling_core.runtime.state_dicts import check_finite
from profiling_core.runtime.terminal import MakeBar, steps_bar

from .attention import attention, choose_kernel
from .checkpoint import check_folder
from .checks import (
    Load,
    check_memory,
    check_on_grid,
    check_processes,
    gpu_or_cpu,
    offload_by_memory,
    plan_for_run,
    sizes_of,
)
from .configs import WanConfig, check_frame_num
from .model import bf16_autocast, emulates_bf16, no_autocast
from .scheduler import build_scheduler
from .t5 import TextEncoder
from .vae import VideoVAE
from .weights import load_transformer, model_kwargs


class WanT2V:
    """A loaded text-to-video (or text-to-image) model.

    config: one of configs.WAN_CONFIGS; checkpoint_dir: an official checkpoint folder; device_id:
    the GPU where there is one, else the CPU; t5_fsdp, dit_fsdp: share out the weights of the text
    encoder and the transformer over `ranks`; rank, use_usp: as `ranks` has it; t5_cpu: keep the
    text encoder on the CPU; init_on_cpu: with offload the transformer is loaded there. These are
    the official ones; beside them
    device: in place of device_id; torch_dtype: of the transformer's weights, fp32 as the official
    code or bf16 for half the memory; offload_model: parts that do not work leave the GPU, None:
    where not everything fits at once; latent_shape, plan: of the clips to come, whose activations
    and anchors count in the check; fp32: compute without the official bf16 autocast, as on a
    processor that would emulate it; ranks: the processes that share the clip, all of which make
    the same calls.
    Raises InputError when the folder is incomplete or damaged, memory does not suffice, or several
    processes are asked for without `ranks`.
    """

    def __init__(
        self,
        config: WanConfig,
        checkpoint_dir: str | Path,
        device_id: int = 0,
        rank: int = 0,
        t5_fsdp: bool = False,
        dit_fsdp: bool = False,
        use_usp: bool = False,
        t5_cpu: bool = False,
        init_on_cpu: bool = True,
        *,
        device: torch.device | str | None = None,
        torch_dtype: torch.dtype = torch.float32,
        offload_model: bool | None = None,
        latent_shape: tuple[int, ...] | None = None,
        plan: CachePlan | None = None,
        fp32: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        folder = Path(checkpoint_dir)
        check_folder(folder, config)
        self.ranks = ranks or Ranks()
        check_processes(self.ranks, rank, use_usp=use_usp, t5_fsdp=t5_fsdp, dit_fsdp=dit_fsdp)
        self.sharded = dit_fsdp
        self.config, self.t5_cpu, self.torch_dtype, self.fp32 = config, t5_cpu, torch_dtype, fp32
        self.device = gpu_or_cpu(device_id) if device is None else torch.device(device)
        load = Load(
            torch_dtype,
            self._computing_dtype or torch_dtype,
            t5_cpu,
            True if offload_model is None else offload_model,
            dit_fsdp,
            t5_fsdp,
            self.ranks.degrees,
            latent_shape,
            plan,
        )
        sizes = sizes_of(folder, config)
        if offload_model is None:
            offload, why = offload_by_memory(sizes, load, self.device)
            load = replace(load, offload_model=offload)
            if why:
                logger.info(why)
        self.sparing_options = check_memory(sizes, load, self.device)
        self.offload_model = load.offload_model
        self._load_encoders(folder, (torch.device("cpu") if t5_cpu else self.device), t5_fsdp)
        self.vae = VideoVAE(folder / config.vae_checkpoint, self.device)
        precision = Precision(blocks=self._computing_dtype) if dit_fsdp else None
        waits = self._leaves(self.offload_model) and (not t5_cpu or config.encodes_frames)
        place = torch.device("cpu") if waits and init_on_cpu else self.device
        self.model = load_transformer(folder, place, torch_dtype, precision)
        if self.ranks.degrees.sequence > 1:
            self.model.share_tokens(sequence_share(self.ranks, attention, self.device))
        # what a step calls: with guidance-parallel both branches at once
        self.guided = self.model
        if self.ranks.degrees.cfg > 1:
            self.guided = BranchPair(self.model, self.ranks, lambda output: output[0])
        self._check_parts_fit()
        self.last_run: RunStats | None = None
        head_dim = self.model.dim // self.model.num_heads
        kernel = choose_kernel(self.device, self._computing_dtype or torch_dtype, head_dim)
        logger.info(f"attention on {self.device}: {kernel}")
        if torch_dtype == torch.float32 and emulates_bf16(self.device):
            logger.info("this processor has no bf16 instructions: the transformer runs in fp32")

    def _load_encoders(self, folder: Path, device: torch.device, sharded: bool) -> None:
        self.text_encoder = TextEncoder(
            folder / self.config.t5_checkpoint,
            folder / self.config.t5_tokenizer,
            model_kwargs(folder)["text_len"],
            device if sharded else None,
        )

    @property
    def _computing_dtype(self) -> torch.dtype | None:
        """What the blocks' linears are computed in; None: in the weights' own type."""
        own = self.fp32 or (self.torch_dtype == torch.float32 and emulates_bf16(self.device))
        return None if own else torch.bfloat16

    def autocast(self) -> AbstractContextManager:
        """The region that the transformer runs in."""
        if self.fp32:
            return no_autocast(self.device)
        return bf16_autocast(self.device, self.torch_dtype)

    def _leaves(self, offload: bool) -> bool:
        """Does the transformer leave the device while other parts work?"""
        return offload and self.device.type != "cpu" and not self.sharded

    def make_room(self, offload_model: bool | None = None) -> None:
        """With offload the transformer goes to the host; None: as when it was loaded."""
        if self._leaves(self.offload_model if offload_model is None else offload_model):
            self.model.to("cpu")
            torch.cuda.empty_cache()

    def _check_parts_fit(self) -> None:
        for what, found, name, expected in self._parts():
            if found != expected:
                raise InputError(
                    f"{what} {found} and the transformer's {name} {expected} do not match: "
                    "the folder mixes files of several checkpoints"
                )

    def _parts(self) -> list[tuple[str, Any, str, Any]]:
        """What a part has, and what the transformer expects of it."""
        channels, z_dim = self.config.latent_channels, self.vae.model.config.z_dim
        taken = self.model.in_dim - self.config.condition_channels
        return [
            ("the text encoder's width", self.text_encoder.dim, "text_dim", self.model.text_dim),
            ("the VAE's z_dim", z_dim, "in_dim", taken),
            ("the task's latent channels", channels, "out_dim", self.model.out_dim),
        ]

    def generate(
        self,
        input_prompt: str,
        size: tuple[int, int] = (1280, 720),
        frame_num: int = 81,
        shift: float = 5.0,
        sample_solver: str = "unipc",
        sampling_steps: int = 50,
        guide_scale: float = 5.0,
        n_prompt: str = "",
        seed: int = -1,
        offload_model: bool | None = None,
        *,
        plan: CachePlan | None = None,
        recorder: Recorder | None = None,
        noise_device: torch.device | str | None = None,
        progress: bool = True,
    ) -> Tensor | None:
        """A clip (3, F, H, W), fp32 in [-1, 1], and its statistics in `last_run`.

        Where several processes share the clip, the first returns it and the others None.

        size: (width, height), multiples of 16; frame_num: 4n + 1; an empty n_prompt stands for
        the model's own negative prompt; a negative seed draws one; offload_model: parts that do
        not work leave the GPU, None: as when it was loaded; plan: a cache plan, put on this grid
        of noise levels; recorder: records the run, which then has no plan; its `write` adds it to
        the profile, best once the clip is saved;
        noise_device: where the noise is drawn ("cpu" gives the same noise on every machine).
        """
        sampling = {
            "shift": shift,
            "sample_solver": sample_solver,
            "sampling_steps": sampling_steps,
            "guide_scale": guide_scale,
            "progress": progress,
        }
        run = {"offload_model": offload_model, "plan": plan, "recorder": recorder}
        prompts = [input_prompt, n_prompt or self.config.sample_neg_prompt]
        shape = self._latent_shape(size, frame_num)
        return self._make_clip(prompts, shape, seed, noise_device, sampling, **run)

    def _make_clip(
        self,
        prompts: list[str],
        shape: tuple[int, ...],
        seed: int,
        noise_device: torch.device | str | None,
        sampling: dict[str, Any],
        *,
        condition: Callable[[], dict[str, Any]] = dict,
        cut: int = 0,
        offload_model: bool | None,
        plan: CachePlan | None,
        recorder: Recorder | None,
    ) -> Tensor | None:
        """A clip whose latent has `shape`, as `generate` returns it.

        prompts: what to show and what to avoid; sampling: arguments of `denoise`; condition: makes
        another one of them, in the time of the encoders; cut: latent frames in front that are not
        decoded.
        """
        if plan is not None:
            grid = (sampling[name] for name in ("sample_solver", "sampling_steps", "shift"))
            plan = plan_for_run(plan, *grid)
        seed = seed if seed >= 0 else random.randint(0, sys.maxsize)
        logger.info(f"seed {seed}")
        with timed(self.device) as encoding:
            contexts = self.encode(prompts, offload_model=offload_model)
            sampling["condition"] = condition()
        noise_device = torch.device(noise_device or self.device)
        generator = torch.Generator(noise_device).manual_seed(seed)
        noise = torch.randn(shape, generator=generator, device=noise_device)
        noise = one_noise(noise.to(self.device), self.ranks)
        latent = self.denoise(*contexts, noise, plan=plan, recorder=recorder, **sampling)
        if recorder is not None:
            recorder.measure_sensitivity(
                latent,
                lambda perturbed: self.denoise(*contexts, noise, recorder=perturbed, **sampling),
            )
        self.make_room(offload_model)
        with timed(self.device) as decoding:
            video = self.decode(latent[:, cut:])
        if video is not None:
            check_finite(video, "decoding", f"download {self.config.vae_checkpoint} again")
        if recorder is not None:
            facts = {"prompt": prompts[0], "seed": seed, "guidance": sampling["guide_scale"]}
            recorder.finish_later(latent, video=video, **facts)
        self.last_run.seed = seed
        self.last_run.encode_seconds = encoding.seconds
        self.last_run.decode_seconds = decoding.seconds
        return video

    def encode(self, prompts: list[str], *, offload_model: bool | None = None) -> list[Tensor]:
        """One embedding (rows, text_dim) per prompt, bf16 on the pipeline's device."""
        offload = self.offload_model if offload_model is None else offload_model
        if not self.t5_cpu:
            self.make_room(offload)
        self.text_encoder.to("cpu" if self.t5_cpu else self.device)
        contexts = [self.text_encoder(prompt).to(self.device) for prompt in prompts]
        if offload:
            self.text_encoder.to("cpu")
        return contexts

    def denoise(
        self,
        context: Tensor,
        context_null: Tensor,
        noise: Tensor,
        *,
        shift: float = 5.0,
        sample_solver: str = "unipc",
        sampling_steps: int = 50,
        guide_scale: float = 5.0,
        condition: dict[str, Any] | None = None,
        plan: CachePlan | None = None,
        recorder: Recorder | PerturbedRun | None = None,
        progress: bool | MakeBar = True,
    ) -> Tensor:
        """Latent fp32 (z, f, h, w) from noise of that shape; leaves statistics in `last_run`.

        condition: what the model gets beside the text in both branches (`WanI2V.encode_pictures`);
        plan: on this grid of noise levels (`checks.plan_for_run`), else PlanError.
        """
        run = self._run(plan, recorder, sample_solver, sampling_steps, shift, noise)
        weights = () if plan is None else plan.solver_weights
        scheduler = build_scheduler(
            sample_solver, sampling_steps, shift, self.device, run.solver_steps, weights
        )
        if not self.sharded:
            self.model.to(self.device)
        latent = noise.to(self.device, torch.float32)
        shared = {"seq_len": self.config.tokens(tuple(latent.shape)), **(condition or {})}
        given = {
            branch: {"context": [text], **shared}
            for branch, text in zip(BRANCHES, (context, context_null), strict=True)
        }
        autocast = self.autocast()
        bar = steps_bar(sampling_steps, shown=self.ranks.first and progress)
        with timed(self.device) as loop, torch.no_grad(), autocast, bar, run.attached(self.guided):
            for step, t in zip(shown_steps(run, bar), scheduler.timesteps, strict=True):
                timestep = t[None]  # one object for both calls of a step
                cond, uncond = self._predictions(run, step, latent, timestep, given)
                flow = uncond + guide_scale * (cond - uncond)
                with no_autocast(self.device):
                    latent = scheduler.step(flow[None], t, latent[None], return_dict=False)[0][0]
        run.stats.solver, run.stats.denoise_seconds = sample_solver, loop.seconds
        self.last_run = run.stats
        for line in run.stats.lines():
            logger.info(line)
        check_finite(
            latent,
            f"sampling with sample_guide_scale {guide_scale} and sample_shift {shift}",
            "take values near the defaults; if they are, download the weights again",
        )
        return latent

    def _run(
        self,
        plan: CachePlan | None,
        recorder: Recorder | PerturbedRun | None,
        solver: str,
        steps: int,
        shift: float,
        noise: Tensor,
    ) -> Run:
        """What stands in front of the model during a loop."""
        if plan is not None and recorder is not None:
            raise InputError(f"plan {plan.name!r}: a recorded run is a full run, leave one out")
        if recorder is not None:
            if isinstance(recorder, Recorder):
                recorder.share(*self.ranks.part)
            return recorder
        if plan is None:
            return FullRun(steps, len(self.model.blocks))
        check_on_grid(plan, solver, steps, shift)
        plan = plan_of_both(plan) if self.ranks.degrees.cfg > 1 else plan
        self._log_plan(plan, noise)
        return DeltaCache(plan, weighted=True)

    def _predictions(
        self,
        run: Run,
        step: int,
        latent: Tensor,
        timestep: Tensor,
        given: dict[str, dict[str, Any]],
    ) -> Iterator[Tensor]:
        """Both branches, cond first; two groups of processes need one call for them."""
        if self.ranks.degrees.cfg > 1:
            own = given[BRANCHES[self.ranks.cfg_rank]]
            run.begin(step, "cond")
            yield from self.guided([latent], timestep, **own)
            return
        for branch in BRANCHES:
            run.begin(step, branch)
            yield self.model([latent], timestep, **given[branch])[0]

    def decode(self, latent: Tensor) -> Tensor | None:
        """Clip (3, F, H, W), fp32 in [-1, 1], of a latent (z, f, h, w), on the first process."""
        latent = latent.to(self.device)
        if self.ranks.world > 1:
            return self.vae.decode_shared(latent, self.ranks)
        return self.vae.decode(latent)

    def _latent_shape(self, size: tuple[int, int], frame_num: int) -> tuple[int, ...]:
        _, row_stride, column_stride = self.config.vae_stride
        _, row_patch, column_patch = self.config.patch_size
        width, height = size
        if width % (column_stride * column_patch) or height % (row_stride * row_patch):
            raise InputError(f"size {width}*{height}: both have to be multiples of 16")
        check_frame_num(frame_num, self.config.vae_stride[0])
        return self.config.latent_shape(size, frame_num)

    def _log_plan(self, plan: CachePlan, noise: Tensor) -> None:
        for note in plan.notes:
            logger.warning(note)
        degrees = self.ranks.degrees
        lines = summary_lines(
            plan,
            tokens=-(-self.config.tokens(tuple(noise.shape)) // degrees.sequence),
            stream_itemsize=4,  # the residual stream is fp32
            latent_numel=degrees.cfg * noise.numel(),
        )
        for line in lines:
            logger.info(line)

"""Text to video: encode the prompts, denoise a latent, decode it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor, nn

from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.engine.full_run import FullRun
from profiling_core.engine.run_stats import Run, RunStats, shown_steps, timed
from profiling_core.errors import InputError
from profiling_core.parallel.cfg_parallel import BranchPair
from profiling_core.parallel.ranks import Ranks, one_noise
from profiling_core.parallel.xdit import sequence_share
from profiling_core.plan.describe import summary_lines
from profiling_core.plan.plan import CachePlan
from profiling_core.plan.restrict import plan_of_both
from profiling_core.recording.perturbed_run import PerturbedRun
from profiling_core.recording.recorder import Recorder
from profiling_core.runtime.state_dicts import check_finite
from profiling_core.runtime.terminal import MakeBar, steps_bar

from .attention import attention, choose_kernel
from .checkpoint import find_files
from .checks import (
    check_autocast,
    check_memory,
    check_on_grid,
    clip_seeds,
    computing_config,
    plan_for_run,
    warn_of_noise,
)
from .config import NEGATIVE_PROMPT, HunyuanConfig, check_video_length, round_size
from .layers import no_autocast
from .model import GUIDANCE_SCALE, text_lens
from .rope import rope_tables
from .scheduler import build_scheduler
from .sigmas import SOLVER
from .text_encoder import LanguageModel, PooledClip
from .vae import VideoVAE
from .weights import DTYPES, load_transformer


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, one row each: with real guidance the negative prompt first."""

    states: Tensor  # (B, L, width)
    mask: Tensor  # (B, L), on the CPU: the model reads its lengths
    pooled: Tensor  # (B, pooled width)

    def half(self, number: int) -> "Conditioning":
        """The negative prompts' rows (0), or the prompts' (1)."""
        return Conditioning(*(rows.chunk(2)[number] for rows in vars(self).values()))


class HunyuanVideo:
    """A loaded text-to-video model.

    config: one of config.CONFIGS, or one with other precisions, templates and so on; root: the
    checkpoint folder; device: CUDA where there is one, else the CPU; dit_weight: the transformer's
    file or folder where it is not the official one under root; use_cpu_offload: encoders,
    transformer and VAE wait on the host and are on the GPU one at a time, while they work;
    latent_shape, rows, plan: of the clips to come, whose activations and anchors count in the check
    of memory, rows 2 with real guidance; fp32: the transformer computes in fp32 on
    the same conditioning, as on a processor that would emulate its precision; ranks: the processes
    that share the clip, all of which make the same calls.
    Raises InputError when the folder is incomplete or damaged, or memory does not suffice.
    """

    def __init__(
        self,
        config: HunyuanConfig,
        root: str | Path,
        device: torch.device | str | None = None,
        *,
        dit_weight: str | Path | None = None,
        use_cpu_offload: bool = False,
        latent_shape: tuple[int, ...] | None = None,
        rows: int = 1,
        plan: CachePlan | None = None,
        fp32: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        files = find_files(Path(root), dit_weight, use_fp8=config.use_fp8)
        check_autocast(config)
        self.config, self.files = config, files
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if use_cpu_offload and self.device.type == "cpu":
            logger.info("use-cpu-offload has no effect: everything is on the CPU")
        self.offload = use_cpu_offload and self.device.type != "cpu"
        clip = {"latent": latent_shape, "rows": rows, "plan": plan, "degrees": self.ranks.degrees}
        self.sparing_options = check_memory(files, config, self.device, self.offload, **clip)
        self.text_encoder = LanguageModel(files.text_encoder, config, self.device)
        self.text_encoder_2 = PooledClip(files.text_encoder_2, config, self.device)
        self.vae = VideoVAE(
            files.vae_config,
            files.vae_weights,
            self.device,
            config.vae_precision,
            autocast=not config.disable_autocast,
        )
        computing = computing_config(config, self.device, fp32=fp32)
        self.dtype = DTYPES[computing.precision]
        place = torch.device("cpu") if self.offload else self.device
        self.model = load_transformer(files.dit, computing, place)
        if self.ranks.degrees.sequence > 1:
            self.model.share_tokens(sequence_share(self.ranks, attention, self.device))
        # what a step calls: with guidance-parallel both branches at once
        self.guided = self.model
        if self.ranks.degrees.cfg > 1:
            self.guided = BranchPair(self.model, self.ranks, lambda output: output["x"])
        self._check_parts_fit()
        if not self.offload:
            for part in (self.text_encoder, self.text_encoder_2, self.vae):
                part.to(self.device)
        self.last_run: RunStats | None = None
        head_dim = self.model.hidden_size // self.model.heads_num
        kernel = choose_kernel(self.device, self.dtype, head_dim)
        logger.info(f"attention on {self.device}: {kernel}")
        if computing is not config and not fp32:
            logger.info(
                f"this processor has no {config.precision} instructions: "
                "the transformer runs in fp32"
            )

    def _check_parts_fit(self) -> None:
        model, channels = self.model, self.vae.model.config.latent_channels
        pairs = (
            ("the text encoder's width", self.text_encoder.dim, model.text_states_dim),
            ("the second text encoder's width", self.text_encoder_2.dim, model.text_states_dim_2),
            ("the VAE's latent_channels", channels, model.in_channels),
            ("the model's latent channels", self.config.latent_channels, model.in_channels),
        )
        names = ("text_states_dim", "text_states_dim_2", "in_channels", "in_channels")
        for (what, found, expected), name in zip(pairs, names, strict=True):
            if found != expected:
                raise InputError(
                    f"{what} {found} and the transformer's {name} {expected} do not match: "
                    "the folder mixes files of several checkpoints"
                )

    def generate(
        self,
        prompt: str,
        size: tuple[int, int] | None = None,
        video_length: int | None = None,
        infer_steps: int | None = None,
        flow_shift: float | None = None,
        flow_reverse: bool = True,
        embedded_guidance: float | None = None,
        cfg_scale: float = 1.0,
        neg_prompt: str | None = None,
        seed: int | Sequence[int] | None = None,
        num_videos: int = 1,
        *,
        plan: CachePlan | None = None,
        recorder: Recorder | None = None,
        noise_device: torch.device | str | None = None,
        progress: bool = True,
    ) -> Tensor | None:
        """Clips (num_videos, 3, F, H, W), fp32 in [0, 1] on the CPU; `last_run` is of the last.

        Where several processes share the clips, the first returns them and the others None.

        Values that are not given are the model's own. size: (height, width), rounded up to
        multiples of 16; video_length: 4n + 1; flow_reverse: False is the official default and
        samples noise; cfg_scale: above 1 real guidance, away from neg_prompt or the model's own
        text; seed: one for each clip, or the first of consecutive ones, None draws them; plan: a
        cache plan, put on this grid of noise levels; recorder: records the runs, which then have
        no plan; its `write` adds the last one to the profile, best once the clip is saved;
        noise_device: where the noise is drawn ("cpu" gives the same noise on every machine).
        """
        config = self.config
        size = config.video_size if size is None else size
        video_length = config.video_length if video_length is None else video_length
        shape = self._latent_shape(size, video_length)
        seeds = clip_seeds(seed, num_videos)
        negative = (neg_prompt or NEGATIVE_PROMPT) if cfg_scale > 1 else None
        if negative is None and self.ranks.degrees.cfg > 1:
            raise InputError(f"cfg_scale {cfg_scale} has one branch: two groups need one above 1")
        if plan is not None:
            steps = config.infer_steps if infer_steps is None else infer_steps
            shift = config.flow_shift if flow_shift is None else flow_shift
            plan = plan_for_run(plan, steps, shift)
        with timed(self.device) as encoding:
            conditioning = self.encode(prompt, negative, video_length=video_length)
        sampling = {
            "infer_steps": infer_steps,
            "flow_shift": flow_shift,
            "flow_reverse": flow_reverse,
            "embedded_guidance": embedded_guidance,
            "cfg_scale": cfg_scale,
            "progress": progress,
        }
        clips = []
        for clip_seed in seeds:
            logger.info(f"seed {clip_seed}")
            noise = one_noise(self.noise(shape, clip_seed, noise_device), self.ranks)
            latent = self.denoise(conditioning, noise, plan=plan, recorder=recorder, **sampling)
            if recorder is not None:
                recorder.measure_sensitivity(
                    latent,
                    lambda perturbed, noise=noise: self.denoise(
                        conditioning, noise, recorder=perturbed, **sampling
                    ),
                )
            with timed(self.device) as decoding:
                clips.append(self.decode(latent))
            if self.ranks.first:
                check_finite(clips[-1], "decoding", f"download {self.files.vae_weights} again")
            if recorder is not None:
                facts = {"prompt": prompt, "seed": clip_seed}
                facts |= {"guidance": cfg_scale if cfg_scale > 1 else embedded_guidance}
                recorder.finish_later(latent, video=clips[-1], **facts)
            self.last_run.seed = clip_seed
            self.last_run.encode_seconds = encoding.seconds
            self.last_run.decode_seconds = decoding.seconds
        return torch.stack(clips) if self.ranks.first else None

    def encode(
        self, prompt: str, negative: str | None = None, *, video_length: int
    ) -> Conditioning:
        """The prompt, after the negative one if there is one, encoded on the pipeline's device."""
        prompts = [prompt] if negative is None else [negative, prompt]
        self._make_room(self.text_encoder)
        states, masks = zip(
            *(self.text_encoder(text, video_length) for text in prompts), strict=True
        )
        self._make_room(self.text_encoder_2)
        pooled = [self.text_encoder_2(text) for text in prompts]
        return Conditioning(
            torch.cat(states).to(self.device),
            torch.cat(masks).cpu(),
            torch.cat(pooled).to(self.device),
        )

    def noise(
        self, shape: tuple[int, ...], seed: int, device: torch.device | str | None = None
    ) -> Tensor:
        """Noise (1, *shape), fp32, drawn in the text encoder's type as officially."""
        device = torch.device(device or self.device)
        generator = torch.Generator(device).manual_seed(seed)
        drawn = DTYPES[self.config.text_encoder_precision]
        noise = torch.randn((1, *shape), generator=generator, device=device, dtype=drawn)
        return noise.to(self.device, torch.float32)

    def denoise(
        self,
        conditioning: Conditioning,
        noise: Tensor,
        *,
        infer_steps: int | None = None,
        flow_shift: float | None = None,
        flow_reverse: bool = True,
        embedded_guidance: float | None = None,
        cfg_scale: float = 1.0,
        plan: CachePlan | None = None,
        recorder: Recorder | PerturbedRun | None = None,
        progress: bool | MakeBar = True,
    ) -> Tensor:
        """Latents fp32 (B, z, f, h, w) from noise of that shape; leaves statistics in `last_run`.

        conditioning: a row for each of the B clips, or with real guidance B negative ones first;
        plan: on this grid of noise levels (`checks.plan_for_run`), else PlanError.
        """
        config = self.config
        steps = config.infer_steps if infer_steps is None else infer_steps
        shift = config.flow_shift if flow_shift is None else flow_shift
        strength = config.embedded_cfg_scale if embedded_guidance is None else embedded_guidance
        if not flow_reverse:
            warn_of_noise(recorder is not None)
        run = self._run(plan, recorder, steps, shift, conditioning, noise)
        scheduler = build_scheduler(
            steps, shift, self.device, run.solver_steps, reverse=flow_reverse
        )
        self._make_room(self.model)
        latent = noise.to(self.device, torch.float32)
        if self.ranks.degrees.cfg > 1:
            conditioning = conditioning.half(1 - self.ranks.cfg_rank)
        rows = len(conditioning.states)  # twice the clips with real guidance in one call
        fixed = self.fixed_inputs(conditioning, latent, strength)
        bar = steps_bar(steps, shown=self.ranks.first and progress)
        autocast = self.autocast()
        with timed(self.device) as loop, torch.no_grad(), autocast, bar, run.attached(self.guided):
            for step, t in zip(shown_steps(run, bar), scheduler.timesteps, strict=True):
                run.begin(step, "cond")  # both halves of real guidance are one call
                x = latent if rows == len(latent) else torch.cat((latent, latent))
                flow = self._prediction(self.guided(x=x, t=t.expand(rows), **fixed))
                if len(flow) == 2 * len(latent):
                    uncond, cond = flow.chunk(2)
                    flow = uncond + cfg_scale * (cond - uncond)
                latent = scheduler.step(flow.float(), t, latent, return_dict=False)[0]
        run.stats.solver, run.stats.denoise_seconds = SOLVER, loop.seconds
        self.last_run = run.stats
        for line in run.stats.lines():
            logger.info(line)
        check_finite(
            latent,
            f"sampling with embedded-cfg-scale {strength}, cfg-scale {cfg_scale}, flow-shift "
            f"{shift} and precision {config.precision}",
            "take values near the defaults; if they are, download the weights again",
        )
        return latent

    def _run(
        self,
        plan: CachePlan | None,
        recorder: Recorder | PerturbedRun | None,
        steps: int,
        shift: float,
        conditioning: Conditioning,
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
            return FullRun(steps, len(self.model.double_blocks) + len(self.model.single_blocks))
        check_on_grid(plan, steps, shift)
        plan = plan_of_both(plan) if self.ranks.degrees.cfg > 1 else plan
        self._log_plan(plan, conditioning, noise)
        return DeltaCache(plan)

    def _prediction(self, output: dict[str, Tensor] | Tensor) -> Tensor:
        """The flow of every row; two groups of processes give both branches, cond first."""
        return output["x"] if self.ranks.degrees.cfg == 1 else output.flip(0).flatten(0, 1)

    def decode(self, latent: Tensor) -> Tensor | None:
        """Clip (3, F, H, W), fp32 in [0, 1] on the CPU, of a latent (1, z, f, h, w).

        Where several processes share the clip, the first returns it and the others None.
        """
        if self.ranks.world > 1:
            video = self.vae.decode_shared(latent[0].to(self.device), self.ranks)
            return None if video is None else video.cpu()
        self._make_room(self.vae)
        return self.vae.decode(latent[0].to(self.device)).cpu()

    def guidance(self, strength: float, rows: int) -> Tensor | None:
        """What the guidance embedder takes, (B,): the product is rounded to the model's type."""
        if not self.model.guidance_embed:
            return None
        given = DTYPES[self.config.precision]  # also where another type is computed in
        product = torch.tensor([strength] * rows, device=self.device).to(given) * GUIDANCE_SCALE
        return product.to(self.dtype)

    def fixed_inputs(
        self, conditioning: Conditioning, latent: Tensor, strength: float
    ) -> dict[str, Tensor | None]:
        """The model's arguments that are the same at every step."""
        grid = self.config.grid(latent.shape)
        theta = float(self.config.rope_theta)
        cos, sin = rope_tables(grid, self.model.rope_dim_list, theta, self.device)
        states, pooled = conditioning.states, conditioning.pooled
        if self.dtype == torch.float32:  # no autocast brings them to the weights' type
            states, pooled = states.float(), pooled.float()
        return {
            "text_states": states,
            "text_mask": conditioning.mask,
            "text_states_2": pooled,
            "freqs_cos": cos,
            "freqs_sin": sin,
            "guidance": self.guidance(strength, len(states)),
        }

    def autocast(self) -> AbstractContextManager:
        """The region in which the transformer computes."""
        if self.dtype == torch.float32:
            return no_autocast(self.device)
        return torch.autocast(self.device.type, self.dtype)

    def _make_room(self, part: LanguageModel | PooledClip | VideoVAE | nn.Module) -> None:
        """With offload, all others leave the GPU, then the part comes there."""
        if not self.offload:
            return
        for other in (self.text_encoder, self.text_encoder_2, self.model, self.vae):
            if other is not part:
                other.to("cpu")
        torch.cuda.empty_cache()
        part.to(self.device)

    def _latent_shape(self, size: tuple[int, int], length: int) -> tuple[int, ...]:
        check_video_length(length, self.config.vae_stride[0])
        return self.config.latent_shape(round_size(size), length)

    def _log_plan(self, plan: CachePlan, conditioning: Conditioning, noise: Tensor) -> None:
        for note in plan.notes:
            logger.warning(note)
        rows, itemsize = len(conditioning.states), self.dtype.itemsize
        # the model cuts the text to the longest prompt
        degrees = self.ranks.degrees
        own = -(-self.config.tokens(noise.shape) // degrees.sequence)
        tokens = own + max(text_lens(conditioning.mask))
        lines = summary_lines(
            plan,
            tokens=rows // degrees.cfg * tokens,
            stream_itemsize=itemsize,
            latent_numel=rows * noise[0].numel(),
            prediction_itemsize=itemsize,
        )
        for line in lines:
            logger.info(line)

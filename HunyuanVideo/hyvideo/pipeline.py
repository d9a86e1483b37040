"""Text to video: encode the prompts, denoise a latent, decode it."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from profiling_core.delta_cache import DeltaCache
from profiling_core.plan import CachePlan, PlanError

from .attention import backend
from .checkpoint import Files, find_files
from .config import NEGATIVE_PROMPT, HunyuanConfig, check_video_length, round_size
from .errors import InputError
from .memory import check_room
from .model import GUIDANCE_SCALE, emulates, no_autocast, text_lens
from .rope import rope_tables
from .scheduler import build_scheduler
from .sigmas import SOLVER, sigmas_fp32
from .text_encoder import LanguageModel, PooledClip, encoder_bytes
from .vae import VideoVAE, vae_bytes
from .weights import DTYPES, load_transformer, transformer_bytes

LARGEST_DRAWN_SEED = 1_000_000


@dataclass(frozen=True)
class RunStats:
    """What the last clip took; seconds are wall clock between device synchronisations."""

    solver: str
    steps: int  # of the grid of noise levels
    solver_steps: int  # of these the solver visited; fewer when a plan jumps
    model_calls: int  # that ran the model; both halves of real guidance are one call
    reused_calls: int  # answered without running it
    block_runs: int
    block_runs_full: int  # of the same clip without a plan
    reused_intervals: int
    cache_peak_bytes: int
    denoise_seconds: float
    plan: str | None = None
    seed: int | None = None
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts, one row each: with real guidance the negative prompt first."""

    states: Tensor  # (B, L, width)
    mask: Tensor  # (B, L), on the CPU: the model reads its lengths
    pooled: Tensor  # (B, pooled width)


class HunyuanVideo:
    """A loaded text-to-video model.

    config: one of config.CONFIGS, or one with other precisions, templates and so on; root: the
    checkpoint folder; device: CUDA where there is one, else the CPU; dit_weight: the transformer's
    file or folder where it is not the official one under root; use_cpu_offload: encoders and VAE
    stay on the host and visit the GPU while they work.
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
    ) -> None:
        files = find_files(Path(root), dit_weight, use_fp8=config.use_fp8)
        check_autocast(config)
        self.config, self.files = config, files
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if use_cpu_offload and self.device.type == "cpu":
            logger.info("use-cpu-offload has no effect: everything is on the CPU")
        self.offload = use_cpu_offload and self.device.type != "cpu"
        check_memory(files, config, self.device, self.offload)
        self.text_encoder = LanguageModel(files.text_encoder, config, self.device)
        self.text_encoder_2 = PooledClip(files.text_encoder_2, config, self.device)
        self.vae = VideoVAE(
            files.vae_config,
            files.vae_weights,
            self.device,
            config.vae_precision,
            autocast=not config.disable_autocast,
        )
        computing = computing_config(config, self.device)
        self.dtype = DTYPES[computing.precision]
        self.model = load_transformer(files.dit, computing, self.device)
        self._check_parts_fit()
        if not self.offload:
            for part in (self.text_encoder, self.text_encoder_2, self.vae):
                part.to(self.device)
        self.last_run: RunStats | None = None
        logger.info(f"attention on {self.device}: {backend(self.device)}")
        if computing is not config:
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
        noise_device: torch.device | str | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Clips (num_videos, 3, F, H, W), fp32 in [0, 1] on the CPU; `last_run` is of the last.

        Values that are not given are the model's own. size: (height, width), rounded up to
        multiples of 16; video_length: 4n + 1; flow_reverse: False is the official default and
        samples noise; cfg_scale: above 1 real guidance, away from neg_prompt or the model's own
        text; seed: one for each clip, or the first of consecutive ones, None draws them; plan: a
        cache plan, carried over to this grid of noise levels; noise_device: where the noise is
        drawn ("cpu" gives the same noise on every machine).
        """
        config = self.config
        size = config.video_size if size is None else size
        video_length = config.video_length if video_length is None else video_length
        shape = self._latent_shape(size, video_length)
        seeds = clip_seeds(seed, num_videos)
        negative = (neg_prompt or NEGATIVE_PROMPT) if cfg_scale > 1 else None
        with self._timed() as encoding:
            conditioning = self.encode(prompt, negative, video_length=video_length)
        clips = []
        for clip_seed in seeds:
            logger.info(f"seed {clip_seed}")
            latent = self.denoise(
                conditioning,
                self.noise(shape, clip_seed, noise_device),
                infer_steps=infer_steps,
                flow_shift=flow_shift,
                flow_reverse=flow_reverse,
                embedded_guidance=embedded_guidance,
                cfg_scale=cfg_scale,
                plan=plan,
                progress=progress,
            )
            with self._timed() as decoding:
                clips.append(self.decode(latent))
            check_finite(clips[-1], "decoding", f"download {self.files.vae_weights} again")
            self.last_run = replace(
                self.last_run,
                seed=clip_seed,
                encode_seconds=encoding.seconds,
                decode_seconds=decoding.seconds,
            )
        return torch.stack(clips)

    def encode(
        self, prompt: str, negative: str | None = None, *, video_length: int
    ) -> Conditioning:
        """The prompt, after the negative one if there is one, encoded on the pipeline's device."""
        prompts = [prompt] if negative is None else [negative, prompt]
        with self._at_work(self.text_encoder):
            states, masks = zip(
                *(self.text_encoder(text, video_length) for text in prompts), strict=True
            )
        with self._at_work(self.text_encoder_2):
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
        progress: bool = True,
    ) -> Tensor:
        """Latents fp32 (B, z, f, h, w) from noise of that shape; leaves statistics in `last_run`.

        conditioning: a row for each of the B clips, or with real guidance B negative ones first.
        """
        config = self.config
        steps = config.infer_steps if infer_steps is None else infer_steps
        shift = config.flow_shift if flow_shift is None else flow_shift
        strength = config.embedded_cfg_scale if embedded_guidance is None else embedded_guidance
        if not flow_reverse:
            warn_of_noise(plan)
        if plan is not None:
            plan = plan_for_run(plan, steps, shift)
            self._log_plan(plan, conditioning, noise)
        cache = DeltaCache(plan) if plan is not None else None
        visit = plan.solver_steps if plan is not None else tuple(range(steps))
        scheduler = build_scheduler(steps, shift, self.device, visit, reverse=flow_reverse)
        latent = noise.to(self.device, torch.float32)
        rows = len(conditioning.states)  # twice the clips with real guidance
        fixed = self._fixed_inputs(conditioning, latent, strength)
        bar = tqdm(total=steps, disable=not progress, unit="step")
        marks = progress_marks(cache, visit, steps)
        with (
            self._timed() as loop,
            torch.no_grad(),
            self._autocast(),
            bar,
            _attached(cache, self.model),
        ):
            for number, step in enumerate(visit):
                t = scheduler.timesteps[number]
                if cache is not None:
                    cache.begin(step, "cond")  # both halves of real guidance are one call
                x = latent if rows == len(latent) else torch.cat((latent, latent))
                flow = self.model(x=x, t=t.expand(rows), **fixed)["x"]
                if rows == 2 * len(latent):
                    uncond, cond = flow.chunk(2)
                    flow = uncond + cfg_scale * (cond - uncond)
                latent = scheduler.step(flow.float(), t, latent, return_dict=False)[0]
                done, note = marks[number]
                bar.set_postfix_str(note, refresh=False)
                bar.update(done - bar.n)
        self.last_run = self._stats(steps, visit, cache, loop.seconds)
        self._log_run(cache)
        check_finite(
            latent,
            f"sampling with embedded-cfg-scale {strength}, cfg-scale {cfg_scale}, flow-shift "
            f"{shift} and precision {config.precision}",
            "take values near the defaults; if they are, download the weights again",
        )
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Clip (3, F, H, W), fp32 in [0, 1] on the CPU, of a latent (1, z, f, h, w)."""
        with self._at_work(self.vae):
            return self.vae.decode(latent[0].to(self.device)).cpu()

    def guidance(self, strength: float, rows: int) -> Tensor | None:
        """What the guidance embedder takes, (B,): the product is rounded to the model's type."""
        if not self.model.guidance_embed:
            return None
        told = DTYPES[self.config.precision]  # also where another type is computed in
        product = torch.tensor([strength] * rows, device=self.device).to(told) * GUIDANCE_SCALE
        return product.to(self.dtype)

    def _fixed_inputs(
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

    def _autocast(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return no_autocast(self.device)
        return torch.autocast(self.device.type, self.dtype)

    @contextmanager
    def _at_work(self, part: LanguageModel | PooledClip | VideoVAE) -> Iterator[None]:
        """With offload, the part is on the GPU inside and on the host afterwards."""
        if not self.offload:
            yield
            return
        part.to(self.device)
        try:
            yield
        finally:
            part.to("cpu")
            torch.cuda.empty_cache()

    def _latent_shape(self, size: tuple[int, int], length: int) -> tuple[int, ...]:
        check_video_length(length, self.config.vae_stride[0])
        return self.config.latent_shape(round_size(size), length)

    def _log_plan(self, plan: CachePlan, conditioning: Conditioning, noise: Tensor) -> None:
        for note in plan.notes:
            logger.warning(note)
        rows, itemsize = len(conditioning.states), self.dtype.itemsize
        # the model cuts the text to the longest prompt
        tokens = self.config.tokens(noise.shape) + max(text_lens(conditioning.mask))
        lines = plan.summary_lines(
            tokens=rows * tokens,
            stream_itemsize=itemsize,
            latent_numel=rows * noise[0].numel(),
            prediction_itemsize=itemsize,
        )
        for line in lines:
            logger.info(line)

    def _log_run(self, cache: DeltaCache | None) -> None:
        run = self.last_run
        for line in cache.report.lines() if cache is not None else ():
            logger.info(line)
        logger.info(
            f"denoising took {run.denoise_seconds:.2f} s: {run.solver_steps} solver steps, "
            f"{run.model_calls} model calls, {run.block_runs} of {run.block_runs_full} block runs"
        )

    def _stats(
        self, steps: int, visit: tuple[int, ...], cache: DeltaCache | None, seconds: float
    ) -> RunStats:
        full = steps * (len(self.model.double_blocks) + len(self.model.single_blocks))
        report = cache.report if cache is not None else None
        return RunStats(
            solver=SOLVER,
            steps=steps,
            solver_steps=len(visit),
            model_calls=report.model_calls if report else steps,
            reused_calls=report.reused_calls if report else 0,
            block_runs=report.block_runs if report else full,
            block_runs_full=full,
            reused_intervals=report.reused_intervals if report else 0,
            cache_peak_bytes=report.peak_bytes if report else 0,
            denoise_seconds=seconds,
            plan=cache.plan.name if cache is not None else None,
        )

    @contextmanager
    def _timed(self) -> "Iterator[_Seconds]":
        taken = _Seconds()
        self._synchronize()
        start = time.perf_counter()
        try:
            yield taken
            self._synchronize()  # not after an error, which it could replace by its own
        finally:
            taken.seconds = time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def check_finite(result: Tensor, what: str, way_out: str) -> None:
    """InputError when an overflow or damaged weights would give a black or random clip."""
    if not result.isfinite().all():
        raise InputError(f"{what} gave numbers that are not finite: {way_out}")


@dataclass
class _Seconds:
    seconds: float = 0.0


def _attached(cache: DeltaCache | None, model: torch.nn.Module) -> AbstractContextManager:
    return nullcontext() if cache is None else cache.attached(model)


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


def computing_config(config: HunyuanConfig, device: torch.device) -> HunyuanConfig:
    """`config`, with fp32 for the transformer where the processor would emulate its precision."""
    emulated = emulates(DTYPES[config.precision], device)
    return replace(config, precision="fp32") if emulated else config


def check_autocast(config: HunyuanConfig) -> None:
    """InputError for weights in half precision without autocast, which upstream fails on."""
    if config.disable_autocast and config.precision != "fp32":
        raise InputError(
            f"disable-autocast with precision {config.precision}: the transformer mixes types that "
            "only autocast brings together, take --precision fp32 with it"
        )


def warn_of_noise(plan: CachePlan | None) -> None:
    """What a run without flow_reverse gives; PlanError when it has a plan as well."""
    if plan is not None:
        raise PlanError(
            f"plan {plan.name!r} is for falling noise levels: add --flow-reverse, without it the "
            "levels rise and the result is noise"
        )
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
    """The plan on this run's noise levels; PlanError when it cannot be carried over to them."""
    if plan.branches != ("cond",):
        raise PlanError(
            f"plan {plan.name!r} knows the branches {' and '.join(plan.branches)}, HunyuanVideo "
            "calls the model once a step: take a plan with cond alone"
        )
    return plan.at(sigmas_fp32(steps, shift), solver=SOLVER, shift=shift)


def progress_marks(
    cache: DeltaCache | None, visit: tuple[int, ...], steps: int
) -> list[tuple[int, str]]:
    """Per visited step: how many steps of the grid are done after it, and the reused share.

    A step counts as reused when any block of it is; so do the steps that the solver jumps.
    """
    ends = (*visit[1:], steps)
    if cache is None:
        return [(done, "") for done in ends]
    computed = accumulate(int(cache.is_compute(step)) for step in visit)
    return [
        (done, f"reused {1 - count / done:.0%}") for done, count in zip(ends, computed, strict=True)
    ]


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

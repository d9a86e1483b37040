"""HunyuanVideo as commands and benchmarks run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from profiling_core.plan import CachePlan
from profiling_core.trees.tree_model import (
    NO_PICTURES,
    ModelRequest,
    Part,
    Pictures,
    Sampling,
    TreeModel,
    import_tree,
    parse_size,
)

if TYPE_CHECKING:
    from profiling_core.parallel.ranks import Ranks


class HunyuanModel(TreeModel):
    """HunyuanVideo, through the options of sample_video.py."""

    name, folder, miniature = "hunyuan", "HunyuanVideo", "HYVideo-mini"
    marks = ("sample_video.py", "hyvideo/pipeline.py", "hyvideo/sigmas.py")
    solvers = ("euler",)
    not_settings = TreeModel.not_settings | {
        "seed",
        "seed_type",
        "num_videos",
        "save_path",
        "save_path_suffix",
        "name_suffix",
    }

    def _script(self) -> ModuleType:
        import sample_video

        return sample_video

    def _argv(self, request: ModelRequest, given: Any) -> list[str]:
        from hyvideo.config import CONFIGS

        name = request.model or given.model
        config = CONFIGS.get(name)
        embeds = config is None or config.transformer["guidance_embed"]
        options = {
            "--model": name,
            "--model-base": request.ckpt_dir,
            "--dit-weight": request.dit_weight,
            "--video-length": request.frame_num,
            "--infer-steps": request.steps,
            "--flow-solver": request.solver,
            "--flow-shift": request.shift,
            "--embedded-cfg-scale" if embeds else "--cfg-scale": request.guidance,
            "--num-videos": 1,
            "--save-path": tempfile.gettempdir(),  # checked, nothing is written there
        }
        argv = [f"{name}={value}" for name, value in options.items() if value is not None]
        if request.size is not None:
            width, height = parse_size(request.size)
            argv += ["--video-size", str(height), str(width)]
        return [*argv, "--flow-reverse"]

    def _check(self, script: Any, request: ModelRequest) -> None:
        from hyvideo.config import CONFIGS
        from hyvideo.inference import settings_of

        args = self.args
        args.seed, args.seed_type = 0, "auto"
        script.check_supported(args)
        known = CONFIGS[args.model]
        script.fill_defaults(args, known)
        if (
            request.ckpt_dir is not None
        ):  # given here, so that the environment's MODEL_BASE does not win
            args.model_base = request.ckpt_dir
        self.config = settings_of(args, known)
        script.check_values(args, self.config)
        script.warn(args, self.config)
        if not self._incomplete:
            self.check_files()
        args.model_base = Path(args.model_base).resolve()
        if args.dit_weight is not None:
            args.dit_weight = Path(args.dit_weight).resolve()

    @classmethod
    def models(cls) -> tuple[str, ...]:
        import_tree(cls)
        from hyvideo.config import CONFIGS

        return tuple(CONFIGS)

    def check_files(self) -> None:
        with self.as_user_error():
            self._files()

    def _files(self) -> Any:
        from hyvideo.checkpoint import find_files

        args = self.args
        return find_files(Path(args.model_base), args.dit_weight, use_fp8=args.use_fp8)

    def parts(self) -> dict[str, Part]:
        from hyvideo.checkpoint import encoder_files, expected_files, find_dit
        from hyvideo.text_encoder import LanguageModel, PooledClip
        from hyvideo.vae import VideoVAE
        from hyvideo.weights import load_transformer

        args, config = self.args, self.config
        files = expected_files(args.model_base, args.dit_weight, use_fp8=args.use_fp8)
        dit = find_dit(files.dit) if files.dit.is_dir() else files.dit
        vae = (files.vae_config, files.vae_weights)
        first, second = files.text_encoder, files.text_encoder_2
        return {
            "transformer": Part((dit,), partial(load_transformer, dit, config, "meta")),
            "text encoder": Part(
                encoder_files(first), partial(LanguageModel, first, config, "meta")
            ),
            "second text encoder": Part(
                encoder_files(second), partial(PooledClip, second, config, "meta")
            ),
            "VAE": Part(vae, partial(VideoVAE, *vae, "meta", config.vae_precision)),
        }

    def needed_bytes(self) -> dict[str, dict[str, int]]:
        from hyvideo.checks import memory_load

        offload = self.args.use_cpu_offload
        needs, load = memory_load(self._files(), self.config, self.device, offload, **self._clip)
        return needs(load)

    def memory_checks(self) -> dict[str, Callable[[], object]]:
        from hyvideo.checks import check_memory

        check = partial(check_memory, self._files(), self.config, self.device, **self._clip)
        found = {"as given": partial(check, self.args.use_cpu_offload)}
        if self.device.type == "cuda":
            found["--use-cpu-offload"] = partial(check, True)
        return dict(found)

    @property
    def _clip(self) -> dict[str, Any]:
        """What a clip of this model adds to the weights."""
        args = self.args
        latent = self.config.latent_shape(tuple(args.video_size), args.video_length)
        rows = 2 if args.cfg_scale > 1 else 1
        return {"latent": latent, "rows": rows, "plan": self.largest_plan}

    def attention_kernel(self) -> str:
        import torch

        from hyvideo.attention import choose_kernel

        return choose_kernel(self.device, torch.bfloat16, 128)

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        return self.args.video_length, *self.args.video_size

    @property
    def fps(self) -> int:
        return self.config.sample_fps

    def describe(self) -> str:
        args, (frames, height, width) = self.args, self.clip_shape
        return (
            f"{args.model}, {width}x{height}, {frames} frames, {args.infer_steps} "
            f"{args.flow_solver} steps, shift {args.flow_shift:g}, guidance {self.guidance:g}"
        )

    @property
    def sampling(self) -> Sampling:
        args = self.args
        return Sampling(args.infer_steps, args.flow_solver, args.flow_shift)

    @property
    def guidance(self) -> float:
        args = self.args
        return args.cfg_scale if args.cfg_scale > 1 else args.embedded_cfg_scale

    def sigmas(self, run: Sampling) -> tuple[float, ...]:
        from hyvideo.sigmas import sigmas_fp32

        return sigmas_fp32(run.steps, run.shift)

    def _checked_plan(self, plan: CachePlan) -> CachePlan:
        from hyvideo.checks import check_plan

        run = self.sampling
        return check_plan(plan, self.config, run.steps, run.shift)

    def _on_grid(self, plan: CachePlan, run: Sampling) -> CachePlan:
        from hyvideo.checks import plan_for_run

        return plan_for_run(plan, run.steps, run.shift)

    @property
    def checkpoint_dir(self) -> Path:
        return self.args.model_base

    @property
    def checkpoint(self) -> list[Path]:
        return self._files().weights

    def load(self, ranks: Ranks | None = None, *, fp32: bool = False) -> None:
        from hyvideo.pipeline import HunyuanVideo

        args = self.args
        self.pipeline = HunyuanVideo(
            self.config,
            args.model_base,
            self.device,
            dit_weight=args.dit_weight,
            use_cpu_offload=args.use_cpu_offload,
            latent_shape=self._clip["latent"],
            rows=self._clip["rows"],
            plan=self._clip["plan"],
            fp32=fp32,
            ranks=ranks,
        )

    def inputs(self, prompt: str, seed: int, pictures: Pictures = NO_PICTURES) -> tuple[Any, ...]:
        from hyvideo.config import NEGATIVE_PROMPT

        self.read_pictures(pictures)  # refuses any
        args, negative = self.args, None
        if args.cfg_scale > 1:
            negative = args.neg_prompt or NEGATIVE_PROMPT
        conditioning = self.pipeline.encode(prompt, negative, video_length=args.video_length)
        shape = self.config.latent_shape(tuple(args.video_size), args.video_length)
        return conditioning, self.pipeline.noise(shape, seed, self.noise_device)

    def _denoise(self, inputs: tuple[Any, ...], run: Sampling, options: dict[str, Any]) -> Any:
        args = self.args
        return self.pipeline.denoise(
            *inputs,
            infer_steps=run.steps,
            flow_shift=run.shift,
            embedded_guidance=args.embedded_cfg_scale,
            cfg_scale=args.cfg_scale,
            **options,
        )

    def decode(self, latent: Any) -> Any:
        video = self.pipeline.decode(latent)
        return None if video is None else video.float() * 2 - 1

    def save(self, video: Any, path: Path) -> None:
        from hyvideo.video import save_video

        save_video((video + 1) / 2, path, self.fps, rescue=False)

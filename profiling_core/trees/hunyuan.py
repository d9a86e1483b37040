"""HunyuanVideo behind the face that a comparison needs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiling_core.plan import CachePlan
from profiling_core.trees.tree_model import Asked, TreeModel, draws_progress, parse_size

if TYPE_CHECKING:
    from profiling_core.parallel.ranks import Ranks


class HunyuanModel(TreeModel):
    """HunyuanVideo, through the options of sample_video.py."""

    folder, script, code = "HunyuanVideo", "sample_video", "hyvideo"
    marks = ("sample_video.py", "hyvideo/pipeline.py", "hyvideo/sigmas.py")
    not_settings = TreeModel.not_settings | {
        "seed",
        "seed_type",
        "num_videos",
        "save_path",
        "save_path_suffix",
        "name_suffix",
    }

    def _argv(self, asked: Asked, given: Any) -> list[str]:
        name = asked.model or given.model
        config = self._module("config").CONFIGS.get(name)
        embeds = config is None or config.transformer["guidance_embed"]
        options = {
            "--model": name,
            "--model-base": asked.ckpt_dir,
            "--dit-weight": asked.dit_weight,
            "--video-length": asked.frame_num,
            "--infer-steps": asked.steps,
            "--flow-solver": asked.solver,
            "--flow-shift": asked.shift,
            "--embedded-cfg-scale" if embeds else "--cfg-scale": asked.guidance,
            "--num-videos": 1,
            "--save-path": tempfile.gettempdir(),  # checked, nothing is written there
        }
        argv = [f"{name}={value}" for name, value in options.items() if value is not None]
        if asked.size is not None:
            width, height = parse_size(asked.size)
            argv += ["--video-size", str(height), str(width)]
        return [*argv, "--flow-reverse"]

    def _check(self, script: Any, asked: Asked) -> None:
        args = self.args
        args.seed, args.seed_type = 0, "auto"
        script.check_supported(args)
        known = self._module("config").CONFIGS[args.model]
        script.fill_defaults(args, known)
        if asked.ckpt_dir is not None:  # said here, so the environment's MODEL_BASE does not win
            args.model_base = asked.ckpt_dir
        self.config = self._module("inference").settings_of(args, known)
        script.check_values(args, self.config)
        script.warn(args, self.config)
        args.model_base = Path(args.model_base).resolve()
        if args.dit_weight is not None:
            args.dit_weight = Path(args.dit_weight).resolve()

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        return self.args.video_length, *self.args.video_size

    @property
    def fps(self) -> int:
        return self.config.sample_fps

    def describe(self) -> str:
        args, (frames, height, width) = self.args, self.clip_shape
        guidance = args.cfg_scale if args.cfg_scale > 1 else args.embedded_cfg_scale
        return (
            f"{args.model}, {width}x{height}, {frames} frames, {args.infer_steps} "
            f"{args.flow_solver} steps, shift {args.flow_shift:g}, guidance {guidance:g}"
        )

    def check_plan(self, plan: CachePlan) -> CachePlan:
        check = self._module("checks").check_plan
        with self.one_line():
            return check(plan, self.config, self.args.infer_steps, self.args.flow_shift)

    @property
    def checkpoint(self) -> list[Path]:
        args, find_files = self.args, self._module("checkpoint").find_files
        return find_files(args.model_base, args.dit_weight, use_fp8=args.use_fp8).weights

    def load(self, ranks: Ranks | None = None) -> None:
        args = self.args
        self.pipeline = self._module("pipeline").HunyuanVideo(
            self.config,
            args.model_base,
            self.device,
            dit_weight=args.dit_weight,
            use_cpu_offload=args.use_cpu_offload,
            ranks=ranks,
        )

    def inputs(self, prompt: str, seed: int) -> tuple[Any, ...]:
        args, negative = self.args, None
        if args.cfg_scale > 1:
            negative = args.neg_prompt or self._module("config").NEGATIVE_PROMPT
        conditioning = self.pipeline.encode(prompt, negative, video_length=args.video_length)
        shape = self.config.latent_shape(tuple(args.video_size), args.video_length)
        return conditioning, self.pipeline.noise(shape, seed)

    def denoise(
        self,
        inputs: tuple[Any, ...],
        plan: CachePlan | None = None,
        *,
        steps: int | None = None,
        recorder: Any = None,
    ) -> Any:
        args = self.args
        return self.pipeline.denoise(
            *inputs,
            infer_steps=args.infer_steps if steps is None else steps,
            flow_shift=args.flow_shift,
            embedded_guidance=args.embedded_cfg_scale,
            cfg_scale=args.cfg_scale,
            plan=plan,
            recorder=recorder,
            progress=draws_progress(),
        )

    def decode(self, latent: Any) -> Any:
        video = self.pipeline.decode(latent)
        return None if video is None else video.float() * 2 - 1

    def save(self, video: Any, path: Path) -> None:
        self._module("video").save_video((video + 1) / 2, path, self.fps)

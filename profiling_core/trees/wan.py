"""Wan2.1 behind the face that a comparison needs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiling_core.errors import CompareError
from profiling_core.plan import CachePlan
from profiling_core.trees.tree_model import Asked, TreeModel, draws_progress, parse_size

if TYPE_CHECKING:
    from profiling_core.parallel.ranks import Ranks


class WanModel(TreeModel):
    """Wan2.1, through the options of generate.py."""

    folder, script, code = "Wan2.1", "generate", "wan"
    marks = ("generate.py", "wan/text2video.py", "wan/sigmas.py")
    not_settings = TreeModel.not_settings | {"base_seed", "save_file"}

    def _argv(self, asked: Asked, given: Any) -> list[str]:
        if asked.dit_weight is not None:
            raise CompareError(
                f"--dit-weight {asked.dit_weight}: Wan2.1 has its weights in --ckpt-dir"
            )
        size = None if asked.size is None else "*".join(map(str, parse_size(asked.size)))
        options = {
            "--task": asked.model,
            "--ckpt_dir": asked.ckpt_dir,
            "--size": size,
            "--frame_num": asked.frame_num,
            "--sample_steps": asked.steps,
            "--sample_solver": asked.solver,
            "--sample_shift": asked.shift,
            "--sample_guide_scale": asked.guidance,
            "--base_seed": 0,
            "--save_file": Path(tempfile.gettempdir()) / "clip.mp4",  # checked there, never made
        }
        return [f"{name}={value}" for name, value in options.items() if value is not None]

    def _check(self, script: Any, asked: Asked) -> None:
        args = self.args
        script.check_supported(args)
        self.config = self._module("configs").CONFIGS[args.task]
        if self.config.still:
            raise CompareError(f"--model {args.task} makes images: take one that makes videos")
        script.fill_defaults(args, self.config)
        script.check_values(args, self.config)
        args.ckpt_dir = Path(args.ckpt_dir).resolve()

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        width, height = parse_size(self.args.size)
        return self.args.frame_num, height, width

    @property
    def fps(self) -> int:
        return self.config.sample_fps

    def describe(self) -> str:
        args = self.args
        return (
            f"{args.task}, {args.size.replace('*', 'x')}, {args.frame_num} frames, "
            f"{args.sample_steps} {args.sample_solver} steps, shift {args.sample_shift:g}, "
            f"guidance {args.sample_guide_scale:g}"
        )

    def check_plan(self, plan: CachePlan) -> CachePlan:
        args, check = self.args, self._module("checks").check_plan
        with self.one_line():
            return check(
                plan, args.ckpt_dir, args.sample_solver, args.sample_steps, args.sample_shift
            )

    @property
    def checkpoint(self) -> list[Path]:
        return self._module("checkpoint").checkpoint_files(self.args.ckpt_dir, self.config)

    def load(self, ranks: Ranks | None = None) -> None:
        args = self.args
        self.pipeline = self._module("text2video").WanT2V(
            self.config,
            args.ckpt_dir,
            self.device,
            t5_cpu=args.t5_cpu,
            offload_model=args.offload_model,
            ranks=ranks,
        )

    def inputs(self, prompt: str, seed: int) -> tuple[Any, ...]:
        import torch

        offload = self.args.offload_model
        prompts = [prompt, self.config.sample_neg_prompt]
        context, context_null = self.pipeline.encode(prompts, offload_model=offload)
        shape = self.config.latent_shape(parse_size(self.args.size), self.args.frame_num)
        generator = torch.Generator(self.device).manual_seed(seed)
        noise = torch.randn(shape, generator=generator, device=self.device)
        return context, context_null, noise

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
            shift=args.sample_shift,
            sample_solver=args.sample_solver,
            sampling_steps=args.sample_steps if steps is None else steps,
            guide_scale=args.sample_guide_scale,
            plan=plan,
            recorder=recorder,
            progress=draws_progress(),
        )

    def decode(self, latent: Any) -> Any:
        import torch

        if self.args.offload_model and self.device.type == "cuda":
            self.pipeline.model.cpu()
            torch.cuda.empty_cache()
        video = self.pipeline.decode(latent)
        return None if video is None else video.float().cpu()

    def save(self, video: Any, path: Path) -> None:
        self._module("video").save_video(video, path, self.fps)

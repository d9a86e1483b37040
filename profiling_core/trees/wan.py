"""Wan2.1 as commands and benchmarks run it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from profiling_core.errors import CompareError
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


class WanModel(TreeModel):
    """Wan2.1, through the options of generate.py."""

    name, folder, miniature = "wan", "Wan2.1", "t2v-mini"
    marks = ("generate.py", "wan/text2video.py", "wan/sigmas.py")
    solvers = ("unipc", "dpm++")
    not_settings = TreeModel.not_settings | {"base_seed", "save_file"}

    def _script(self) -> ModuleType:
        import generate

        return generate

    def _argv(self, request: ModelRequest, given: Any) -> list[str]:
        if request.dit_weight is not None:
            raise CompareError(
                f"--dit-weight {request.dit_weight}: Wan2.1 has its weights in --ckpt-dir"
            )
        from wan.configs import WAN_CONFIGS

        size = None if request.size is None else "*".join(map(str, parse_size(request.size)))
        config = WAN_CONFIGS.get(request.model or given.task)
        if config is not None and size not in (None, *config.sizes):
            known = ", ".join(config.sizes)
            raise CompareError(f"--size {size} is not one of task {config.task}: take {known}")
        options = {
            "--task": request.model,
            "--ckpt_dir": request.ckpt_dir,
            "--size": size,
            "--frame_num": request.frame_num,
            "--sample_steps": request.steps,
            "--sample_solver": request.solver,
            "--sample_shift": request.shift,
            "--sample_guide_scale": request.guidance,
            "--base_seed": 0,
            "--save_file": Path(tempfile.gettempdir()) / "clip.mp4",  # checked there, never made
        }
        return [f"{name}={value}" for name, value in options.items() if value is not None]

    def _check(self, script: Any, request: ModelRequest) -> None:
        from wan.configs import WAN_CONFIGS

        args = self.args
        script.check_supported(args)
        self.config = WAN_CONFIGS[args.task]
        if self.config.still:
            raise CompareError(f"--model {args.task} makes images: take one that makes videos")
        for name in self.config.pictures:
            if getattr(args, name) is not None:
                raise CompareError(
                    f"--tree-options --{name} {getattr(args, name)}: name pictures beside their "
                    "prompts"
                )
        script.fill_defaults(args, self.config)
        self.sources = script.check_sources(args, self.config)
        self._source_files = [
            path for name in self.config.sources for path in script.paths_of(args, name)
        ]
        script.check_values(args, self.config)
        if not self._incomplete:
            self.check_files()
        args.ckpt_dir = Path(args.ckpt_dir).resolve()

    @classmethod
    def models(cls) -> tuple[str, ...]:
        import_tree(cls)
        from wan.configs import WAN_CONFIGS

        return tuple(task for task, config in WAN_CONFIGS.items() if not config.still)

    @property
    def sizes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.args.size, *self.config.sizes)))

    @property
    def plan_model(self) -> str:
        return self.config.plan_model_of(self.args.size)

    @property
    def pictures(self) -> tuple[str, ...]:
        return ("image", "last_image")[: len(self.config.pictures)]

    def read_pictures(self, given: Pictures) -> list[Any]:
        from wan.pictures import read_picture

        super().read_pictures(given)
        with self.as_user_error():
            found = [read_picture(getattr(given, name), name) for name in self.pictures]
            self._size_for(found)
        return found

    def _size_for(self, pictures: list[Any]) -> tuple[int, int]:
        """(width, height) of a clip that starts from these, or of one from sources."""
        if self.sources is not None:
            return self.sources.size
        return self.config.size_for(self.args.size, pictures[0].size if pictures else None)

    def check_files(self) -> None:
        from wan.checkpoint import check_folder

        with self.as_user_error():
            check_folder(Path(self.args.ckpt_dir), self.config)

    def parts(self) -> dict[str, Part]:
        import torch

        from wan.checkpoint import DIT, TOKENIZER_FILES, dit_files
        from wan.clip import ImageEncoder
        from wan.t5 import TextEncoder
        from wan.vae import VideoVAE
        from wan.weights import load_transformer

        folder, config = self.checkpoint_dir, self.config
        t5, vae = folder / config.t5_checkpoint, folder / config.vae_checkpoint
        tokenizer = folder / config.t5_tokenizer
        present = [name for name in TOKENIZER_FILES if (tokenizer / name).exists()]
        words = ("tokenizer_config.json", *(present or TOKENIZER_FILES[:1]))
        index = folder / f"{DIT}.safetensors.index.json"
        transformer = [folder / "config.json", *([index] if index.exists() else [])]
        transformer += [folder / name for name in dit_files(folder)]
        parts = {
            "transformer": Part(tuple(transformer), partial(load_transformer, folder, "meta")),
            "text encoder": Part(
                (t5, *(tokenizer / name for name in words)),
                partial(TextEncoder, t5, tokenizer, text_len=1),  # no prompt is encoded
            ),
            "VAE": Part((vae,), partial(VideoVAE, vae, "meta")),
        }
        if config.clip_checkpoint is not None:
            clip = folder / config.clip_checkpoint
            parts["image encoder"] = Part((clip,), partial(ImageEncoder, clip, torch.float16))
        return parts

    def needed_bytes(self) -> dict[str, dict[str, int]]:
        from wan.checks import device_needs

        sizes, load = self._memory()
        if self.device.type == "cpu":  # everything lies there, and stays
            load = replace(load, t5_cpu=False, offload_model=False)
        return device_needs(sizes, load)

    def memory_checks(self) -> dict[str, Callable[[], object]]:
        import torch

        from wan.checks import check_memory

        ways: dict[str, dict[str, Any]] = {"as given": {}}
        if self.device.type == "cuda":
            half = {"dtype": torch.bfloat16}
            ways["--t5_cpu"] = {"t5_cpu": True}
            ways["--convert_model_dtype"] = half
            ways["--convert_model_dtype --t5_cpu"] = half | ways["--t5_cpu"]
        return {
            name: partial(check_memory, *self._memory(**changes), self.device)
            for name, changes in ways.items()
        }

    def _memory(self, **changes: Any) -> tuple[Any, Any]:
        """Sizes of the checkpoint and the load of a run, with other fields of it."""
        from wan.checks import Load, offload_by_memory, sizes_of

        args, sizes = self.args, sizes_of(self.checkpoint_dir, self.config)
        load = Load(
            _dtype(args.convert_model_dtype),
            t5_cpu=args.t5_cpu,
            offload_model=bool(args.offload_model),
            latent=self._latent_shape,
            plan=self.largest_plan,
        )
        load = replace(load, **changes)
        if args.offload_model is None:
            offload, _ = offload_by_memory(sizes, load, self.device)
            load = replace(load, offload_model=offload)
        return sizes, load

    def attention_kernel(self) -> str:
        import torch

        from wan.attention import choose_kernel

        return choose_kernel(self.device, torch.bfloat16, 128)

    @property
    def settings(self) -> dict[str, Any]:
        """An offload_model that is not given shapes no clip; earlier versions wrote true.

        Sources count by what the files hold.
        """
        given = self.args.offload_model
        found = super().settings | {"offload_model": True if given is None else given}
        content = b"".join(path.read_bytes() for path in self._source_files)
        return found | ({"sources_sha256": sha256(content).hexdigest()} if content else {})

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        width, height = self._size_for([])
        return self.args.frame_num, height, width

    @property
    def _frames(self) -> int:
        """What the frames of the latent stand for."""
        return self.args.frame_num if self.sources is None else self.sources.encoded_frames

    @property
    def _latent_shape(self) -> tuple[int, int, int, int]:
        return self.config.latent_shape(self._size_for([]), self._frames)

    @property
    def fps(self) -> int:
        return self.config.sample_fps

    def describe(self) -> str:
        args, size = self.args, self.args.size.replace("*", "x")
        return (
            f"{args.task}, {'the area of ' * bool(self.pictures)}{size}, {args.frame_num} frames, "
            f"{args.sample_steps} {args.sample_solver} steps, shift {args.sample_shift:g}, "
            f"guidance {args.sample_guide_scale:g}"
        )

    @property
    def sampling(self) -> Sampling:
        args = self.args
        return Sampling(args.sample_steps, args.sample_solver, args.sample_shift)

    @property
    def guidance(self) -> float:
        return self.args.sample_guide_scale

    def sigmas(self, run: Sampling) -> tuple[float, ...]:
        from wan.sigmas import sigmas_fp32

        return sigmas_fp32(run.solver, run.steps, run.shift)

    def _checked_plan(self, plan: CachePlan) -> CachePlan:
        from wan.checks import check_plan

        run = self.sampling
        return check_plan(plan, self.checkpoint_dir, run.solver, run.steps, run.shift)

    def _on_grid(self, plan: CachePlan, run: Sampling) -> CachePlan:
        from wan.checks import plan_for_run

        return plan_for_run(plan, run.solver, run.steps, run.shift)

    @property
    def checkpoint_dir(self) -> Path:
        return self.args.ckpt_dir

    @property
    def checkpoint(self) -> list[Path]:
        from wan.checkpoint import checkpoint_files

        return checkpoint_files(self.checkpoint_dir, self.config)

    def load(self, ranks: Ranks | None = None, *, fp32: bool = False) -> None:
        from wan.vace import PIPELINES

        args = self.args
        self.pipeline = PIPELINES[self.config.model_type](
            self.config,
            args.ckpt_dir,
            device=self.device,
            t5_cpu=args.t5_cpu,
            offload_model=args.offload_model,
            latent_shape=self._latent_shape,
            plan=self.largest_plan,
            torch_dtype=_dtype(args.convert_model_dtype),
            fp32=fp32,
            ranks=ranks,
        )

    def inputs(self, prompt: str, seed: int, pictures: Pictures = NO_PICTURES) -> tuple[Any, ...]:
        import torch

        from wan.vace import load_sources

        images = self.read_pictures(pictures)
        size, frames = self._size_for(images), self._frames
        prompts = [prompt, self.config.sample_neg_prompt]
        context, context_null = self.pipeline.encode(prompts)
        encoded = [self.pipeline.encode_pictures(images, size, frames)] if images else []
        if self.sources is not None:
            lists = load_sources(self.sources)
            made = self.pipeline.encode_sources(*(one for (one,) in lists))
            encoded = [{"vace_context": [made]}]
        shape = self.config.latent_shape(size, frames)
        device = self.noise_device or self.device
        generator = torch.Generator(device).manual_seed(seed)
        noise = torch.randn(shape, generator=generator, device=device)
        return context, context_null, noise, *encoded

    def _denoise(self, inputs: tuple[Any, ...], run: Sampling, options: dict[str, Any]) -> Any:
        context, context_null, noise, *encoded = inputs
        return self.pipeline.denoise(
            context,
            context_null,
            noise,
            condition=encoded[0] if encoded else None,
            shift=run.shift,
            sample_solver=run.solver,
            sampling_steps=run.steps,
            guide_scale=self.guidance,
            **options,
        )

    def decode(self, latent: Any) -> Any:
        self.pipeline.make_room()
        cut = 0 if self.sources is None else len(self.sources.pictures)
        video = self.pipeline.decode(latent[:, cut:])
        return None if video is None else video.float().cpu()

    def save(self, video: Any, path: Path) -> None:
        from wan.video import save_video

        save_video(video, path, self.fps, rescue=False)


def _dtype(convert: bool) -> Any:
    """What the transformer's weights are kept in."""
    import torch

    return torch.bfloat16 if convert else torch.float32

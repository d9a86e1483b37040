"""Both upstream commands on stand-ins: their own pipelines, loops and transformers, tiny."""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from PIL import Image
from torch import nn

from naive_walk import naive
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.loops.scheduler_grid import Grid, grid_of, when_set
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import known_model
from stand_ins import TEXT_TOKENS, TEXT_WIDTH, Clip, Text, Vae, attention, fixed

STEPS, COMPUTED = 10, (0, 1, 2, 5, 8)
FAMILIES = {
    "all compute": ("both", "hold", range(STEPS)),
    "intervals, held": ("intervals", "hold", COMPUTED),
    "intervals, linear": ("intervals", "linear", COMPUTED),
    "prediction, held": ("prediction", "hold", COMPUTED),
    "prediction, linear": ("prediction", "linear", COMPUTED),
    "jump": ("prediction", "jump", COMPUTED),
}


class TinyRun(ABC):
    """One upstream's command on stand-ins; `tasks` are the options of its runs."""

    name: str
    family: str
    lists: tuple[str, ...]
    branches: int
    tasks: dict[str, list[str]]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vae = Vae(_bytes_held)
        self.model: nn.Module | None = None  # of the last run

    @abstractmethod
    def run(self, options: list[str]) -> torch.Tensor:
        """The latents of one command."""

    @property
    @abstractmethod
    def schedulers(self) -> list[type]:
        """Scheduler classes of which the loop makes its own."""

    def grid(self, options: list[str]) -> Grid:
        """What the command's scheduler is set to."""
        seen: list[Grid] = []
        shift = self.shift(options)

        def see(scheduler: Any, given: dict[str, Any]) -> None:
            seen.append(grid_of(scheduler, given | shift))

        with ExitStack() as stack:
            for scheduler in self.schedulers:
                stack.enter_context(when_set(scheduler, see))
            self.run(options)
        return seen[-1]

    def shift(self, options: list[str]) -> dict[str, float]:
        """Where the scheduler does not get it."""
        return {}

    def plan(self, family: str, grid: Grid) -> CachePlan:
        """A plan of FAMILIES on a grid."""
        kind, skip, computed = FAMILIES[family]
        branches = ("cond", "uncond")[: self.branches]
        steps = {"compute_steps": dict.fromkeys(branches, tuple(computed)), "skip": skip}
        sites: list[dict] = []
        if kind in ("prediction", "both"):
            sites.append({"kind": "prediction", **steps})
        if kind in ("intervals", "both"):
            runs = {"kind": "intervals", "intervals": ((0, 1), (3, 3)), **steps}
            sites += [{"block_list": name, **runs} for name in self.lists]
        lists = {name: len(getattr(self.model, name)) for name in self.lists}
        width = getattr(self.model, "dim", None) or self.model.hidden_size
        return CachePlan.build(
            name=family,
            model=known_model(self.family, lists, width),
            steps=grid.steps,
            sigmas=grid.sigmas,
            solver=grid.solver,
            shift=grid.shift,
            sites=sites,
            provenance={"made_by": "tests/upstream/run_tiny.py", "source": "by hand"},
        )

    def by_plan(self, plan: CachePlan, options: list[str]) -> torch.Tensor:
        """The patched command with the plan as a file."""
        path = self.folder / "plan.json"
        plan.save(path)
        return self.run([*options, "--delta_cache", str(path)])

    def naively(self, plan: CachePlan, options: list[str]) -> torch.Tensor:
        """The unpatched way with a second implementation of the plan."""
        with ExitStack() as stack:
            if plan.jumps:
                for scheduler in self.schedulers:
                    stack.enter_context(_only(scheduler, plan.solver_steps))
                return self.run(options)
            self.before_loop = lambda model: stack.enter_context(
                naive(plan, model, {name: name for name in self.lists}, self.branches)
            )
            try:
                return self.run(options)
            finally:
                self.before_loop = lambda model: None

    before_loop: Callable[[nn.Module], Any] = staticmethod(lambda model: None)


class TinyWan(TinyRun):
    """generate.py of Wan2.1."""

    name, family, lists, branches = "Wan2.1", "wan2.1", ("blocks",), 2
    tasks: ClassVar = {
        "t2v": ["--task", "t2v-14B"],
        "t2v, dpm++": ["--task", "t2v-14B", "--sample_solver", "dpm++"],
        "t2i": ["--task", "t2i-14B"],
        "i2v": ["--task", "i2v-14B", "--frame_num", "81"],
        "flf2v": ["--task", "flf2v-14B", "--frame_num", "81"],
        "vace": ["--task", "vace-14B"],
    }
    _classes: ClassVar = {"WanT2V": "t2v", "WanI2V": "i2v", "WanFLF2V": "flf2v", "WanVace": "vace"}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.wan = importlib.import_module("wan")
        self.generate = importlib.import_module("generate")
        self.wan.modules.model.flash_attention = attention
        self.picture = folder / "picture.png"
        Image.new("RGB", (64, 32), (200, 30, 60)).save(self.picture)
        for name, kind in self._classes.items():
            if hasattr(self.wan, name):
                self._stand_in(getattr(self.wan, name), kind)
        configs = self.generate
        configs.SIZE_CONFIGS["832*480"] = (64, 32)
        configs.MAX_AREA_CONFIGS["832*480"] = 64 * 32
        configs.SUPPORTED_SIZES["t2i-14B"] = ("832*480",)

    @property
    def schedulers(self) -> list[type]:
        module = sys.modules["wan.text2video"]
        return [module.FlowUniPCMultistepScheduler, module.FlowDPMSolverMultistepScheduler]

    def shift(self, options: list[str]) -> dict[str, float]:
        return {"shift": float(self._args(options).sample_shift)}

    def run(self, options: list[str]) -> torch.Tensor:
        saved: list[torch.Tensor] = []
        keep = mock.Mock(side_effect=lambda tensor, **more: saved.append(tensor))
        names = {name: keep for name in ("cache_video", "cache_image")}
        with mock.patch.multiple(self.generate, **names):
            self.generate.generate(self._args(options))
        return saved[0]

    def _args(self, options: list[str]) -> argparse.Namespace:
        frames = [] if "--frame_num" in options or "t2i-14B" in options else ["--frame_num", "5"]
        fixed_options = ["--ckpt_dir", ".", "--size", "832*480", "--prompt", "a lamp", *frames]
        fixed_options += ["--base_seed", "7", "--sample_steps", str(STEPS)]
        fixed_options += ["--offload_model", "False"]
        if "i2v-14B" in options:
            fixed_options += ["--image", str(self.picture)]
        if "flf2v-14B" in options:
            fixed_options += ["--first_frame", str(self.picture), "--last_frame", str(self.picture)]
        with mock.patch.object(sys, "argv", ["generate.py", *fixed_options, *options]):
            return self.generate._parse_args()

    def _stand_in(self, pipeline: type, kind: str) -> None:
        """Let a pipeline class build itself from tiny parts; its `generate` stays upstream's."""
        run = self

        def build(self: Any, config: Any, checkpoint_dir: str, **more: Any) -> None:
            self.device, self.config, self.rank, self.t5_cpu = torch.device("cpu"), config, 0, False
            self.num_train_timesteps, self.param_dtype = 1000, torch.bfloat16
            self.vae_stride, self.patch_size, self.sp_size = (4, 8, 8), (1, 2, 2), 1
            self.text_encoder, self.clip, self.vae = Text(), Clip(), run.vae
            self.sample_neg_prompt = "bad"
            self.model = run.model = run.tiny_model(kind)
            run.before_loop(self.model)

        pipeline.__init__ = build
        if kind == "vace":
            video = [fixed(3, 5, 32, 64, seed=4)]
            pipeline.prepare_source = lambda self, *given: (
                video,
                [torch.ones(3, 5, 32, 64)],
                [None],
            )

    def tiny_model(self, kind: str) -> nn.Module:
        """Weights from a seed."""
        torch.manual_seed(5)
        sizes = {"dim": 24, "ffn_dim": 32, "freq_dim": 32, "num_heads": 2, "num_layers": 6}
        sizes |= {"text_dim": TEXT_WIDTH, "text_len": TEXT_TOKENS, "out_dim": 16}
        if kind == "vace":
            model = self.wan.modules.VaceWanModel(vace_in_dim=96, in_dim=16, **sizes)
        else:
            channels = 16 if kind == "t2v" else 36
            model = self.wan.modules.WanModel(model_type=kind, in_dim=channels, **sizes)
        for parameter in model.parameters():  # the head starts at 0
            nn.init.normal_(parameter, std=0.1)
        return model.eval().requires_grad_(False)


class TinyHunyuan(TinyRun):
    """sample_video.py of HunyuanVideo."""

    name, family, branches = "HunyuanVideo", "hunyuan-video", 1
    lists = ("double_blocks", "single_blocks")
    tasks: ClassVar = {
        "embedded guidance": ["--flow-reverse", "--embedded-cfg-scale", "6.0"],
        "rising levels": ["--embedded-cfg-scale", "6.0"],
        "batched guidance": ["--flow-reverse", "--cfg-scale", "3.0"],
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        _hollow("hyvideo.vae", load_vae=None)
        _hollow("hyvideo.vae.autoencoder_kl_causal_3d", AutoencoderKLCausal3D=type("Vae", (), {}))
        _hollow("hyvideo.text_encoder", TextEncoder=type("TextEncoder", (), {}))
        self.script = importlib.import_module("sample_video")
        self.inference = importlib.import_module("hyvideo.inference")
        models = importlib.import_module("hyvideo.modules.models")
        models.attention = lambda q, k, v, **more: attention(q, k, v).flatten(2)
        models.get_cu_seqlens = lambda mask, length: torch.zeros(
            2 * len(mask) + 1, dtype=torch.int32
        )
        self._build = models.HYVideoDiffusionTransformer
        sampler = self.inference.HunyuanVideoSampler
        sampler.from_pretrained = classmethod(lambda cls, path, args: self._sampler(cls, args))
        self.inference.HunyuanVideoPipeline.encode_prompt = _encode_prompt

    @property
    def schedulers(self) -> list[type]:
        return [self.inference.FlowMatchDiscreteScheduler]

    def run(self, options: list[str]) -> torch.Tensor:
        saved: list[torch.Tensor] = []
        given = ["--model-base", ".", "--video-size", "32", "64", "--video-length", "5"]
        given += ["--infer-steps", str(STEPS), "--prompt", "a lamp", "--seed", "7"]
        given += ["--precision", "fp32", "--vae-precision", "fp32", "--vae-tiling"]
        given += ["--save-path", str(self.folder / "results")]
        keep = mock.patch.object(
            self.script, "save_videos_grid", lambda sample, *more, **named: saved.append(sample)
        )
        argv = mock.patch.object(sys, "argv", ["sample_video.py", *given, *options])
        with keep, argv, redirect_stdout(io.StringIO()):
            self.script.main()
        return saved[0]

    def _sampler(self, cls: type, args: argparse.Namespace) -> Any:
        torch.manual_seed(5)
        args.text_states_dim = args.text_states_dim_2 = TEXT_WIDTH
        model = self._build(
            args,
            in_channels=16,
            out_channels=16,
            hidden_size=24,
            heads_num=2,
            mm_double_blocks_depth=4,
            mm_single_blocks_depth=6,
            rope_dim_list=[4, 4, 4],
            guidance_embed=args.cfg_scale == 1.0,
        )
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.model = model.eval().requires_grad_(False)
        self.before_loop(self.model)
        parallel = {"ulysses_degree": 1, "ring_degree": 1}
        text = _HunyuanText()
        return cls(
            args, _HunyuanVae(self.vae), {}, text, model, text, device="cpu", parallel_args=parallel
        )


def _bytes_held() -> int:
    """Bytes of all caches that there are."""
    return sum(one.bytes_held for one in gc.get_objects() if isinstance(one, DeltaCache))


class _HunyuanText(nn.Module):
    """Registered with the pipeline; what it would say comes from _encode_prompt."""

    dtype, device = torch.float32, torch.device("cpu")


class _HunyuanVae(nn.Module):
    """What the pipeline asks of its VAE."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.vae, self.dtype, self.device = vae, torch.float32, torch.device("cpu")
        self.config = types.SimpleNamespace(
            scaling_factor=1.0, shift_factor=None, block_out_channels=(1, 1, 1, 1)
        )

    def enable_tiling(self) -> None:
        """Nothing to cut."""

    def decode(self, latents: torch.Tensor, **more: Any) -> list[torch.Tensor]:
        return [torch.stack(self.vae.decode(list(latents)))]


def _encode_prompt(pipe: Any, prompt: list[str], *args: Any, **more: Any) -> tuple[Any, ...]:
    tokens = (TEXT_TOKENS, TEXT_WIDTH) if more.get("text_encoder") is None else (TEXT_WIDTH,)
    mask = torch.ones(1, TEXT_TOKENS, dtype=torch.long)
    return fixed(1, *tokens, seed=1), fixed(1, *tokens, seed=2), mask, mask


def _hollow(name: str, **names: Any) -> None:
    module = types.ModuleType(name)
    module.__path__ = []
    vars(module).update(names)
    sys.modules[name] = module


@contextmanager
def _only(scheduler: type, steps: tuple[int, ...]) -> Iterator[None]:
    """A scheduler class that visits some of its levels; written apart from the library."""
    plain = scheduler.set_timesteps

    @wraps(plain)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        kept = [step in steps for step in range(len(self.timesteps))]
        self.timesteps = self.timesteps[torch.tensor(kept)]
        self.sigmas = self.sigmas[torch.tensor([*kept, True])]
        self.num_inference_steps = len(steps)

    with mock.patch.object(scheduler, "set_timesteps", set_timesteps):
        yield

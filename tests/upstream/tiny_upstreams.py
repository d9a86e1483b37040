"""The upstream commands on stand-ins: their own pipelines, loops and transformers, tiny."""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import sys
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

from naive_walk import naive, weighing
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.loops import official_repos
from profiling_core.loops.cached_loop import LoopCache
from profiling_core.loops.scheduler_grid import Grid, grid_of, when_set
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import known_model
from stand_ins import (
    TEXT_TOKENS,
    TEXT_WIDTH,
    Clip,
    HunyuanText,
    HunyuanVae,
    Text,
    Vae,
    attention,
    encode_prompt,
    fixed,
    hollow,
)

STEPS, COMPUTED = 24, (0, 1, 2, 5, 8, 11, 12, 15, 18, 22)
PICTURE = "picture.png"
FAMILIES = {
    "all compute": ("both", "hold", range(STEPS)),
    "intervals, held": ("intervals", "hold", COMPUTED),
    "intervals, linear": ("intervals", "linear", COMPUTED),
    "prediction, held": ("prediction", "hold", COMPUTED),
    "prediction, linear": ("prediction", "linear", COMPUTED),
    "jump": ("prediction", "jump", COMPUTED),
    "fitted jump": ("prediction", "jump", COMPUTED),  # where the solver takes weights
}


class TinyRun(ABC):
    """One upstream's command on stand-ins; `tasks` are the options of its runs."""

    name: str
    family: str
    lists: tuple[str, ...]
    branches: int
    tasks: dict[str, list[str]]
    refused: ClassVar[dict[str, list[str]]] = {}  # tasks that no plan is served for
    unrecorded: tuple[str, ...] = ()  # tasks that are not recorded

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vae = Vae(_bytes_held)
        self.models: list[nn.Module] = []  # of the last run, in the order of use
        self.boundary = 0.0  # noise level below which the second model is called
        self.attended = 0  # calls of attention in the last run
        self.plan_used: CachePlan | None = None  # by the last run of by_plan
        Image.new("RGB", (64, 32), (200, 30, 60)).save(folder / PICTURE)

    def run(self, options: list[str]) -> torch.Tensor:
        """The latents of one command."""
        self.models, self.attended = [], 0
        picture = str(self.folder / PICTURE)
        return self.command([picture if option == PICTURE else option for option in options])

    @abstractmethod
    def command(self, options: list[str]) -> torch.Tensor:
        """The latents of one command."""

    def attention(self) -> Callable[..., torch.Tensor]:
        """A function in place of upstream's kernel; it counts its calls."""

        @wraps(attention)
        def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.attended += 1
            return attention(*args, **kwargs)

        return counted

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
        if family == "fitted jump" and grid.solver == "unipc":
            weights = {step: (0.1 * (step % 3), 0.02 * step, -0.01 * step) for step in computed}
            steps |= {"solver_weights": weights}
        if kind in ("prediction", "both"):
            sites.append({"kind": "prediction", **steps})
        if kind in ("intervals", "both"):
            runs = {"kind": "intervals", "intervals": ((0, 1), (3, 3)), **steps}
            sites += [{"block_list": name, **runs} for name in self.lists]
        model = self.models[0]
        lists = {name: len(getattr(model, name)) for name in self.lists}
        width = getattr(model, "dim", None) or model.hidden_size
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

    def by_plan(self, plan: CachePlan | str, options: list[str]) -> torch.Tensor:
        """The patched command with a preset, or with a plan as a file."""
        if isinstance(plan, CachePlan):
            plan.save(self.folder / "plan.json")
            plan = str(self.folder / "plan.json")
        made: list[LoopCache] = []

        def make(*given: Any) -> LoopCache:
            made.append(LoopCache(*given))
            return made[-1]

        with mock.patch.object(official_repos, "LoopCache", make):
            latents = self.run([*options, "--delta_cache", plan])
        self.plan_used = made[0].plan
        return latents

    def naively(self, plan: CachePlan, options: list[str]) -> torch.Tensor:
        """The unpatched way with a second implementation of the plan."""
        with ExitStack() as stack:
            if plan.jumps:
                for scheduler in self.schedulers:
                    stack.enter_context(_only(scheduler, plan.solver_steps))
                    stack.enter_context(weighing(scheduler, plan))
                return self.run(options)

            def before() -> None:
                high = sum(int(1000 * level) >= 1000 * self.boundary for level in plan.sigmas)
                lists = {name: name for name in self.lists}
                for model, first in zip(self.models, (0, high), strict=False):
                    stack.enter_context(naive(plan, model, lists, self.branches, first))

            with mock.patch.object(self, "before_loop", before):
                return self.run(options)

    before_loop: Callable[[], None] = staticmethod(lambda: None)  # the models are built


class TinyWan(TinyRun):
    """generate.py of Wan2.1."""

    name, family, lists, branches = "Wan2.1", "wan2.1", ("blocks",), 2
    tasks: ClassVar = {
        "t2v": ["--task", "t2v-14B"],
        "t2v, dpm++": ["--task", "t2v-14B", "--sample_solver", "dpm++"],
        "t2i": ["--task", "t2i-14B"],
        "i2v": ["--task", "i2v-14B", "--frame_num", "81", "--image", PICTURE],
        "flf2v": [
            *("--task", "flf2v-14B", "--frame_num", "81"),
            *("--first_frame", PICTURE, "--last_frame", PICTURE),
        ],
        "vace": ["--task", "vace-14B"],
    }
    _classes: ClassVar = {"WanT2V": "t2v", "WanI2V": "i2v", "WanFLF2V": "flf2v", "WanVace": "vace"}
    _savers: tuple[str, ...] = ("cache_video", "cache_image")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.wan = importlib.import_module("wan")
        self.generate = importlib.import_module("generate")
        self.wan.modules.model.flash_attention = self.attention()
        for name, kind in self._classes.items():
            if hasattr(self.wan, name):
                self._stand_in(getattr(self.wan, name), kind)
        configs = self.generate
        configs.SIZE_CONFIGS["832*480"] = (64, 32)
        configs.MAX_AREA_CONFIGS["832*480"] = 64 * 32
        configs.SUPPORTED_SIZES.update(dict.fromkeys(configs.SUPPORTED_SIZES, ("832*480",)))

    @property
    def schedulers(self) -> list[type]:
        module = sys.modules["wan.text2video"]
        return [module.FlowUniPCMultistepScheduler, module.FlowDPMSolverMultistepScheduler]

    def shift(self, options: list[str]) -> dict[str, float]:
        return {"shift": float(self._args(options).sample_shift)}

    def command(self, options: list[str]) -> torch.Tensor:
        saved: list[torch.Tensor] = []
        keep = mock.Mock(side_effect=lambda tensor, **more: saved.append(tensor))
        with mock.patch.multiple(self.generate, **dict.fromkeys(self._savers, keep)):
            self.generate.generate(self._args(options))
        return saved[0]

    def _args(self, options: list[str]) -> argparse.Namespace:
        frames = [] if "--frame_num" in options or "t2i-14B" in options else ["--frame_num", "5"]
        fixed_options = ["--ckpt_dir", ".", "--size", "832*480", "--prompt", "a lamp", *frames]
        fixed_options += ["--base_seed", "7", "--sample_steps", str(STEPS)]
        fixed_options += ["--offload_model", "False"]
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
            run.add_models(self, kind)

        pipeline.__init__ = build
        if kind == "vace":
            video = [fixed(3, 5, 32, 64, seed=4)]
            pipeline.prepare_source = lambda self, *given: (
                video,
                [torch.ones(3, 5, 32, 64)],
                [None],
            )

    def add_models(self, pipeline: Any, kind: str) -> None:
        """Give a pipeline its models."""
        pipeline.model = self.tiny_model(kind)
        self.models = [pipeline.model]
        self.before_loop()

    def tiny_model(self, kind: str, seed: int = 5) -> nn.Module:
        """Weights from a seed."""
        torch.manual_seed(seed)
        sizes = {"dim": 24, "ffn_dim": 32, "freq_dim": 32, "num_heads": 2, "num_layers": 6}
        sizes |= {"text_dim": TEXT_WIDTH, "text_len": TEXT_TOKENS}
        if kind == "vace":
            model = self.wan.modules.VaceWanModel(vace_in_dim=96, in_dim=16, out_dim=16, **sizes)
        else:
            channels = self.vae.model.z_dim
            given = {"t2v": channels, "ti2v": channels}.get(kind, 36)
            model = self.wan.modules.WanModel(
                model_type=kind, in_dim=given, out_dim=channels, **sizes
            )
        for parameter in model.parameters():  # the head starts at 0
            nn.init.normal_(parameter, std=0.1)
        return model.eval().requires_grad_(False)


class TinyWan22(TinyWan):
    """generate.py of Wan2.2: two models that take turns, or the one of 5B."""

    name, _savers = "Wan2.2", ("save_video",)
    tasks: ClassVar = {
        "t2v": ["--task", "t2v-A14B"],
        "t2v, dpm++": ["--task", "t2v-A14B", "--sample_solver", "dpm++"],
        "i2v": ["--task", "i2v-A14B", "--image", PICTURE],
        "ti2v": ["--task", "ti2v-5B"],
        "ti2v, image": ["--task", "ti2v-5B", "--image", PICTURE],
    }
    refused: ClassVar = {
        "s2v": ["--task", "s2v-14B", "--image", PICTURE, "--audio", "voice.wav"],
        "animate": ["--task", "animate-14B", "--src_root_path", "."],
    }
    unrecorded = ("t2v", "t2v, dpm++", "i2v", "ti2v, image")
    _classes: ClassVar = {"WanT2V": "t2v", "WanI2V": "i2v", "WanTI2V": "ti2v"}

    def add_models(self, pipeline: Any, kind: str) -> None:
        self.vae.model.z_dim, self.vae.stride = (48, 16) if kind == "ti2v" else (16, 8)
        pipeline.vae_stride = (4, self.vae.stride, self.vae.stride)
        pipeline.init_on_cpu = True
        if kind == "ti2v":
            super().add_models(pipeline, kind)
            return
        self.boundary = pipeline.boundary = pipeline.config.boundary
        self.models = [self.tiny_model(kind), self.tiny_model(kind, seed=6)]
        pipeline.high_noise_model, pipeline.low_noise_model = self.models
        self.before_loop()


class TinyHunyuan(TinyRun):
    """sample_video.py of HunyuanVideo."""

    name, family, branches = "HunyuanVideo", "hunyuan-video", 1
    script_name = "sample_video"
    lists = ("double_blocks", "single_blocks")
    tasks: ClassVar = {
        "embedded guidance": ["--flow-reverse", "--embedded-cfg-scale", "6.0"],
        "rising levels": ["--embedded-cfg-scale", "6.0"],
        "batched guidance": ["--flow-reverse", "--cfg-scale", "3.0"],
    }
    unrecorded = ("rising levels",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        hollow("hyvideo.vae", load_vae=None)
        hollow("hyvideo.vae.autoencoder_kl_causal_3d", AutoencoderKLCausal3D=type("Vae", (), {}))
        hollow("hyvideo.text_encoder", TextEncoder=type("TextEncoder", (), {}))
        self.script = importlib.import_module(self.script_name)
        self.inference = importlib.import_module("hyvideo.inference")
        models = importlib.import_module("hyvideo.modules.models")
        counted = self.attention()
        models.attention = lambda q, k, v, **more: counted(q, k, v).flatten(2)
        models.get_cu_seqlens = lambda mask, length: torch.zeros(
            2 * len(mask) + 1, dtype=torch.int32
        )
        self._build = models.HYVideoDiffusionTransformer
        sampler = self.inference.HunyuanVideoSampler
        sampler.from_pretrained = classmethod(lambda cls, path, args: self._sampler(cls, args))
        self.inference.HunyuanVideoPipeline.encode_prompt = encode_prompt

    @property
    def schedulers(self) -> list[type]:
        return [self.inference.FlowMatchDiscreteScheduler]

    def command(self, options: list[str]) -> torch.Tensor:
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
            in_channels=self.channels(args),
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
        self.models = [model.eval().requires_grad_(False)]
        self.before_loop()
        parallel = {"ulysses_degree": 1, "ring_degree": 1}
        text = HunyuanText()
        return cls(
            args, HunyuanVae(self.vae), {}, text, model, text, device="cpu", parallel_args=parallel
        )

    def channels(self, args: argparse.Namespace) -> int:
        """Of the model's input."""
        return 16


class TinyHunyuanI2V(TinyHunyuan):
    """sample_image2video.py of HunyuanVideo-I2V."""

    name, script_name = "HunyuanVideo-I2V", "sample_image2video"
    _image: ClassVar = ["--flow-reverse", "--i2v-mode", "--i2v-image-path", PICTURE]
    tasks: ClassVar = {
        "token_replace": [*_image, "--embedded-cfg-scale", "6.0", "--i2v-stability"],
        "latent_concat": [
            *_image,
            *("--embedded-cfg-scale", "6.0", "--i2v-condition-type", "latent_concat"),
        ],
        "batched guidance": [*_image, "--cfg-scale", "3.0"],
        "from text": TinyHunyuan.tasks["embedded guidance"],
    }
    unrecorded = ("token_replace", "batched guidance")

    def __init__(self, folder: Path) -> None:
        hollow("torch.utils.tensorboard", SummaryWriter=None)
        super().__init__(folder)
        self.inference.get_closest_ratio = lambda *given: ((32, 64), 0.5)

    def channels(self, args: argparse.Namespace) -> int:
        return 33 if args.i2v_mode and args.i2v_condition_type == "latent_concat" else 16


def _bytes_held() -> int:
    """Bytes of all caches that there are."""
    return sum(one.bytes_held for one in gc.get_objects() if isinstance(one, DeltaCache))


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

"""Both trees' pipelines on their miniatures, behind one face.

Videos are (3, F, H, W) in [-1, 1] on the CPU, noise is drawn on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import benchmarks.lib  # noqa: F401  (puts the trees on the path)
import hyvideo.checks
import hyvideo.pipeline
import hyvideo.sigmas
import hyvideo.video
import wan.checks
import wan.model
import wan.sigmas
import wan.text2video
import wan.video
from hyvideo.config import CONFIGS as HUNYUAN_CONFIGS
from hyvideo.config import HunyuanConfig
from profiling_core.engine.run_stats import RunStats
from profiling_core.parallel.ranks import Ranks
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import available
from profiling_core.profile.profile import Settings
from profiling_core.recording.perturbed_run import PerturbedRun
from profiling_core.recording.recorder import Recorder
from profiling_core.runtime.options import resolve_plan
from wan.configs import WAN_CONFIGS, WanConfig, parse_size

Inputs = tuple[Any, ...]  # what a prompt and a seed become


class Tree(ABC):
    """What the benchmarks of whole clips need of a tree."""

    name: ClassVar[str]
    solvers: ClassVar[tuple[str, ...]]
    prompt: str
    steps: int
    plan_model: str
    guidance: float
    checkpoint: Path
    pipeline: wan.text2video.WanT2V | hyvideo.pipeline.HunyuanVideo

    @property
    def presets(self) -> list[str]:
        return available(self.plan_model)

    @property
    def last_run(self) -> RunStats:
        return self.pipeline.last_run

    def plan(self, value: str | None) -> CachePlan | None:
        """The plan that `--delta_cache value` takes."""
        return resolve_plan(value, self.plan_model)

    def recorder(self, settings: Settings | None = None) -> Recorder:
        """A recorder of a run with the model's own settings."""
        return Recorder(settings=settings, **self._sampling(), **self._model())

    def _model(self) -> dict[str, Any]:
        planned = MODELS[self.plan_model]
        return {"model": planned.fingerprint, "branches": planned.family.branches}

    @abstractmethod
    def _sampling(self) -> dict[str, Any]:
        """steps, sigmas, solver and shift, as a recorder takes them."""

    @abstractmethod
    def inputs(self, prompt: str, seed: int) -> Inputs:
        """The encoded prompt and the noise."""

    @abstractmethod
    def denoise(
        self,
        inputs: Inputs,
        plan: CachePlan | None = None,
        *,
        steps: int | None = None,
        solver: str | None = None,
        recorder: Recorder | PerturbedRun | None = None,
        progress: bool = False,
    ) -> Tensor:
        """A latent, with the model's own settings where none are given."""

    @abstractmethod
    def encode_video(self, video: Tensor) -> Tensor:
        """The latent (C, F, H, W) of a clip, as the model sees it."""

    @abstractmethod
    def predict(self, latent: Tensor, sigma: float, prompt: str) -> Tensor:
        """One model call on a latent (C, F, H, W) of this noise level; of the prompt alone."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """The clip of a latent."""

    @abstractmethod
    def save(self, video: Tensor, path: Path) -> None:
        """Write the clip as the tree's command line does."""


class WanTree(Tree):
    name = "wan"
    solvers = ("unipc", "dpm++")

    def __init__(
        self,
        device: torch.device,
        config: WanConfig | None = None,
        *,
        fp32: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.config = config or WAN_CONFIGS["t2v-mini"]
        folder = self.config.ckpt_dir
        self.pipeline = wan.text2video.WanT2V(self.config, folder, device, fp32=fp32, ranks=ranks)
        self.prompt, self.steps = self.config.example_prompt, self.config.sample_steps
        self.checkpoint = self.config.ckpt_dir
        self.plan_model, self.guidance = self.config.plan_model, self.config.sample_guide_scale

    def _sampling(self) -> dict[str, Any]:
        solver, shift = self.solvers[0], self.config.sample_shift
        sigmas = wan.sigmas.sigmas_fp32(solver, self.steps, shift)
        return {"steps": self.steps, "sigmas": sigmas, "solver": solver, "shift": shift}

    def inputs(self, prompt: str, seed: int) -> Inputs:
        config = self.config
        context, context_null = self.pipeline.encode([prompt, config.sample_neg_prompt])
        shape = config.latent_shape(parse_size(config.default_size), config.frame_num)
        generator = torch.Generator().manual_seed(seed)
        return context, context_null, torch.randn(shape, generator=generator)

    def denoise(
        self,
        inputs: Inputs,
        plan: CachePlan | None = None,
        *,
        steps: int | None = None,
        solver: str | None = None,
        recorder: Recorder | PerturbedRun | None = None,
        progress: bool = False,
    ) -> Tensor:
        if plan is not None:
            shift, count = self.config.sample_shift, steps or self.steps
            plan = wan.checks.plan_for_run(plan, solver or self.solvers[0], count, shift)
        return self.pipeline.denoise(
            *inputs,
            shift=self.config.sample_shift,
            sample_solver=solver or self.solvers[0],
            sampling_steps=steps or self.steps,
            guide_scale=self.config.sample_guide_scale,
            plan=plan,
            recorder=recorder,
            progress=progress,
        )

    def encode_video(self, video: Tensor) -> Tensor:
        return self.pipeline.vae.encode(video.to(self.pipeline.device)).cpu()

    @torch.no_grad()
    def predict(self, latent: Tensor, sigma: float, prompt: str) -> Tensor:
        pipeline, device = self.pipeline, self.pipeline.device
        t, tokens = torch.tensor([1000 * sigma], device=device), self.config.tokens(latent.shape)
        with pipeline.autocast():
            return pipeline.model([latent.to(device)], t, pipeline.encode([prompt]), tokens)[0]

    def decode(self, latent: Tensor) -> Tensor:
        return self.pipeline.decode(latent).cpu()

    def save(self, video: Tensor, path: Path) -> None:
        wan.video.save_video(video, path, self.config.sample_fps)


class HunyuanTree(Tree):
    name = "hunyuan"
    solvers = ("euler",)
    prompt = "blue star moving left over red checks"

    def __init__(
        self,
        device: torch.device,
        config: HunyuanConfig | None = None,
        *,
        fp32: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.config = config or HUNYUAN_CONFIGS["HYVideo-mini"]
        folder = self.config.model_base
        self.pipeline = hyvideo.pipeline.HunyuanVideo(
            self.config, folder, device, fp32=fp32, ranks=ranks
        )
        self.steps, self.plan_model = self.config.infer_steps, self.config.plan_model
        self.guidance, self.checkpoint = self.config.embedded_cfg_scale, self.config.model_base

    def _sampling(self) -> dict[str, Any]:
        solver, shift = self.solvers[0], self.config.flow_shift
        sigmas = hyvideo.sigmas.sigmas_fp32(self.steps, shift)
        return {"steps": self.steps, "sigmas": sigmas, "solver": solver, "shift": shift}

    def inputs(self, prompt: str, seed: int) -> Inputs:
        config = self.config
        conditioning = self.pipeline.encode(prompt, video_length=config.video_length)
        shape = config.latent_shape(config.video_size, config.video_length)
        return conditioning, self.pipeline.noise(shape, seed, "cpu")

    def denoise(
        self,
        inputs: Inputs,
        plan: CachePlan | None = None,
        *,
        steps: int | None = None,
        solver: str | None = None,
        recorder: Recorder | PerturbedRun | None = None,
        progress: bool = False,
    ) -> Tensor:
        if solver not in (None, *self.solvers):
            raise ValueError(f"HunyuanVideo has the solver {self.solvers[0]} alone, not {solver}")
        if plan is not None:
            shift = self.config.flow_shift
            plan = hyvideo.checks.plan_for_run(plan, steps or self.steps, shift)
        return self.pipeline.denoise(
            *inputs, infer_steps=steps, plan=plan, recorder=recorder, progress=progress
        )

    def encode_video(self, video: Tensor) -> Tensor:
        return self.pipeline.vae.encode((video + 1) / 2).cpu()

    @torch.no_grad()
    def predict(self, latent: Tensor, sigma: float, prompt: str) -> Tensor:
        pipeline = self.pipeline
        conditioning = pipeline.encode(prompt, video_length=self.config.video_length)
        x, t = latent[None].to(pipeline.device), torch.tensor([1000 * sigma])
        with pipeline.autocast():
            fixed = pipeline.fixed_inputs(conditioning, x, self.guidance)
            return pipeline.model(x=x, t=t.to(pipeline.device), **fixed)["x"][0]

    def decode(self, latent: Tensor) -> Tensor:
        return self.pipeline.decode(latent) * 2 - 1

    def save(self, video: Tensor, path: Path) -> None:
        hyvideo.video.save_video((video + 1) / 2, path, self.config.sample_fps)


BUILD: dict[str, type[WanTree] | type[HunyuanTree]] = {
    tree.name: tree for tree in (WanTree, HunyuanTree)
}


def to_frames(video: Tensor) -> np.ndarray:
    """A clip as uint8 (F, H, W, 3)."""
    return wan.video.to_frames(video)

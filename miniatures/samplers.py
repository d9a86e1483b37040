"""Samples clips of a miniature through its tree, several in one batch."""

import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from miniatures import clips, flow
from miniatures.autoencoder import to_frames

ROOT = Path(__file__).parents[1]
for tree in ("Wan2.1", "HunyuanVideo"):  # their folder names are no Python package names
    sys.path.insert(0, str(ROOT / tree))

Job = tuple[str, int]  # prompt, seed


class Sampler(Protocol):
    """A loaded miniature."""

    def sample(
        self, jobs: list[Job], steps: int, shift: float | None, guidance: float | None
    ) -> list[np.ndarray]:
        """Frames (T, H, W, 3) uint8 of every job; absent values are the miniature's own."""

    def reconstruct(self, video: Tensor) -> Tensor:
        """A video (3, T, H, W) in -1..1 through the VAE and back."""


class WanSampler:
    """A Wan miniature with UniPC; one that begins with a picture gets `clips.first_frame`."""

    def __init__(self, folder: Path | None = None, task: str = "t2v-mini") -> None:
        import wan.model
        from wan.configs import WAN_CONFIGS
        from wan.vace import PIPELINES

        self.config = WAN_CONFIGS[task]
        kind = PIPELINES[self.config.model_type]
        self.pipeline = kind(self.config, folder or self.config.ckpt_dir)
        if self.pipeline.device.type == "cpu":
            wan.model.attention = flow.plain_attention  # SDPA is slow on a CPU; same values

    @torch.no_grad()
    def sample(
        self, jobs: list[Job], steps: int, shift: float | None, guidance: float | None
    ) -> list[np.ndarray]:
        from wan.model import bf16_autocast
        from wan.scheduler import build_scheduler

        pipeline, config = self.pipeline, self.config
        guidance = config.sample_guide_scale if guidance is None else guidance
        shift = config.sample_shift if shift is None else shift
        shape = config.latent_shape((clips.SIZE, clips.SIZE), clips.FRAMES)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for _, s in jobs]
        context = pipeline.encode([prompt for prompt, _ in jobs])
        context += pipeline.encode([config.sample_neg_prompt]) * len(jobs)
        scheduler = build_scheduler("unipc", steps, shift, pipeline.device)
        latent = torch.stack(noise).to(pipeline.device)
        shared = {"seq_len": config.tokens(shape), **self._condition(jobs)}
        for t in tqdm(scheduler.timesteps, mininterval=10, disable=None):
            with bf16_autocast(pipeline.device, pipeline.torch_dtype):
                timesteps = t.repeat(2 * len(jobs))
                both = pipeline.model([*latent, *latent], timesteps, context, **shared)
            cond, uncond = torch.stack(both).chunk(2)
            velocity = uncond + guidance * (cond - uncond)
            latent = scheduler.step(velocity, t, latent, return_dict=False)[0]
        return [to_frames(pipeline.decode(one)) for one in latent]

    def _condition(self, jobs: list[Job]) -> dict[str, Any]:
        """What the model gets beside the text, for both guidance branches."""
        if not self.config.pictures:
            return {}
        pictures = [Image.fromarray(clips.first_frame(prompt)) for prompt, _ in jobs]
        size = (clips.SIZE, clips.SIZE)
        found = [self.pipeline.encode_pictures([p], size, clips.FRAMES) for p in pictures]
        features = torch.cat([one["clip_fea"] for one in found])
        return {"clip_fea": features.repeat(2, 1, 1), "y": [one["y"][0] for one in found] * 2}

    def reconstruct(self, video: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode(vae.encode(video.to(self.pipeline.device))).cpu()


class HunyuanSampler:
    """The HunyuanVideo miniature with its Euler solver and embedded guidance."""

    def __init__(self, folder: Path | None = None) -> None:
        import hyvideo.layers
        from hyvideo.config import CONFIGS
        from hyvideo.pipeline import HunyuanVideo

        self.config = CONFIGS["HYVideo-mini"]
        self.pipeline = HunyuanVideo(self.config, folder or self.config.model_base)
        if self.pipeline.device.type == "cpu":
            hyvideo.layers.attention = flow.plain_attention

    @torch.no_grad()
    def sample(
        self, jobs: list[Job], steps: int, shift: float | None, guidance: float | None
    ) -> list[np.ndarray]:
        from hyvideo.pipeline import Conditioning

        pipeline, config = self.pipeline, self.config
        shape = config.latent_shape(config.video_size, config.video_length)
        single = [pipeline.encode(p, video_length=config.video_length) for p, _ in jobs]
        conditioning = Conditioning(
            *(
                torch.cat([getattr(c, name) for c in single])
                for name in ("states", "mask", "pooled")
            )
        )
        noise = torch.cat([pipeline.noise(shape, seed, "cpu") for _, seed in jobs])
        latents = pipeline.denoise(
            conditioning,
            noise,
            infer_steps=steps,
            flow_shift=shift,
            embedded_guidance=guidance,
        )
        return [to_frames(2 * pipeline.decode(one[None]) - 1) for one in latents]

    def reconstruct(self, video: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return 2 * vae.decode(vae.encode((video + 1) / 2)).cpu() - 1


SAMPLERS = {"wan": WanSampler, "hunyuan": HunyuanSampler}

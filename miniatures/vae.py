"""Trains the miniature's video autoencoder, and writes it in the official Wan layout."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanDecoder3d,
    WanEncoder3d,
    WanResample,
    patchify,
    unpatchify,
)
from loguru import logger
from torch import Tensor, nn

from miniatures import clips, optim

# Three levels over 2x2 pixel patches: 4x8x8 as the official one, but no full-resolution level.
CONFIG = {
    "base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [True, True],
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
}
KL_WEIGHT = 1e-4
# (share of the training, batch over all processes, frames, size of the square crops)
STAGES = (
    (0.25, 16, 9, 64),
    (0.5, 8, 9, 64),
    (0.75, 4, 17, 64),
    (0.95, 4, 33, 64),
    (1.0, 2, 33, 128),
)


def build(**overrides: object) -> AutoencoderKLWan:
    return AutoencoderKLWan(**CONFIG | overrides)


def to_tensor(frames: np.ndarray) -> Tensor:
    """(..., T, H, W, 3) uint8 to (..., 3, T, H, W) in -1..1."""
    return torch.from_numpy(frames).movedim(-1, -4).float() / 127.5 - 1


def to_frames(video: Tensor) -> np.ndarray:
    """(3, T, H, W) in -1..1 to (T, H, W, 3) uint8."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).cpu().numpy()


# diffusers walks a clip in chunks with caches. A whole clip at once gives the same values with
# fewer, larger operations; only the two temporal resamplings need a word of their own.


def encode(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latent (B, 16, f, h, w) of a video (B, 3, T, H, W)."""
    encoder: WanEncoder3d = vae.encoder
    x = encoder.conv_in(patchify(video, vae.config.patch_size))
    for layer in encoder.down_blocks:
        x = _down(layer, x) if isinstance(layer, WanResample) else layer(x)
    x = encoder.conv_out(F.silu(encoder.norm_out(encoder.mid_block(x))))
    mean, logvar = vae.quant_conv(x).chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def decode(vae: AutoencoderKLWan, latent: Tensor) -> Tensor:
    """Video (B, 3, T, H, W) of a latent, not clamped."""
    decoder: WanDecoder3d = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latent)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsamplers is not None:
            x = _up(block.upsamplers[0], x)
    x = decoder.conv_out(F.silu(decoder.norm_out(x)))
    return unpatchify(x, vae.config.patch_size)


def _down(layer: WanResample, x: Tensor) -> Tensor:
    x = layer(x)  # without a cache: the spatial half
    return torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)


def _up(layer: WanResample, x: Tensor) -> Tensor:
    later = layer.time_conv(x[:, :, 1:])  # (B, 2C, T - 1, H, W)
    b, _, t, h, w = later.shape
    later = later.view(b, 2, -1, t, h, w).movedim(1, 3).reshape(b, -1, 2 * t, h, w)
    return layer(torch.cat([x[:, :, :1], later], dim=2))


def normalised(vae: AutoencoderKLWan, mean: Tensor) -> Tensor:
    """Latent as the transformer sees it."""
    shape = (1, -1, 1, 1, 1)
    m, s = (torch.tensor(v, device=mean.device).view(shape) for v in statistics(vae))
    return (mean - m) / s


def denormalised(vae: AutoencoderKLWan, latent: Tensor) -> Tensor:
    shape = (1, -1, 1, 1, 1)
    m, s = (torch.tensor(v, device=latent.device).view(shape) for v in statistics(vae))
    return latent * s + m


def statistics(vae: AutoencoderKLWan) -> tuple[list[float], list[float]]:
    return vae.config.latents_mean, vae.config.latents_std


class Crops:
    """Random crops of a pool of drawn clips; two of three hold a shape."""

    def __init__(self, pool: list[clips.Clip]) -> None:
        self.pool = pool

    def batch(self, rng: np.random.Generator, count: int, frames: int, size: int) -> Tensor:
        return torch.stack([self._crop(rng, frames, size) for _ in range(count)])

    def _crop(self, rng: np.random.Generator, frames: int, size: int) -> Tensor:
        clip = self.pool[rng.integers(len(self.pool))]
        total, height, width, _ = clip.frames.shape
        t = int(rng.integers(total - frames + 1))
        corner = rng.uniform(0, [width - size, height - size])
        if rng.uniform() < 0.67:
            centre = clip.centres[rng.integers(len(clip.centres)), t + frames // 2]
            corner = centre - size / 2 + rng.uniform(-size / 3, size / 3, 2)
        x, y = np.clip(corner, 0, [width - size, height - size]).astype(int)
        return to_tensor(clip.frames[t : t + frames, y : y + size, x : x + size])


def loss(vae: AutoencoderKLWan, video: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """L1 + MSE + KL, and the mean square error alone."""
    with torch.autocast(device, torch.bfloat16):
        mean, logvar = (v.float() for v in encode(vae, video))
        shown = decode(vae, mean + torch.randn_like(mean) * (0.5 * logvar).exp())
    error = shown.float() - video
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    mse = error.square().mean()
    return error.abs().mean() + mse + KL_WEIGHT * kl, mse.detach()


def optimizers(vae: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for p in vae.parameters() if p.ndim >= 4 and min(p.flatten(1).shape) >= 12]
    chosen = set(map(id, matrices))
    others = [p for p in vae.parameters() if id(p) not in chosen]
    return [
        optim.Muon(matrices, lr=1.5e-3),
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    run: Path, seed: int, device: str, minutes: float | None, steps: int | None, pool: int
) -> None:
    """Trains until the clock says so; takes up `run/vae.pt` where it stands."""
    rank, world = optim.start_processes(device)
    torch.manual_seed(seed)
    vae = build().to(device)
    average, opts = optim.Average(vae, 0.999), optimizers(vae)
    clock, step = optim.Clock(minutes, steps), 0
    path = run / "vae.pt"
    if path.exists():
        step = optim.restore(path, vae, average, opts, clock)
    crops = Crops(list(clips.clips(seed + rank, 0, pool)))
    logger.info(f"{sum(p.numel() for p in vae.parameters())} parameters, {pool} clips per process")
    saved = clock.seconds
    while (progress := clock.progress(step)) < 1:
        rng = np.random.default_rng([seed, step, rank])
        torch.manual_seed(int(rng.integers(2**31)))
        _, batch, frames, size = next(s for s in STAGES if progress <= s[0])
        video = crops.batch(rng, batch // world, frames, size).to(device)
        optim.set_rate(opts, optim.rate(progress, step, warmup=20, flat=0.3))
        value, mse = loss(vae, video, device)
        value.backward()
        optim.average_gradients(vae)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=False)
        average.update(vae)
        step += 1
        if rank == 0 and step % 20 == 0:
            psnr = 10 * torch.log10(4 / mse).item()
            logger.info(
                f"step {step}  {progress:.1%}  {clock.seconds:.0f} s"
                f"  loss {value.item():.4f}  {psnr:.1f} dB"
            )
        if rank == 0 and clock.seconds - saved > 120:
            optim.save(path, optim.snapshot(vae, average, opts, clock, step))
            saved = clock.seconds
    if rank == 0:
        optim.save(path, optim.snapshot(vae, average, opts, clock, step))

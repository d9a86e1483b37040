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
REFINING = (1.0, 4, 33, 64)


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


def loss(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """L1 + MSE + KL of a batch."""
    with torch.autocast(video.device.type, torch.bfloat16):
        mean, logvar = (v.float() for v in encode(vae, video))
        shown = decode(vae, mean + torch.randn_like(mean) * (0.5 * logvar).exp())
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return _distance(shown, video) + KL_WEIGHT * kl


def decoder_loss(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Mean PSNR of a batch (up to scale and sign), the encoder as it is."""
    with torch.autocast(video.device.type, torch.bfloat16):
        with torch.no_grad():
            mean, logvar = (v.float() for v in encode(vae, video))
        shown = decode(vae, mean + torch.randn_like(mean) * (0.5 * logvar).exp())
    return (shown.float() - video).square().mean(dim=(1, 2, 3, 4)).log().mean()


def _distance(shown: Tensor, video: Tensor) -> Tensor:
    error = shown.float() - video
    return error.abs().mean() + error.square().mean()


def optimizers(vae: nn.Module, lr: float = 1.5e-3) -> list[torch.optim.Optimizer]:
    """Muon for the large convolutions, AdamW for all else that is trained."""
    trained = [p for p in vae.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 4 and min(p.flatten(1).shape) >= 12]
    chosen = set(map(id, matrices))
    others = [p for p in trained if id(p) not in chosen]
    return [
        optim.Muon(matrices, lr=lr),
        torch.optim.AdamW(others, lr=4 / 3 * lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    run: Path, seed: int, device: str, minutes: float | None, steps: int | None, pool: int
) -> None:
    """Trains encoder and decoder into `run/vae.pt`."""
    rank, world = optim.start_processes(device)
    torch.manual_seed(seed)
    vae, clock = build().to(device), optim.Clock(minutes, steps)
    crops = Crops(list(clips.clips(seed + rank, 0, pool)))
    logger.info(f"{sum(p.numel() for p in vae.parameters())} parameters, {pool} clips per process")

    def batch_loss(rng: np.random.Generator, progress: float) -> Tensor:
        torch.manual_seed(int(rng.integers(2**31)))
        _, batch, frames, size = next(s for s in STAGES if progress <= s[0])
        return loss(vae, crops.batch(rng, batch // world, frames, size).to(device))

    average, opts = optim.Average(vae, 0.999), optimizers(vae)
    optim.fit(vae, average, opts, batch_loss, run / "vae.pt", seed, clock, warmup=20)


def refine(
    run: Path, seed: int, device: str, minutes: float | None, steps: int | None, pool: int
) -> None:
    """Trains the decoder alone into `run/decoder.pt`: the transformer's latents stay valid."""
    rank, world = optim.start_processes(device)
    vae, clock = trained(run).to(device), optim.Clock(minutes, steps)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    crops = Crops(list(clips.clips(seed + 2 + rank, 0, pool)))

    def batch_loss(rng: np.random.Generator, progress: float) -> Tensor:
        torch.manual_seed(int(rng.integers(2**31)))
        _, batch, frames, size = REFINING
        return decoder_loss(vae, crops.batch(rng, batch // world, frames, size).to(device))

    average, opts = optim.Average(vae, 0.99), optimizers(vae, lr=8e-4)
    path = run / "decoder.pt"
    optim.fit(vae, average, opts, batch_loss, path, seed, clock, warmup=20, flat=0.1)


def trained(run: Path) -> AutoencoderKLWan:
    """The averaged autoencoder of `run`, its decoder refined where that was done."""
    refined = run / "decoder.pt"
    vae = build()
    path = refined if refined.exists() else run / "vae.pt"
    vae.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["average"])
    return vae.eval().requires_grad_(False)

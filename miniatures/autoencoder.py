"""Trains a miniature's video autoencoder; what differs between the trees is an Autoencoder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loguru import logger
from torch import Tensor, nn

from miniatures import clips, optim

KL_WEIGHT = 1e-4


@dataclass(frozen=True)
class Stage:
    """A part of a training: it ends at the share `until` of it."""

    until: float
    batch: int  # over all processes
    frames: int
    size: int  # of the square crops, in pixels


@dataclass(frozen=True)
class Autoencoder:
    """How a tree's autoencoder is made and called, and how its training is staged.

    encode: video (B, 3, T, H, W) in -1..1 to mean and log-variance of the latent (B, 16, f, h, w);
    decode: latent to video, not clamped; read: the autoencoder in a checkpoint folder.
    """

    build: Callable[[], nn.Module]
    encode: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[nn.Module, Tensor], Tensor]
    read: Callable[[Path], nn.Module]
    stages: tuple[Stage, ...]
    refining: Stage


def to_tensor(frames: np.ndarray) -> Tensor:
    """(..., T, H, W, 3) uint8 to (..., 3, T, H, W) in -1..1."""
    return torch.from_numpy(frames).movedim(-1, -4).float() / 127.5 - 1


def to_frames(video: Tensor) -> np.ndarray:
    """(3, T, H, W) in -1..1 to (T, H, W, 3) uint8."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).cpu().numpy()


class Crops:
    """Random crops of a pool of drawn clips; two of three hold a shape."""

    def __init__(self, pool: list[clips.Clip]) -> None:
        self.pool = pool

    def batch(self, rng: np.random.Generator, stage: Stage, count: int) -> Tensor:
        return torch.stack([self._crop(rng, stage.frames, stage.size) for _ in range(count)])

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


def loss(kind: Autoencoder, vae: nn.Module, video: Tensor) -> Tensor:
    """L1 + MSE + KL of a batch."""
    with optim.mixed_precision(video.device):
        mean, logvar = (v.float() for v in kind.encode(vae, video))
        shown = kind.decode(vae, mean + torch.randn_like(mean) * (0.5 * logvar).exp())
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    error = shown.float() - video
    return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl


def decoder_loss(kind: Autoencoder, vae: nn.Module, video: Tensor) -> Tensor:
    """Mean PSNR of a batch (up to scale and sign), the encoder as it is."""
    with optim.mixed_precision(video.device):
        with torch.no_grad():
            mean, logvar = (v.float() for v in kind.encode(vae, video))
        shown = kind.decode(vae, mean + torch.randn_like(mean) * (0.5 * logvar).exp())
    return (shown.float() - video).square().mean(dim=(1, 2, 3, 4)).log().mean()


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
    kind: Autoencoder,
    run: optim.Run,
    pool: int,
    checkpoint: Path | None = None,
) -> None:
    """Trains encoder and decoder into `run/vae.pt`, from the weights of `checkpoint` if given."""
    rank, world = optim.start_processes(run.device)
    torch.manual_seed(run.seed)
    start = kind.build() if checkpoint is None else kind.read(checkpoint)
    vae, clock = start.to(run.device), run.clock()
    crops = Crops(list(clips.clips(run.seed + rank, 0, pool)))
    logger.info(f"{sum(p.numel() for p in vae.parameters())} parameters, {pool} clips per process")

    def batch_loss(rng: np.random.Generator, progress: float) -> Tensor:
        torch.manual_seed(int(rng.integers(2**31)))
        stage = next(s for s in kind.stages if progress <= s.until)
        return loss(kind, vae, crops.batch(rng, stage, stage.batch // world).to(run.device))

    average, opts = optim.Average(vae, 0.999), optimizers(vae)
    path = run.folder / "vae.pt"
    optim.fit(vae, average, opts, batch_loss, path, run.seed, clock, warmup=20)


def refine(
    kind: Autoencoder,
    run: optim.Run,
    pool: int,
    checkpoint: Path,
) -> None:
    """Trains the decoder alone into `run/decoder.pt`: the transformer's latents stay valid.

    Without a trained autoencoder in `run` it goes on from the one in `checkpoint`.
    """
    rank, world = optim.start_processes(run.device)
    start = start_of(kind, run.folder, checkpoint)
    vae, clock = start.to(run.device).requires_grad_(False), run.clock()
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    crops = Crops(list(clips.clips(run.seed + 2 + rank, 0, pool)))

    def batch_loss(rng: np.random.Generator, progress: float) -> Tensor:
        torch.manual_seed(int(rng.integers(2**31)))
        stage = kind.refining
        return decoder_loss(kind, vae, crops.batch(rng, stage, stage.batch // world).to(run.device))

    average, opts = optim.Average(vae, 0.99), optimizers(vae, lr=8e-4)
    path = run.folder / "decoder.pt"
    optim.fit(vae, average, opts, batch_loss, path, run.seed, clock, warmup=20, flat=0.1)


def file_of(run: Path) -> Path | None:
    """The autoencoder's file in `run`, with the refined decoder where there is one."""
    return next((p for p in (run / "decoder.pt", run / "vae.pt") if p.exists()), None)


def start_of(kind: Autoencoder, run: Path, checkpoint: Path) -> nn.Module:
    """The autoencoder of `run`, or the one in `checkpoint` where it holds none."""
    return kind.read(checkpoint) if file_of(run) is None else trained(kind, run)


def trained(kind: Autoencoder, run: Path) -> nn.Module:
    """The averaged autoencoder of `run`, its decoder refined where that was done."""
    vae, path = kind.build(), file_of(run)
    if path is None:
        raise FileNotFoundError(f"{run} holds no trained autoencoder: run the stage vae first")
    vae.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["average"])
    return vae.eval().requires_grad_(False)

"""What trains a miniature's transformer by flow matching, whichever the tree."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from loguru import logger
from torch import Tensor, nn
from torch.special import ndtri

from miniatures import optim

EMPTY_SHARE = 0.1  # prompts replaced by the empty one, or by the official negative prompt
SHIFT = 3.0  # noise levels of the training lean towards those of the sampler
UNIFORM_SHARE = 0.2  # of the noise levels, so that none is rare
FIRST_FRAME = 0.15  # extra loss on the first latent frame, which holds one frame of the clip

Velocities = Callable[..., tuple[Tensor, Tensor]]  # of x0, noise, sigma, prompts, **condition


class Latents:
    """Cached, normalised latents and the prompts of the same clips.

    Raw latents lose `mean` and are divided by `std`, one number per channel or one for all.
    """

    def __init__(
        self, run: Path, name: str, device: str, mean: list[float], std: list[float]
    ) -> None:
        self.values = np.load(run / f"{name}.npy", mmap_mode="r")  # (N, 16, f, h, w) fp16
        self.prompts: list[str] = json.loads((run / f"{name}.json").read_text())
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (mean, std))
        self.device = device

    def __len__(self) -> int:
        return len(self.prompts)

    def at(self, indices: np.ndarray) -> Tensor:
        raw = torch.from_numpy(np.stack([self.values[i] for i in indices])).float()
        return ((raw - self.mean) / self.std).to(self.device)

    def condition(self, indices: np.ndarray) -> dict[str, Tensor]:
        """What the model gets of these clips beside their text."""
        return {}


def statistics(run: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, as the stage `latents` measured them."""
    document = json.loads((run / "statistics.json").read_text())
    return document["latents_mean"], document["latents_std"]


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, key_lens: tuple[int, ...] | Tensor | None = None
) -> Tensor:
    """A tree's attention in plain operations: on a CPU three times faster to train than SDPA.

    key_lens may also be the bias that hides keys, (B, 1, 1, L).
    """
    q, k, values = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))  # (B, heads, L, head_dim)
    scores = ((q * q.shape[-1] ** -0.5) @ k.mT).float()
    if isinstance(key_lens, tuple):
        key_lens = hiding_bias(key_lens, k.shape[2])
    if key_lens is not None:
        scores = scores + key_lens.to(scores.device)
    return (scores.softmax(-1).to(v.dtype) @ values).transpose(1, 2)


def hiding_bias(key_lens: tuple[int, ...], length: int) -> Tensor:
    """(B, 1, 1, length): 0 for each sample's own keys, -inf for its padding."""
    hidden = torch.arange(length) >= torch.tensor(key_lens)[:, None]
    return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None, None]


def noise_levels(count: int, rng: np.random.Generator, first: int, total: int) -> Tensor:
    """Sigmas of samples first..first+count of a batch of `total`, one from each quantile."""
    quantile = (torch.arange(first, first + count) + torch.from_numpy(rng.random(count))) / total
    normal = torch.sigmoid(ndtri(quantile.clamp(1e-4, 1 - 1e-4)))
    uniform = torch.from_numpy(rng.random(count)) < UNIFORM_SHARE
    sigma = torch.where(uniform, quantile, normal)
    return (SHIFT * sigma / (1 + (SHIFT - 1) * sigma)).float()


def noisy_latents(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x0 + sigma (noise - x0), sigma (B,)."""
    return x0 + sigma.view(-1, 1, 1, 1, 1) * (noise - x0)


def loss(predicted: Tensor, velocity: Tensor, first_frame: float = FIRST_FRAME) -> Tensor:
    """Mean square error, with extra weight on the first latent frame."""
    first = F.mse_loss(predicted[:, :, 0], velocity[:, :, 0])
    return F.mse_loss(predicted, velocity) + first_frame * first


def drop(prompt: str, chance: float, negative: str) -> str:
    """The prompt, or in place of it a text that means "anything": mostly the empty one."""
    if chance < 0.8 * EMPTY_SHARE:
        return ""
    return negative if chance < EMPTY_SHARE else prompt


def optimizers(
    model: nn.Module, matrices: list[nn.Parameter], lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all else."""
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        optim.Muon(matrices, lr=lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def splits(run: optim.Run) -> tuple[Latents, Latents]:
    """Training and held-out latents of a run."""
    mean, std = statistics(run.folder)
    train, held_out = (
        Latents(run.folder, name, run.device, mean, std) for name in ("train", "held_out")
    )
    return train, held_out


class Batches:
    """Random clips with noise and noise levels, this process's part of a batch."""

    def __init__(self, data: Latents, batch: int, rank: int, world: int) -> None:
        self.data, self.batch, self.rank, self.each = data, batch, rank, batch // world

    def draw(
        self, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, list[str], dict[str, Tensor]]:
        """x0, noise (b, 16, f, h, w), sigma (b,), prompts, condition."""
        indices = rng.integers(len(self.data), size=self.each)
        x0 = self.data.at(indices)
        generator = torch.Generator(x0.device).manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        sigma = noise_levels(self.each, rng, self.rank * self.each, self.batch).to(x0.device)
        prompts = [self.data.prompts[i] for i in indices]
        return x0, noise, sigma, prompts, self.data.condition(indices)


@torch.no_grad()
def held_out_loss(velocities: Velocities, latents: Latents, count: int = 48) -> float:
    """Velocity error on held-out clips, always with the same noise and levels."""
    rng = np.random.default_rng(12345)
    generator = torch.Generator().manual_seed(12345)
    total = 0.0
    for first in range(0, count, 16):
        indices = np.arange(first, first + 16)
        x0 = latents.at(indices)
        sigma = noise_levels(16, rng, 0, 16).to(x0.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        prompts = latents.prompts[first : first + 16]
        both = velocities(x0, noise, sigma, prompts, **latents.condition(indices))
        total += F.mse_loss(*both).item()
    return total / (count // 16)


def train(
    run: optim.Run,
    model: nn.Module,
    matrices: list[nn.Parameter],
    velocities: Velocities,
    *,
    batch: int,
    lr: float,
    decay: float,
    negative: str,
    data: tuple[Latents, Latents] | None = None,
    first_frame: float = FIRST_FRAME,
    name: str = "dit",
) -> None:
    """Trains a transformer into `dit.pt`, or `name`, of the run.

    velocities(model, x0, noise, sigma, prompts, **condition): predicted and true; decay: of the
    average; data: for training and held out, default the run's.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    clock, (data, check) = run.clock(), data or splits(run)
    average, opts = optim.Average(model, decay), optimizers(model, matrices, lr)
    batches = Batches(data, batch, rank, world)
    logger.info(f"{sum(p.numel() for p in model.parameters())} parameters, {len(data)} clips")

    def batch_loss(rng: np.random.Generator, progress: float) -> Tensor:
        x0, noise, sigma, texts, condition = batches.draw(rng)
        kept = [drop(prompt, rng.random(), negative) for prompt in texts]
        return loss(*velocities(model, x0, noise, sigma, kept, **condition), first_frame)

    def report() -> float:
        return held_out_loss(partial(velocities, average.model), check)

    path = run.folder / f"{name}.pt"
    optim.fit(
        model, average, opts, batch_loss, path, run.seed, clock, warmup=50, flat=0.35, report=report
    )

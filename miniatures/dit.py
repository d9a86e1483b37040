"""Trains the miniature's transformer on cached latents with flow matching."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor, nn
from torch.special import ndtri

from miniatures import optim, text

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "Wan2.1"))  # the tree's folder name is no Python package name

import wan.model  # noqa: E402
from wan.configs import NEGATIVE_PROMPT  # noqa: E402
from wan.model import WanModel  # noqa: E402

CONFIG = {
    "model_type": "t2v",
    "text_len": text.TEXT_LEN,
    "in_dim": 16,
    "dim": 160,
    "ffn_dim": 640,
    "freq_dim": 256,
    "text_dim": 256,
    "out_dim": 16,
    "num_heads": 2,
    "num_layers": 12,
    "eps": 1e-6,
}
TOKENS = 576
EMPTY_SHARE = 0.1  # prompts replaced by the empty one, or by the official negative prompt
SHIFT = 3.0  # noise levels of the training lean towards those of the sampler
UNIFORM_SHARE = 0.2  # of the noise levels, so that none is rare
FIRST_FRAME = 0.15  # extra loss on the first latent frame, which holds one frame of the clip


class Latents:
    """Cached, normalised latents and the encoded prompts of the same clips."""

    def __init__(self, run: Path, name: str, device: str) -> None:
        self.values = np.load(run / f"{name}.npy", mmap_mode="r")  # (N, 16, f, h, w) fp16
        self.prompts: list[str] = json.loads((run / f"{name}.json").read_text())
        statistics = json.loads((run / "statistics.json").read_text())
        shape = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(statistics["latents_mean"]).view(shape)
        self.std = torch.tensor(statistics["latents_std"]).view(shape)
        self.device = device

    def __len__(self) -> int:
        return len(self.prompts)

    def at(self, indices: np.ndarray) -> Tensor:
        raw = torch.from_numpy(np.stack([self.values[i] for i in indices])).float()
        return ((raw - self.mean) / self.std).to(self.device)


class Prompts:
    """Encoded prompts, each encoded once."""

    def __init__(self, seed: int, device: str) -> None:
        self.tokenizer, self.encoder = text.build_tokenizer(), text.build_encoder(seed)
        self.rows: dict[str, Tensor] = {}
        self.device = device

    def __getitem__(self, prompt: str) -> Tensor:
        if prompt not in self.rows:
            rows = text.embed(self.tokenizer, self.encoder, prompt)
            self.rows[prompt] = rows.float().to(self.device)
        return self.rows[prompt]


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, key_lens: tuple[int, ...] | None = None
) -> Tensor:
    """The tree's attention in plain operations: on a CPU three times faster to train than SDPA."""
    q, k, values = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))  # (B, heads, L, head_dim)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    weights = scores.float().softmax(-1).to(v.dtype)
    return (weights @ values).transpose(1, 2)


def noise_levels(count: int, rng: np.random.Generator, first: int, total: int) -> Tensor:
    """Sigmas of samples first..first+count of a batch of `total`, one from each quantile."""
    quantile = (torch.arange(first, first + count) + torch.from_numpy(rng.random(count))) / total
    normal = torch.sigmoid(ndtri(quantile.clamp(1e-4, 1 - 1e-4)))
    uniform = torch.from_numpy(rng.random(count)) < UNIFORM_SHARE
    sigma = torch.where(uniform, quantile, normal)
    return (SHIFT * sigma / (1 + (SHIFT - 1) * sigma)).float()


def velocities(
    model: WanModel, x0: Tensor, noise: Tensor, sigma: Tensor, context: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Predicted and true velocity noise - x0 at x0 + sigma (noise - x0)."""
    velocity = noise - x0
    noisy = x0 + sigma.view(-1, 1, 1, 1, 1) * velocity
    with torch.autocast(x0.device.type, torch.bfloat16):
        predicted = torch.stack(model(list(noisy), 1000 * sigma, context, TOKENS))
    return predicted, velocity


def loss(predicted: Tensor, velocity: Tensor) -> Tensor:
    """Mean square error, with extra weight on the first latent frame."""
    first = F.mse_loss(predicted[:, :, 0], velocity[:, :, 0])
    return F.mse_loss(predicted, velocity) + FIRST_FRAME * first


def drop(prompt: str, chance: float) -> str:
    """The prompt, or in place of it a text that means "anything": mostly the empty one."""
    if chance < 0.8 * EMPTY_SHARE:
        return ""
    return NEGATIVE_PROMPT if chance < EMPTY_SHARE else prompt


def optimizers(model: WanModel, lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        optim.Muon(matrices, lr=lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def held_out_loss(model: WanModel, latents: Latents, prompts: Prompts, count: int = 48) -> float:
    """Velocity error on held-out clips, always with the same noise and levels."""
    rng = np.random.default_rng(12345)
    generator = torch.Generator().manual_seed(12345)
    total = 0.0
    for first in range(0, count, 16):
        x0 = latents.at(np.arange(first, first + 16))
        sigma = noise_levels(16, rng, 0, 16).to(x0.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        context = [prompts[p] for p in latents.prompts[first : first + 16]]
        total += F.mse_loss(*velocities(model, x0, noise, sigma, context)).item()
    return total / (count // 16)


def train(
    run: Path,
    seed: int,
    device: str,
    minutes: float | None,
    steps: int | None,
    batch: int,
    lr: float,
    compiled: bool,
) -> None:
    """Trains the transformer into `run/dit.pt`."""
    rank, world = optim.start_processes(device)
    torch.manual_seed(seed)
    model, clock = WanModel(**CONFIG).to(device), optim.Clock(minutes, steps)
    average, opts = optim.Average(model, 0.999), optimizers(model, lr)
    data, check = Latents(run, "train", device), Latents(run, "held_out", device)
    prompts, each = Prompts(seed, device), batch // world
    if device == "cpu":
        wan.model.attention = plain_attention
    if compiled:
        for block in model.blocks:
            block.compile()
    logger.info(f"{sum(p.numel() for p in model.parameters())} parameters, {len(data)} clips")

    def batch_loss(rng: np.random.Generator, progress: float) -> Tensor:
        indices = rng.integers(len(data), size=each)
        x0 = data.at(indices)
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(x0.shape, generator=generator, device=device)
        sigma = noise_levels(each, rng, rank * each, batch).to(device)
        context = [prompts[drop(data.prompts[i], rng.random())] for i in indices]
        return loss(*velocities(model, x0, noise, sigma, context))

    def report() -> float:
        return held_out_loss(average.model, check, prompts)

    path = run / "dit.pt"
    optim.fit(
        model, average, opts, batch_loss, path, seed, clock, warmup=50, flat=0.35, report=report
    )


def load(run: Path, averaged: bool = True) -> tuple[nn.Module, int]:
    """Model of a training under way and its step."""
    state = torch.load(run / "dit.pt", weights_only=True, map_location="cpu")
    model = WanModel(**CONFIG)
    model.load_state_dict(state["average" if averaged else "model"])
    return model.eval(), state["step"]

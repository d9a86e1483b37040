"""The Wan miniature's transformer, trained on cached latents with flow matching."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from miniatures import flow, optim
from miniatures.wan import text

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "Wan2.1"))  # the tree's folder name is no Python package name

import wan.model  # noqa: E402
from wan.configs import NEGATIVE_PROMPT  # noqa: E402
from wan.model import WanModel  # noqa: E402

FILE = "diffusion_pytorch_model.safetensors"
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


def read(checkpoint: Path) -> WanModel:
    """The transformer of a checkpoint folder, fp32."""
    model = WanModel(**CONFIG)
    weights = load_file(checkpoint / FILE)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model


def train(
    run: optim.Run,
    batch: int,
    compiled: bool,
    lr: float = 1.5e-3,
    checkpoint: Path | None = None,
) -> None:
    """Trains the transformer into `dit.pt`, from the weights of `checkpoint` if given."""
    optim.start_processes(run.device)
    torch.manual_seed(run.seed)
    model = WanModel(**CONFIG) if checkpoint is None else read(checkpoint)
    fit(run, model, batch=batch, compiled=compiled, lr=lr, decay=0.999)


def fit(run: optim.Run, model: WanModel, *, compiled: bool, **settings: Any) -> None:
    """Trains a model; settings: the rest of `flow.train`'s."""
    model.to(run.device)
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    prompts = Prompts(run.seed, run.device)
    if run.device == "cpu":
        wan.model.attention = flow.plain_attention
    if compiled:
        for block in model.blocks:
            block.compile()

    def velocities(
        net: WanModel,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        texts: list[str],
        **condition: Tensor,
    ) -> tuple[Tensor, Tensor]:
        noisy, context = flow.noisy_latents(x0, noise, sigma), [prompts[text] for text in texts]
        with optim.mixed_precision(x0.device):
            clips = net(list(noisy), 1000 * sigma, context, TOKENS, **condition)
        return torch.stack(clips).float(), noise - x0

    flow.train(run, model, matrices, velocities, negative=NEGATIVE_PROMPT, **settings)


def load(path: Path, config: dict[str, Any], averaged: bool = True) -> tuple[nn.Module, int]:
    """Model of a training under way and its step."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    model = WanModel(**config)
    model.load_state_dict(state["average" if averaged else "model"])
    return model.eval(), state["step"]

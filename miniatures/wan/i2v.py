"""The Wan miniature that begins with a picture: t2v-mini's transformer, widened and trained on."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from miniatures import clips, flow, latents, optim
from miniatures.autoencoder import to_tensor
from miniatures.wan import dit  # puts the tree on the path
from wan.clip import ImageEncoder
from wan.configs import CLIP_CHECKPOINT
from wan.image2video import frame_mask
from wan.model import WanModel

CLIP = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,  # of which one runs
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
LEFT_OUT = (6, 7)  # of t2v-mini's blocks, for a smaller file: the pair it misses least
CONFIG = dit.CONFIG | {
    "model_type": "i2v",
    "in_dim": 36,
    "num_layers": 10,
    "image_dim": CLIP["hidden_size"],
    "image_tokens": (CLIP["image_size"] // CLIP["patch_size"]) ** 2 + 1,
}
FIRST_FRAME = 0.3  # extra loss on the latent frame that is given


def widened(t2v: WanModel, seed: int) -> WanModel:
    """A t2v model with the image branch, and without LEFT_OUT, that predicts the same.

    Its weights for the picture's channels are zero, and so are those of the picture's values.
    """
    torch.manual_seed(seed)
    kept = [block for i, block in enumerate(t2v.blocks) if i not in LEFT_OUT]
    model, t2v.blocks = WanModel(**CONFIG), nn.ModuleList(kept)
    state, channels = t2v.state_dict(), t2v.in_dim
    for name, tensor in model.state_dict().items():
        if name == "patch_embedding.weight":
            tensor.zero_()[:, :channels] = state[name]
        elif name in state:
            tensor.copy_(state[name])
        elif ".v_img." in name:
            tensor.zero_()
    return model


def clip_weights(seed: int) -> dict[str, Tensor]:
    """A fixed image encoder under official names, fp16: random, as it is never trained."""
    rng = torch.Generator().manual_seed(seed)
    width, inner, side = CLIP["hidden_size"], CLIP["intermediate_size"], CLIP["patch_size"]

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=rng)

    state = {
        "cls_embedding": random(1, 1, width),
        "pos_embedding": random(1, CONFIG["image_tokens"], width),
        "patch_embedding.weight": random(width, 3, side, side) / side,
    }
    norms = ["pre_norm", "post_norm"]
    for i in range(CLIP["num_hidden_layers"]):
        block = f"transformer.{i}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        for name, rows, columns in (
            ("attn.to_qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.0", inner, width),
            ("mlp.2", width, inner),
        ):
            state[f"{block}.{name}.weight"] = random(rows, columns) / columns**0.5
            state[f"{block}.{name}.bias"] = torch.zeros(rows)
    for norm in norms:
        state |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    return {f"visual.{name}": tensor.half() for name, tensor in state.items()}


def write_clip(folder: Path, seed: int) -> Path:
    """The image encoder's file, and its sizes beside it."""
    path = folder / CLIP_CHECKPOINT
    torch.save(clip_weights(seed), path)
    path.with_suffix(".json").write_text(json.dumps(CLIP, indent=2) + "\n")
    return path


class Pictures(flow.Latents):
    """Latents of clips, and what the model gets of their first frames."""

    def __init__(self, run: optim.Run, name: str, checkpoint: Path) -> None:
        statistics = json.loads((checkpoint / "Wan2.1_VAE.json").read_text())
        mean, std = statistics["latents_mean"], statistics["latents_std"]
        super().__init__(run.folder, name, run.device, mean, std)
        self.pictures = flow.Latents(run.folder, name + latents.PICTURES, run.device, mean, std)
        self.features = _features(run, name, len(self)).to(run.device)
        self.mask = frame_mask(clips.FRAMES, (0,), *self.values.shape[3:]).to(run.device)

    def condition(self, indices: np.ndarray) -> dict[str, Tensor]:
        picture = self.pictures.at(indices)
        mask = self.mask.expand(len(indices), -1, -1, -1, -1)
        return {"clip_fea": self.features[indices], "y": torch.cat((mask, picture), dim=1)}


def _features(run: optim.Run, name: str, count: int) -> Tensor:
    """The image encoder's features of the first frames, (count, tokens, width); kept in a file."""
    path = run.folder / f"{name}_features.safetensors"
    if not path.exists():
        encoder = ImageEncoder(write_clip(run.folder, run.seed), torch.float32)
        held_out = name == "held_out"
        frames = (clips.clip(run.seed, i, held_out).frames[:1] for i in range(count))
        rows = [encoder([to_tensor(frame)[:, 0]]) for frame in frames]
        save_file({"features": torch.cat(rows)}, path)
    return load_file(path)["features"]


def train(run: optim.Run, batch: int, compiled: bool, checkpoint: Path, lr: float = 1e-3) -> None:
    """Trains the transformer into `i2v.pt`, from the t2v weights in `checkpoint`."""
    optim.start_processes(run.device)
    data = tuple(Pictures(run, name, checkpoint) for name in ("train", "held_out"))
    settings = {"data": data, "first_frame": FIRST_FRAME, "name": "i2v", "decay": 0.995}
    model = widened(dit.read(checkpoint), run.seed)
    dit.fit(run, model, compiled=compiled, batch=batch, lr=lr, **settings)

"""The CLIP image encoder: the visual half of the official weight file, transformers' model."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from profiling_core.errors import InputError
from profiling_core.files import first_line
from profiling_core.runtime.checkpoint_files import check_counts, read_json
from profiling_core.runtime.state_dicts import assign, read_weights

OFFICIAL_SIZES = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
FIXED = {"hidden_act": "gelu", "layer_norm_eps": 1e-5}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# official names behind `visual.` -> transformers' names; blocks by what stands behind their number
NAMES = {
    "cls_embedding": "embeddings.class_embedding",
    "pos_embedding": "embeddings.position_embedding.weight",
    "patch_embedding": "embeddings.patch_embedding",
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
}
BLOCK_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def convert_names(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The visual half with CLIPVisionModel's names, its blocks below `layers` alone.

    Names that are not official stay; the text half and the projection are left out.
    """
    converted = {}
    for name, tensor in state.items():
        if name.startswith("textual.") or name in ("log_scale", "visual.head"):
            continue
        block = re.fullmatch(r"visual\.transformer\.(\d+)\.(.+)\.(weight|bias)", name)
        if block and int(block[1]) >= layers:
            continue
        if block and block[2] == "attn.to_qkv":
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                own = f"encoder.layers.{block[1]}.self_attn.{part}_proj.{block[3]}"
                converted[own] = rows
        elif block and block[2] in BLOCK_NAMES:
            converted[f"encoder.layers.{block[1]}.{BLOCK_NAMES[block[2]]}.{block[3]}"] = tensor
        else:
            stem, kind = re.fullmatch(r"(?:visual\.)?(.+?)(\.weight|\.bias)?", name).groups()
            if stem.endswith("_embedding") and kind is None:  # without the axes of one
                tensor = tensor.reshape([size for size in tensor.shape if size > 1])
            converted[NAMES[stem] + (kind or "") if stem in NAMES else name] = tensor
    return converted


def build_clip(checkpoint: Path) -> CLIPVisionModel:
    """The encoder on the meta device; sizes as in the JSON file beside it, or the official ones.

    The last block is left out: the features are those that the last but one returns.
    """
    sizes = checkpoint.with_suffix(".json")
    given = read_json(sizes) if sizes.exists() else OFFICIAL_SIZES
    check_counts(sizes, given, least=1)
    try:
        config = CLIPVisionConfig(**{**FIXED, **given})
        config.num_hidden_layers -= 1
        with torch.device("meta"):
            return CLIPVisionModel._from_config(config)
    except Exception as error:  # a value of a wrong type fails in as many ways as there are fields
        raise InputError(f"{sizes}: {first_line(error)}") from None


def encoder_bytes(checkpoint: Path) -> int:
    """Of the encoder in fp16; the file also holds a text half, which is not loaded."""
    return 2 * sum(p.numel() for p in build_clip(checkpoint).parameters())


class ImageEncoder:
    """Pictures to the features that the transformer attends to."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        """Load on the CPU; InputError when the weights or the sizes beside them are unusable."""
        self.model = build_clip(checkpoint)
        layers = self.model.config.num_hidden_layers
        state = convert_names(read_weights(checkpoint), layers)
        assign(self.model, {name: t.to(dtype) for name, t in state.items()}, checkpoint)
        embeddings = self.model.embeddings  # its buffer is in no file
        embeddings.position_ids = torch.arange(embeddings.num_positions)[None]

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and width of one picture's features."""
        return self.model.embeddings.num_positions, self.model.config.hidden_size

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)

    @torch.no_grad()
    def __call__(self, pictures: list[Tensor]) -> Tensor:
        """Features (pictures, tokens, width) of pictures (3, H, W) in [-1, 1].

        Each is squeezed into the encoder's square whatever its aspect is, without antialias, as
        officially; transformers' own preprocessing gives other numbers.
        """
        own, side = self.model, self.model.config.image_size
        squares = [
            F.interpolate(
                picture[None].to(own.device), (side, side), mode="bicubic", align_corners=False
            )
            for picture in pictures
        ]
        mean, std = (torch.tensor(x, device=own.device).view(-1, 1, 1) for x in (MEAN, STD))
        values = ((torch.cat(squares) * 0.5 + 0.5) - mean) / std
        return own(pixel_values=values.to(own.dtype)).last_hidden_state

"""HunyuanVideo's official tensor names and shapes, and one prediction of a tiny model."""

import json
from pathlib import Path

import torch

from hunyuan_toys import TINY_DIT
from hyvideo.rope import rope_tables

FACTS = json.loads((Path(__file__).parents[1] / "data" / "hunyuan-video-shapes.json").read_text())


def official_shapes(model: str) -> dict[str, list[int]]:
    facts = FACTS["models"][model]
    blocks = {
        f"{kind}_blocks.{i}.{name}": shape
        for kind in ("double", "single")
        for i in range(facts[f"{kind}_blocks"])
        for name, shape in FACTS[kind].items()
    }
    return {**FACTS["other"], **(FACTS["guidance"] if facts["guidance"] else {}), **blocks}


def write_empty(path: Path, shapes: dict[str, list[int]], key: str | None = "module") -> Path:
    """A real weight file whose tensors have no data: full size, no disk space."""
    state = {
        name: torch.empty(shape, device="meta", dtype=torch.bfloat16)
        for name, shape in shapes.items()
    }
    torch.save(state if key is None else {key: state}, path)
    return path


def predict(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 2, 4, 4, generator=generator)
    states, pooled = torch.randn(1, 3, 32, generator=generator), torch.ones(1, 24)
    cos, sin = rope_tables((2, 2, 2), TINY_DIT["rope_dim_list"])
    with torch.no_grad():
        return model(
            x, torch.tensor([500.0]), states, torch.ones(1, 3), pooled, cos, sin, torch.ones(1)
        )["x"]

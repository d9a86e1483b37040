"""The transformers that calls are measured on: both trees', with fixed random inputs.

Imports the model files alone: torch, NumPy and pydantic are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import prod

import torch
from torch import nn

import benchmarks.lib  # noqa: F401  (puts the trees on the path)
from benchmarks.lib.timing import Subject
from hyvideo.attention import choose_kernel as choose_hunyuan_kernel
from hyvideo.model import GUIDANCE_SCALE, HYVideoDiffusionTransformer
from hyvideo.rope import rope_tables
from profiling_core.plan.model_specs import HUNYUAN, WAN, Clip, Family, PlannedModel
from profiling_core.plan.schema import ModelFingerprint
from wan.attention import choose_kernel as choose_wan_kernel
from wan.model import WanModel

GUIDANCE = 6.0
TIMESTEP = 700
SEED = 1  # of the inputs; weights are drawn from 0


def wan_subject(name: str, model: WanModel, latent: tuple[int, ...], *, autocast: bool) -> Subject:
    """One call of a Wan model: latent (C, F, H, W), all text rows in use."""
    device = model.patch_embedding.weight.device
    kernel = choose_wan_kernel(device, torch.bfloat16, model.dim // model.num_heads)
    tokens, draw = _image_tokens(model, latent), _drawing(device)
    x, text = draw(latent), draw((model.text_len, model.text_dim))
    t = torch.tensor([TIMESTEP], device=device)

    def call() -> object:
        with torch.no_grad(), _region(device, autocast):
            return model([x], t, [text], tokens)

    planned = _planned("wan2.1", WAN, name, model, tokens, latent)
    return Subject(name, model, call, planned, kernel)


def hunyuan_subject(
    name: str,
    model: HYVideoDiffusionTransformer,
    latent: tuple[int, ...],
    text_tokens: int,
    *,
    autocast: bool,
) -> Subject:
    """One call of a HunyuanVideo model: latent (C, F, H, W), embedded guidance, no padded text."""
    weight = model.img_in.proj.weight
    device, draw = weight.device, _drawing(weight.device)
    kernel = choose_hunyuan_kernel(device, torch.bfloat16, model.hidden_size // model.heads_num)
    x = draw((1, *latent))
    guidance = torch.tensor([GUIDANCE], device=device).to(weight.dtype) * GUIDANCE_SCALE
    cos, sin = rope_tables(model.grid_of(x), model.rope_dim_list, device=device)
    inputs = {
        "x": x,
        "t": torch.tensor([float(TIMESTEP)], device=device),
        "text_states": draw((1, text_tokens, model.text_states_dim)),
        "text_mask": torch.ones(1, text_tokens, dtype=torch.int64),
        "text_states_2": draw((1, model.text_states_dim_2)),
        "freqs_cos": cos,
        "freqs_sin": sin,
        "guidance": guidance if model.guidance_embed else None,
    }

    def call() -> object:
        with torch.no_grad(), _region(device, autocast):
            return model(**inputs)

    tokens = _image_tokens(model, latent) + text_tokens
    planned = _planned("hunyuan-video", HUNYUAN, name, model, tokens, latent)
    return Subject(name, model, call, planned, kernel)


def random_model(
    build: Callable[[], nn.Module], dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """A model with small random weights, made on the device itself; none on the meta device."""
    with torch.device("meta"):
        model = build()
    model = model.to(dtype)
    if isinstance(model, HYVideoDiffusionTransformer):
        model.final_layer.linear.float()  # as its checkpoints are loaded
    if device.type == "meta":
        return model
    model = model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=0.02, generator=generator)
    return model


def _planned(
    family: str,
    known: Family,
    name: str,
    model: nn.Module,
    tokens: int,
    latent: tuple[int, ...],
) -> PlannedModel:
    fingerprint = ModelFingerprint(
        family=family,
        name=name,
        block_lists={name: len(getattr(model, name)) for name in known.released},
        width=model.dim if isinstance(model, WanModel) else model.hidden_size,
    )
    size = "x".join(map(str, latent))
    return PlannedModel(known, fingerprint, Clip(f"latent {size}", tokens, prod(latent)))


def _image_tokens(model: nn.Module, latent: tuple[int, ...]) -> int:
    sizes = zip(latent[1:], model.patch_size, strict=True)
    return prod(size // patch for size, patch in sizes)


def _drawing(device: torch.device) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """Draws one tensor after another; the same ones on every device."""
    generator = torch.Generator().manual_seed(SEED)
    return lambda shape: torch.randn(shape, generator=generator).to(device)


def _region(device: torch.device, autocast: bool) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()

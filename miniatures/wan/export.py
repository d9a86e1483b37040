"""Writes the trained parts as a checkpoint folder in the official layout."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from loguru import logger
from safetensors.torch import save_file
from torch import Tensor

from miniatures.autoencoder import file_of, trained
from miniatures.wan import dit, i2v, text, vae

I2V_FOLDER = "Wan2.1-I2V-mini"

# diffusers' names of the VAE's parts -> official ones; {n} stands for a number
RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
}


def write(run: Path, out: Path, seed: int) -> None:
    """Exports what `run` holds, averaged weights; what it does not hold stays as it is in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    if file_of(run) is not None:
        write_vae(run, out)
    write_text_encoder(out, seed)
    if (run / "dit.pt").exists():
        write_transformer(run / "dit.pt", dit.CONFIG, out)
    if (run / "i2v.pt").exists():
        write_image_to_video(run, out.parent / I2V_FOLDER, seed)
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        logger.info(f"{path.stat().st_size:>10} {path.relative_to(out)}")


def write_vae(run: Path, out: Path) -> None:
    """`Wan2.1_VAE.pth` under official names in fp16, and its sizes beside it."""
    model = trained(vae.AUTOENCODER, run)
    state = {official_name(k): v.half() for k, v in model.state_dict().items()}
    back = convert_wan_vae_to_diffusers(dict(state))
    expected = {k: v.shape for k, v in model.state_dict().items()}
    if {k: v.shape for k, v in back.items()} != expected:
        raise ValueError("the official VAE names do not convert back to diffusers' names")
    torch.save(state, out / "Wan2.1_VAE.pth")
    if (run / "statistics.json").exists():  # else they are those of the checkpoint
        statistics = json.loads((run / "statistics.json").read_text())
        write_json(out / "Wan2.1_VAE.json", vae.CONFIG | statistics)


def official_name(name: str) -> str:
    """Official name of a tensor of AutoencoderKLWan (three levels, two residual blocks each)."""
    rules = (
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
        (r"\.conv_in\.", ".conv1."),
        (r"\.norm_out\.", ".head.0."),
        (r"\.conv_out\.", ".head.2."),
        (r"\.mid_block\.attentions\.0\.", ".middle.1."),
        (r"\.mid_block\.resnets\.0\.(\w+)\.", lambda m: f".middle.0.{RESIDUAL[m[1]]}."),
        (r"\.mid_block\.resnets\.1\.(\w+)\.", lambda m: f".middle.2.{RESIDUAL[m[1]]}."),
        (r"\.down_blocks\.(\d+)\.conv_shortcut\.", r".downsamples.\1.shortcut."),
        (
            r"\.down_blocks\.(\d+)\.((?:norm|conv)[12])\.",
            lambda m: f".downsamples.{m[1]}.{RESIDUAL[m[2]]}.",
        ),
        (r"\.down_blocks\.(\d+)\.", r".downsamples.\1."),
        (
            r"\.up_blocks\.(\d)\.resnets\.(\d)\.(\w+)\.",
            lambda m: f".upsamples.{4 * int(m[1]) + int(m[2])}.{RESIDUAL[m[3]]}.",
        ),
        (r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".upsamples.{4 * int(m[1]) + 3}."),
    )
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise ValueError(f"no official name for the tensor {name!r}")


def write_text_encoder(out: Path, seed: int) -> None:
    """The fixed encoder in bf16 under official names, its sizes, and the tokenizer's folder."""
    stem = out / "models_t5_umt5-xxl-enc-bf16"
    torch.save(text.official_names(text.build_encoder(seed)), stem.with_suffix(".pth"))
    write_json(stem.with_suffix(".json"), text.config())
    text.save_tokenizer(out / "google" / "umt5-xxl")


def write_image_to_video(run: Path, out: Path, seed: int) -> None:
    """A folder beside t2v-mini's, whose VAE and text encoder it shares."""
    out.mkdir(parents=True, exist_ok=True)
    i2v.write_clip(out, seed)
    write_transformer(run / "i2v.pt", i2v.CONFIG, out)


def write_transformer(trained_file: Path, config: dict[str, Any], out: Path) -> None:
    """`config.json` and the averaged weights in bf16."""
    model, step = dit.load(trained_file, config)
    logger.info(f"transformer of step {step}")
    state: dict[str, Tensor] = {k: v.bfloat16() for k, v in model.state_dict().items()}
    save_file(state, out / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", {"_class_name": "WanModel"} | config)


def write_json(path: Path, document: dict) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")

"""Tiny Wan models and complete checkpoint folders in the official layout, random weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    UMT5Config,
    UMT5EncoderModel,
)

from wan.clip import BLOCK_NAMES as CLIP_BLOCK_NAMES
from wan.clip import FIXED as CLIP_FIXED
from wan.clip import NAMES as CLIP_NAMES
from wan.configs import CLIP_CHECKPOINT
from wan.model import WanModel
from wan.t5 import BLOCK_NAMES, FIXED
from wan.vace_model import VaceWanModel

TINY_DIT = {
    "dim": 48,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 3,
    "text_dim": 32,
    "text_len": 16,
}
TINY_VAE = {"base_dim": 8}
TINY_CLIP = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
TINY_CLIP |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
PICTURES = {"in_dim": 36, "image_dim": 16, "image_tokens": 5}  # of a model with a tiny CLIP
TINY_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
WORDS = "a red green blue circle square moving left right up down over stripes checks noise".split()
TINY_QWEN = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
TINY_QWEN |= {"num_attention_heads": 2, "num_key_value_heads": 1}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OFFICIAL_CONFIG = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "model_type": "t2v",
    "in_dim": 16,
    "out_dim": 16,
    "freq_dim": 256,
    "eps": 1e-06,
}


def randomise(module: nn.Module, seed: int, std: float = 0.1) -> nn.Module:
    """Every parameter drawn anew, so that no zero-initialised layer hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(noise + (1 if parameter.mean() == 1 else 0))  # norms stay near one
    return module.eval()


def tiny_dit(seed: int = 0, **sizes: Any) -> WanModel:
    kind = VaceWanModel if sizes.get("model_type") == "vace" else WanModel
    return randomise(kind(**{**TINY_DIT, **sizes}), seed)


def tiny_vae(seed: int = 1) -> AutoencoderKLWan:
    return randomise(AutoencoderKLWan(**TINY_VAE), seed)


def tiny_t5(seed: int = 2) -> UMT5EncoderModel:
    model = UMT5EncoderModel._from_config(
        UMT5Config(**FIXED, **TINY_T5), attn_implementation="eager"
    )
    return randomise(model, seed, std=0.5).to(torch.bfloat16)


def tiny_clip(seed: int = 3) -> CLIPVisionModel:
    return randomise(CLIPVisionModel(CLIPVisionConfig(**TINY_CLIP, **CLIP_FIXED)), seed)


def official_clip_state(clip: CLIPVisionModel) -> dict[str, Tensor]:
    """The tensors of the official file; of its text half there is a token."""
    state, found = dict(clip.state_dict()), {"log_scale": torch.zeros([])}
    found |= {"textual.head.0.weight": torch.zeros(2), "visual.head": torch.zeros(16, 4)}
    for official, own in CLIP_NAMES.items():
        for kind in ("", ".weight", ".bias"):
            if own + kind in state:
                found[f"visual.{official}{kind}"] = state[own + kind]
    found["visual.cls_embedding"] = found["visual.cls_embedding"][None, None]
    found["visual.pos_embedding"] = state[CLIP_NAMES["pos_embedding"]][None]
    for i in range(len(clip.encoder.layers)):
        own, official = f"encoder.layers.{i}", f"visual.transformer.{i}"
        for kind in ("weight", "bias"):
            for name, theirs in CLIP_BLOCK_NAMES.items():
                found[f"{official}.{name}.{kind}"] = state[f"{own}.{theirs}.{kind}"]
            rows = [state[f"{own}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{official}.attn.to_qkv.{kind}"] = torch.cat(rows)
    return found


def official_vae_name(name: str) -> str:
    """The name in `Wan2.1_VAE.pth` of a tensor of diffusers' module (two blocks per level)."""
    name = re.sub(r"^quant_conv", "conv1", re.sub(r"^post_quant_conv", "conv2", name))
    inner = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3"}
    inner |= {"conv2": "residual.6", "conv_shortcut": "shortcut"}
    block = re.fullmatch(r"(.*blocks?\..*)\.(norm1|conv1|norm2|conv2|conv_shortcut)\.(\w+)", name)
    if block:
        name = f"{block[1]}.{inner[block[2]]}.{block[3]}"
    # one flat list: every level has three blocks and, but the last, a resampling layer
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: _flat(m[1], m[2]), name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: _flat(m[1], "3"), name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}", name)
    name = name.replace("mid_block.attentions.0", "middle.1")
    name = name.replace("down_blocks", "downsamples").replace("norm_out", "head.0")
    return name.replace("conv_out", "head.2").replace(".conv_in.", ".conv1.")


def _flat(level: str, layer: str) -> str:
    return f"upsamples.{4 * int(level) + int(layer)}"


def official_t5_name(name: str) -> str | None:
    """The name in the official T5 file of a tensor of transformers' module; None for the tie."""
    block = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)", name)
    if block:
        inner = {theirs: official for official, theirs in BLOCK_NAMES.items()}
        return f"blocks.{block[1]}.{inner[block[2]]}"
    return {
        "shared.weight": "token_embedding.weight",
        "encoder.final_layer_norm.weight": "norm.weight",
    }.get(name)


def official_vae_state(vae: AutoencoderKLWan) -> dict[str, Tensor]:
    return {official_vae_name(name): tensor for name, tensor in vae.state_dict().items()}


def official_t5_state(t5: UMT5EncoderModel) -> dict[str, Tensor]:
    named = {official_t5_name(name): tensor for name, tensor in t5.state_dict().items()}
    return {name: tensor for name, tensor in named.items() if name}


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer with UMT5's special tokens."""
    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_dit(folder: Path, model: WanModel, shards: int = 1, **config: object) -> None:
    """config.json and the weights, in one file or in shards with their index."""
    sizes = {**OFFICIAL_CONFIG, **TINY_DIT, **config}
    (folder / "config.json").write_text(json.dumps(sizes))
    state = dict(model.state_dict())
    name = "diffusion_pytorch_model"
    if shards == 1:
        save_file(state, folder / f"{name}.safetensors")
        return
    files = [f"{name}-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map = {key: files[i * shards // len(state)] for i, key in enumerate(state)}
    for file in files:
        save_file({k: v for k, v in state.items() if weight_map[k] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))


def write_checkpoint(
    folder: Path, *, seed: int = 0, shards: int = 1, model_type: str = "t2v", **sizes: Any
) -> Path:
    """A complete tiny checkpoint folder; tests change it as they like."""
    folder.mkdir(parents=True, exist_ok=True)
    if model_type == "vace":
        sizes = {"model_type": model_type, "vace_layers": [0, 2], **sizes}
    elif model_type != "t2v":
        sizes |= {"model_type": model_type, **PICTURES}
        torch.save(official_clip_state(tiny_clip(seed + 3)), folder / CLIP_CHECKPOINT)
        (folder / CLIP_CHECKPOINT).with_suffix(".json").write_text(json.dumps(TINY_CLIP))
    write_dit(folder, tiny_dit(seed, **sizes), shards, **sizes)
    torch.save(official_vae_state(tiny_vae(seed + 1)), folder / "Wan2.1_VAE.pth")
    (folder / "Wan2.1_VAE.json").write_text(json.dumps(TINY_VAE))
    t5 = "models_t5_umt5-xxl-enc-bf16"
    torch.save(official_t5_state(tiny_t5(seed + 2)), folder / f"{t5}.pth")
    (folder / f"{t5}.json").write_text(json.dumps(TINY_T5))
    write_tokenizer(folder / "google" / "umt5-xxl")
    return folder


def write_language_model(folder: Path, seed: int = 4) -> Path:
    """A tiny Qwen2 that samples, with a tokenizer of single bytes and Qwen's chat template."""
    signs = {sign: i for i, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE(signs, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    marks = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, additional_special_tokens=["<|im_start|>"], **marks
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(vocab_size=len(tokenizer), bos_token_id=None, **ids, **TINY_QWEN)
    model = randomise(Qwen2ForCausalLM(config), seed)
    model.generation_config.do_sample = True
    model.save_pretrained(folder)
    return folder


def seen_moves(pipeline: Any, patch: pytest.MonkeyPatch, *others: str) -> list[str]:
    """Fills as parts of a pipeline are moved; the device is "cpu:0", the host "cpu".

    Stand-ins for the moves of transformer, text encoder and `others`, which stay where they are.
    """
    seen: list[str] = []
    patch.setattr(pipeline, "_leaves", lambda offload: offload)
    patch.setattr(pipeline, "device", torch.device("cpu", 0))
    for name in ("model", "text_encoder", *others):
        part, said = getattr(pipeline, name), f"{name} {{}}".format
        patch.setattr(part, "to", lambda device, said=said: seen.append(said(device)))
    return seen

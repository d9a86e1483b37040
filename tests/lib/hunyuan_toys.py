"""Tiny HunyuanVideo models and complete checkpoint folders in the official layout, random."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from hyvideo.checkpoint import DIT, MODEL
from hyvideo.config import CONFIGS, TEMPLATES, HunyuanConfig
from hyvideo.fp8 import block_linears
from hyvideo.model import HYVideoDiffusionTransformer
from wan_toys import WORDS, randomise

TINY_DIT = {
    "hidden_size": 48,
    "heads_num": 2,
    "mm_double_blocks_depth": 2,
    "mm_single_blocks_depth": 3,
    "rope_dim_list": (8, 8, 8),
    "text_states_dim": 32,
    "text_states_dim_2": 24,
    "guidance_embed": True,
}
TINY_VAE = {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4, "layers_per_block": 1}
# what the official file says besides sizes, and the sizes that both have
OFFICIAL_VAE = {
    "_class_name": "AutoencoderKLCausal3D",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "down_block_types": ["DownEncoderBlockCausal3D"] * 4,
    "up_block_types": ["UpDecoderBlockCausal3D"] * 4,
    "sample_size": 256,
    "sample_tsize": 64,
    "scaling_factor": 0.476986,
    "time_compression_ratio": 4,
    "mid_block_add_attention": True,
    "mid_block_causal_attn": True,
}
MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "\n\n"]
TINY = replace(
    CONFIGS["HYVideo-mini"],
    model="HYVideo-tiny",
    plan_model="hunyuan-video-tiny",
    transformer=TINY_DIT,
    video_size=(32, 32),
    video_length=5,
    infer_steps=6,
    text_len=12,
)


def tiny_dit(seed: int = 0, **sizes: Any) -> HYVideoDiffusionTransformer:
    return randomise(HYVideoDiffusionTransformer(**{**TINY_DIT, **sizes}), seed)


def tiny_vae(seed: int = 1) -> AutoencoderKLHunyuanVideo:
    return randomise(AutoencoderKLHunyuanVideo(**TINY_VAE), seed)


def tiny_llm(seed: int = 2, **sizes: Any) -> LlamaModel:
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        **{"max_position_embeddings": 256, **sizes},
    )
    return randomise(LlamaModel(config), seed, std=0.3)


def tiny_clip(seed: int = 3) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=256,
        hidden_size=24,
        intermediate_size=32,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return randomise(CLIPTextModel(config), seed, std=0.3)


@lru_cache
def _template_words() -> tuple[str, ...]:
    """Every word and sign of the templates and of the tests' prompts, once."""
    text = " ".join(template.head for template in TEMPLATES.values())
    for mark in MARKS:
        text = text.replace(mark, " ")
    words = [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)]
    return tuple(dict.fromkeys([*words, *WORDS]))


def write_tokenizer(folder: Path) -> None:
    """Word-level, with the official special tokens; the templates' heads have 36 and 95 tokens."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<pad>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *_template_words(), "itions"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(MARKS)
    tokenizer.add_tokens([AddedToken("trans", normalized=False)])  # as Llama cuts some long word
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<pad>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def write_clip_tokenizer(folder: Path) -> None:
    """Word-level; begin and end around the prompt, padded with the end as CLIP's is."""
    special = ["<|startoftext|>", "<|endoftext|>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def write_vae(folder: Path, vae: AutoencoderKLHunyuanVideo, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**OFFICIAL_VAE, **TINY_VAE, **config}))
    state = {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
    torch.save({"state_dict": state}, folder / "pytorch_model.pt")


def write_fp8(file: Path, model: HYVideoDiffusionTransformer) -> dict[str, torch.Tensor]:
    """An 8-bit weight file and its map; returns the weights that a perfect reader gets."""
    state, scales, exact = dict(model.state_dict()), {}, dict(model.state_dict())
    for name, linear in block_linears(model).items():
        scales[name] = linear.weight.detach().abs().max() / 448
        stored = (linear.weight.detach() / scales[name]).to(torch.float8_e4m3fn)
        state[f"{name}.weight"] = stored
        exact[f"{name}.weight"] = stored.float() * scales[name]
    torch.save({"module": state}, file)
    torch.save(scales, file.with_name(f"{file.stem}_map.pt"))
    return exact


def write_checkpoint(root: Path, *, seed: int = 0, dit: dict[str, Any] | None = None) -> Path:
    """A complete tiny checkpoint folder; tests change it as they like."""
    transformers = root / MODEL / "transformers"
    transformers.mkdir(parents=True, exist_ok=True)
    model = tiny_dit(seed, **(dit or {}))
    torch.save({"module": model.state_dict()}, transformers / f"{DIT}.pt")
    write_vae(root / MODEL / "vae", tiny_vae(seed + 1))
    tiny_llm(seed + 2).save_pretrained(root / "text_encoder")
    write_tokenizer(root / "text_encoder")
    tiny_clip(seed + 3).save_pretrained(root / "text_encoder_2")
    write_clip_tokenizer(root / "text_encoder_2")
    return root


def dit_file(root: Path) -> Path:
    return root / MODEL / "transformers" / f"{DIT}.pt"


def tiny_config(**changes: Any) -> HunyuanConfig:
    return replace(TINY, **changes)

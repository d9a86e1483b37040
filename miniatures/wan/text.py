"""The miniature's text encoder: a word-level tokenizer and a small, fixed, seeded UMT5.

The transformer's cross-attention has no positions on text: which colour belongs to which noun must
be in the encoder's rows already. A random encoder would not carry it, so this one is built: every
attention head looks at one fixed offset (four words back to four ahead) and writes what stands
there into the row.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from miniatures.text import PAD, UNKNOWN, prompt_tokenizer, prompt_words

END = "</s>"
OFFSETS = (-4, -3, -2, -1, 1, 2, 3, 4)  # one per attention head
TEXT_LEN = 32
HOLD = 8.0  # attention bias at a head's offset; elsewhere 0


def vocabulary_size() -> int:
    return len(prompt_words()) + 3


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-case words; letters outside a-z and punctuation separate them; articles are dropped."""
    return PreTrainedTokenizerFast(
        tokenizer_object=prompt_tokenizer([PAD, END, UNKNOWN], "<>/", f"$A {END}"),
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=512,
    )


def config() -> dict:
    """Keyword arguments of UMT5Config."""
    return {
        "vocab_size": vocabulary_size(),
        "d_model": 256,
        "d_kv": 32,
        "d_ff": 256,
        "num_layers": 2,
        "num_heads": len(OFFSETS),
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0,
    }


@torch.no_grad()
def build_encoder(seed: int) -> UMT5EncoderModel:
    """The fixed encoder in bf16, the type of the official file."""
    generator = torch.Generator().manual_seed(seed)
    model = UMT5EncoderModel._from_config(
        UMT5Config(**config()), attn_implementation="eager"
    ).eval()
    width = model.config.d_model
    embedding = torch.randn(vocabulary_size(), width, generator=generator)
    orthogonal = torch.linalg.qr(embedding.T).Q.T  # unit rows
    model.shared.weight.copy_(orthogonal * width**0.5)
    for block in model.encoder.block:
        attention, ffn = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        for name, scale in (("q", 0.02), ("k", 0.02), ("v", 1.0), ("o", 0.7)):
            weight = getattr(attention, name).weight
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise * scale / width**0.5)
        _look_at(attention.relative_attention_bias.weight)
        for linear, scale in ((ffn.wi_0, 1.0), (ffn.wi_1, 1.0), (ffn.wo, 0.3)):
            noise = torch.randn(linear.weight.shape, generator=generator)
            linear.weight.copy_(noise * scale / width**0.5)
    model.encoder.embed_tokens.weight = model.shared.weight
    return model.bfloat16().requires_grad_(False)


def _look_at(bias: Tensor) -> None:
    """Each head prefers one offset: buckets 1-7 are that many words back, 17-23 ahead."""
    bias.zero_()
    for head, offset in enumerate(OFFSETS):
        bias[16 + offset if offset > 0 else -offset, head] = HOLD


@torch.no_grad()
def embed(tokenizer: PreTrainedTokenizerFast, model: UMT5EncoderModel, prompt: str) -> Tensor:
    """Rows of one prompt, cut to their true number, as the pipeline makes them: (L, width)."""
    tokens = tokenizer(
        [prompt], padding="max_length", truncation=True, max_length=TEXT_LEN, return_tensors="pt"
    )
    rows = model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
    return rows[0, : tokens.attention_mask.sum()]


def official_names(model: UMT5EncoderModel) -> dict[str, Tensor]:
    """State dict under the names of `models_t5_umt5-xxl-enc-bf16.pth`."""
    state = model.state_dict()
    named = {
        "token_embedding.weight": state["shared.weight"],
        "norm.weight": state["encoder.final_layer_norm.weight"],
    }
    for i in range(model.config.num_layers):
        ours, theirs = f"blocks.{i}.", f"encoder.block.{i}.layer."
        named |= {
            f"{ours}attn.{n}.weight": state[f"{theirs}0.SelfAttention.{n}.weight"] for n in "qkvo"
        }
        named |= {
            f"{ours}norm1.weight": state[f"{theirs}0.layer_norm.weight"],
            f"{ours}norm2.weight": state[f"{theirs}1.layer_norm.weight"],
            f"{ours}pos_embedding.embedding.weight": state[
                f"{theirs}0.SelfAttention.relative_attention_bias.weight"
            ],
            f"{ours}ffn.gate.0.weight": state[f"{theirs}1.DenseReluDense.wi_0.weight"],
            f"{ours}ffn.fc1.weight": state[f"{theirs}1.DenseReluDense.wi_1.weight"],
            f"{ours}ffn.fc2.weight": state[f"{theirs}1.DenseReluDense.wo.weight"],
        }
    return {name: value.clone().contiguous() for name, value in named.items()}


def save_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Writes the tokenizer and reads it back the way the pipeline does."""
    build_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)

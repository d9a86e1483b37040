"""The miniature's text encoders: small, fixed, seeded Llama and CLIP with word-level tokenizers.

The transformer sees no positions on text: which colour belongs to which noun must be in the text
states already. A random Llama would not carry it, so this one is built: its queries and keys are
constant vectors (biases), turned by rope so that every attention head of a layer looks one fixed
number of words back, and writes what stands there into the row.
"""

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from miniatures.text import PAD, UNKNOWN, prompt_tokenizer, prompt_words

HEADS = 4  # of the Llama, each looking one word further back
LOOK_BACK = 12.0  # attention score of a head's own word over that of its neighbours
LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 3,  # the transformer is given what the first one makes
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": 64,
    "attention_bias": True,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10.0},
}
CLIP = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "projection_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
}
BEGIN, HEADER, HEADER_END, TURN_END = (
    f"<|{name}|>" for name in ("begin_of_text", "start_header_id", "end_header_id", "eot_id")
)
CLIP_BEGIN, CLIP_END = "<|startoftext|>", "<|endoftext|>"
# Words, marks and paragraph breaks of the official templates. Llama's own tokenizer takes 95 and
# 36 tokens for what stands before the prompt; with one word in two parts this one does as well.
TOKENS = r"atmo(?=sphere)|\n\n|[a-z]+|[0-9]|[^\sa-z0-9]"


def build_llama_tokenizer(templates: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Lower-case words; the words of `templates` are known, an unknown one is <unk>.

    Articles, digits and marks of a prompt are dropped; a colon ahead marks the template's own
    text.
    """
    special = [PAD, UNKNOWN, BEGIN, HEADER, HEADER_END, TURN_END]
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^a-z\s](?=[^:]*$)(?<!:)"), " "),
            normalizers.Replace(Regex(r"\b(a|an|the)\b(?=[^:]*$)"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKENS), "removed", invert=True)
    known = [*special, *prompt_words()]
    for template in templates:
        for part in template.replace("{}", "").split("<|"):
            text = tokenizer.normalizer.normalize_str(part.partition("|>")[2] or part)
            known += [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    words = {word: i for i, word in enumerate(dict.fromkeys(known))}
    tokenizer.model = models.WordLevel(words, unk_token=UNKNOWN)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, words[BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=TURN_END,
        padding_side="right",
        model_max_length=512,
    )


def build_clip_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-case words between begin and end; articles and marks are dropped."""
    special = [PAD, UNKNOWN, CLIP_BEGIN, CLIP_END]
    tokenizer = prompt_tokenizer(special, "", f"{CLIP_BEGIN} $A {CLIP_END}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=CLIP_BEGIN,
        eos_token=CLIP_END,
        padding_side="right",
        model_max_length=77,
    )


@torch.no_grad()
def build_llama(seed: int, tokenizer: PreTrainedTokenizerFast) -> LlamaModel:
    """The fixed encoder in fp16, the type of the official folder."""
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), **LLAMA, **special)
    model, width = LlamaModel(config).eval(), LLAMA["hidden_size"]
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows = torch.linalg.qr(random(width, len(tokenizer))).Q.T  # orthogonal: at most `width` words
    model.embed_tokens.weight.copy_(rows * width**0.5)
    for layer in model.layers:
        for parameter in layer.self_attn.parameters():
            parameter.zero_()
        query, key = look_back_vectors()
        layer.self_attn.q_proj.bias.copy_(query)
        layer.self_attn.k_proj.bias.copy_(key)
        for name, scale in (("v_proj", 1.0), ("o_proj", 0.7)):
            layer.self_attn.get_submodule(name).weight.copy_(
                scale * torch.linalg.qr(random(width, width)).Q
            )
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight = layer.mlp.get_submodule(name).weight
            weight.copy_(0.3 * random(*weight.shape) / weight.shape[1] ** 0.5)
    return model.half().requires_grad_(False)


def look_back_vectors() -> tuple[Tensor, Tensor]:
    """Constant queries and keys, (heads x head_dim) each: head h attends h + 1 tokens back.

    The score of a key d tokens back is the sum over channel pairs of |q|^2 cos((d - h - 1) theta):
    rope turns queries and keys by their positions, and the key is turned h + 1 further here.
    """
    width = LLAMA["head_dim"]
    theta = LLAMA["rope_parameters"]["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    # so that the neighbouring word scores LOOK_BACK less, after the division by sqrt(width)
    strength = (LOOK_BACK * width**0.5 / (1 - theta.cos()).sum()) ** 0.5
    query = torch.cat([torch.ones(width // 2), torch.zeros(width // 2)]) * strength
    offsets = torch.arange(1, HEADS + 1)[:, None] * theta  # (heads, width / 2)
    key = torch.cat([offsets.cos(), offsets.sin()], dim=1) * strength
    return query.repeat(HEADS), key.flatten()


@torch.no_grad()
def build_clip(seed: int, tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """A random CLIP text model in fp16 whose end token sees all words about equally."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **CLIP,
    )
    model = CLIPTextModel(config).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            continue  # ones and zeros
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter.shape[-1] ** -0.5
        if "embedding" in name:
            parameter.copy_(noise * (0.1 if "position" in name else 1.0))
        elif name.endswith("bias"):
            parameter.zero_()
        else:  # queries and keys weak, so that attention is nearly a mean
            parameter.copy_(noise * fan_in * (0.1 if "q_proj" in name or "k_proj" in name else 1))
    return model.half().requires_grad_(False)

"""The UMT5 text encoder: official weight file, transformers' model."""

import html
import re
from pathlib import Path

import ftfy
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    UMT5Config,
    UMT5EncoderModel,
)

from profiling_core.errors import InputError
from profiling_core.files import first_line
from profiling_core.parallel.sharding import fill, shard
from profiling_core.runtime.checkpoint_files import check_counts, read_json
from profiling_core.runtime.prompt_tokens import padded_tokens
from profiling_core.runtime.state_dicts import (
    assign,
    check_names,
    read_weights,
    shapes,
)

OFFICIAL_SIZES = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "vocab_size": 256384,
}
FIXED = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
}
# official names inside `blocks.<i>.` -> names inside `encoder.block.<i>.`
BLOCK_NAMES = {
    "norm1.weight": "layer.0.layer_norm.weight",
    **{f"attn.{x}.weight": f"layer.0.SelfAttention.{x}.weight" for x in "qkvo"},
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def convert_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to those of UMT5EncoderModel; names that are not official stay."""
    converted = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if name == "token_embedding.weight":
            converted["shared.weight"] = converted["encoder.embed_tokens.weight"] = tensor
        elif name == "norm.weight":
            converted["encoder.final_layer_norm.weight"] = tensor
        elif block and block[2] in BLOCK_NAMES:
            converted[f"encoder.block.{block[1]}.{BLOCK_NAMES[block[2]]}"] = tensor
        else:
            converted[name] = tensor
    return converted


def clean(text: str) -> str:
    """Repair mojibake, resolve HTML entities (also doubled ones), collapse white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; InputError when it is unusable or cannot pad."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a file of another shape makes the library do
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"tokenizer folder {folder} is not usable ({reason})") from None
    if tokenizer.pad_token is None:
        raise InputError(
            f"tokenizer folder {folder} names no pad_token in tokenizer_config.json: "
            "download the folder again"
        )
    return tokenizer


def sizes_of(checkpoint: Path) -> dict[str, int]:
    """Those of the JSON file beside the checkpoint, or the official XXL's."""
    sizes = checkpoint.with_suffix(".json")
    given = read_json(sizes) if sizes.exists() else OFFICIAL_SIZES
    check_counts(sizes, given)
    return given


def embedding_bytes(checkpoint: Path) -> int:
    """Of the embedding of tokens, the encoder's largest tensor, in bf16."""
    sizes = OFFICIAL_SIZES | sizes_of(checkpoint)
    return sizes["vocab_size"] * sizes["d_model"] * 2


def build_umt5(checkpoint: Path) -> UMT5EncoderModel:
    """The encoder on the meta device."""
    sizes, given = checkpoint.with_suffix(".json"), sizes_of(checkpoint)
    try:
        with torch.device("meta"):
            # eager attention equals the official bf16 results bit by bit, SDPA does not
            model = UMT5EncoderModel._from_config(
                UMT5Config(**{**FIXED, **given}), attn_implementation="eager"
            )
    except Exception as error:  # a value of a wrong type fails in as many ways as there are fields
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{sizes}: {reason}") from None
    # one module: two that share a weight would have a copy each once they are moved, 2.1 GB of XXL
    model.encoder.embed_tokens = model.shared
    return model


class TextEncoder:
    """Prompts to embeddings, bf16 throughout as the official encoder."""

    def __init__(
        self,
        checkpoint: Path,
        tokenizer: Path,
        text_len: int,
        sharded_on: torch.device | None = None,
    ) -> None:
        """Load on the CPU; InputError when the weights or the tokenizer folder are unusable.

        sharded_on: the device that the encoder stays on, shared out over this run's processes; all
        of them have to call it.
        """
        self.text_len, self.sharded = text_len, sharded_on is not None
        self.tokenizer = load_tokenizer(tokenizer)
        self.model = build_umt5(checkpoint)
        vocab_size, self.dim = self.model.config.vocab_size, self.model.config.d_model
        if len(self.tokenizer) > vocab_size:
            raise InputError(
                f"tokenizer folder {tokenizer} has {len(self.tokenizer)} tokens, "
                f"{checkpoint.name} {vocab_size}: take the tokenizer of this checkpoint"
            )
        state = read_weights(checkpoint)
        if sharded_on is None:
            state = {k: v.to(torch.bfloat16) for k, v in state.items()}
            assign(self.model, convert_names(state), checkpoint)
        else:
            self._share_out(convert_names(state), checkpoint, sharded_on)

    def _share_out(self, state: dict[str, Tensor], source: Path, device: torch.device) -> None:
        """Every process takes its rows; the file is mapped, what it does not need is not read."""
        check_names(source, shapes(self.model.state_dict()), shapes(state))
        self.model.to(torch.bfloat16)
        shard(self.model, self.model.encoder.block, device)
        fill(self.model, lambda name, first, end: state[name][first:end], device)
        self.model.eval()

    def to(self, device: torch.device | str) -> None:
        """Move to another device; shared out it stays where it is."""
        if not self.sharded:
            self.model.to(device)

    @torch.no_grad()
    def __call__(self, text: str) -> Tensor:
        """Embedding (rows, dim), bf16, of one prompt's own tokens, on the encoder's device.

        The prompt is padded to text_len inside the encoder, with the padding masked.
        """
        device = self.model.device
        ids, mask = padded_tokens(
            self.tokenizer, clean(text), self.text_len, device, "text encoder"
        )
        hidden = self.model(ids, attention_mask=mask)
        return hidden.last_hidden_state[0, : int(mask.sum())]

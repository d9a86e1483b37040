"""The two text encoders: states of a language model, and CLIP's one vector per prompt."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from profiling_core.errors import InputError
from profiling_core.files import first_line
from profiling_core.runtime.prompt_tokens import padded_tokens
from profiling_core.runtime.state_dicts import (
    check_types,
    load_pretrained,
    plain_state,
    read_header,
    read_torch_file,
    types_of,
)

from .checkpoint import HOW_TO_GET
from .config import TEMPLATES, HunyuanConfig, Template
from .weights import DTYPES

LOCAL = {"local_files_only": True, "trust_remote_code": False}  # no code from a folder is run


def load_config(folder: Path) -> PretrainedConfig:
    """config.json of an encoder's folder, of CLIP the text part."""
    try:
        config = AutoConfig.from_pretrained(folder, **LOCAL)
    except Exception as error:  # whatever a file of another shape makes the library do
        raise _unusable(folder, "configuration", error) from None
    return config.text_config if config.model_type == "clip" else config


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; InputError when it is unusable or cannot pad."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", **LOCAL)
    except Exception as error:
        raise _unusable(folder, "tokenizer", error) from None
    if tokenizer.pad_token is None:
        raise InputError(
            f"text encoder folder {folder}: tokenizer_config.json names no pad_token: "
            "make the folder again"
        )
    return tokenizer


def load_model(
    folder: Path,
    kind: type[AutoModel] | type[CLIPTextModel],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The model of a folder; InputError unless every weight of it is there.

    On the meta device no weight is read.
    """
    _check_types(folder)
    name, way_out = f"text encoder folder {folder}", HOW_TO_GET.get(folder.name, "make it again")
    meta = torch.device(device).type == "meta"
    try:
        return load_pretrained(
            kind, folder, name, way_out, dtype=dtype, device_map="meta" if meta else None
        )
    except InputError:
        raise
    except Exception as error:
        raise _unusable(folder, "weights", error) from None


def _check_types(folder: Path) -> None:
    """InputError for weights in 8 bits, which the library would cast without their scales."""
    tensors = sorted(folder.glob("model*.safetensors"))
    kinds = {path: read_header(path)[1] for path in tensors}
    if not tensors:
        found = sorted(folder.glob("pytorch_model*.bin"))
        kinds = {path: types_of(plain_state(path, read_torch_file(path))) for path in found}
    for path, kind in kinds.items():
        check_types(path, kind, "take the files in fp16 or bf16")


def _unusable(folder: Path, part: str, error: Exception) -> InputError:
    reason = f"{type(error).__name__}: {first_line(error)}"
    return InputError(f"text encoder folder {folder}: the {part} cannot be used ({reason})")


def encoder_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Memory that an encoder's weights take in `dtype`."""
    config = load_config(folder)
    kind = CLIPTextModel if config.model_type == "clip_text_model" else AutoModel
    try:
        with torch.device("meta"):
            model = kind._from_config(config) if kind is CLIPTextModel else kind.from_config(config)
    except Exception as error:
        raise _unusable(folder, "configuration", error) from None
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize


class Encoder(ABC):
    """What both have in common: a folder, a type to compute in, and a type of the result.

    On the CPU an encoder computes in fp32 with weights rounded to `precision`; what it returns is
    rounded to `precision` everywhere, since the transformer officially gets it in that type.
    """

    def __init__(
        self,
        folder: Path,
        kind: type[AutoModel] | type[CLIPTextModel],
        precision: str,
        device: torch.device | str,
        longest: int,
    ) -> None:
        self.folder, self.dtype = folder, DTYPES[precision]
        config = load_config(folder)
        self._check_kind(config)
        self.tokenizer = load_tokenizer(folder)
        self._check_sizes(config, longest)
        self.model = load_model(folder, kind, self.dtype, device)
        if torch.device(device).type == "cpu" and self.dtype != torch.float32:
            self.model.float()

    @abstractmethod
    def _check_kind(self, config: PretrainedConfig) -> None:
        """InputError when the folder holds another kind of model."""

    def _check_sizes(self, config: PretrainedConfig, longest: int) -> None:
        vocab_size, positions = config.vocab_size, config.max_position_embeddings
        if len(self.tokenizer) > vocab_size:
            raise InputError(
                f"text encoder folder {self.folder}: its tokenizer has {len(self.tokenizer)} "
                f"tokens, its model {vocab_size}: the two belong to different models"
            )
        if longest > positions:
            raise InputError(
                f"text encoder folder {self.folder}: {longest} tokens with template and padding "
                f"are more than its {positions} positions: take a smaller text-len"
            )

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)


class LanguageModel(Encoder):
    """A prompt in its template to one state per token, taken below the model's last layers."""

    def __init__(self, folder: Path, config: HunyuanConfig, device: torch.device | str) -> None:
        self.config = config
        longest = config.text_len + TEMPLATES[config.prompt_template_video].crop_start
        super().__init__(folder, AutoModel, config.text_encoder_precision, device, longest)
        self.dim = self.model.config.hidden_size
        for name in dict.fromkeys((config.prompt_template, config.prompt_template_video)):
            self._check_head(name, TEMPLATES[name])

    def _check_kind(self, config: PretrainedConfig) -> None:
        layers = getattr(config, "num_hidden_layers", None)
        if not isinstance(layers, int) or not hasattr(config, "vocab_size"):
            raise InputError(
                f"text encoder folder {self.folder} holds a {config.model_type!r} model, no "
                f"language model: {HOW_TO_GET['text_encoder']}"
            )
        if not 0 <= self.config.hidden_state_skip_layer <= layers:
            raise InputError(
                f"hidden-state-skip-layer {self.config.hidden_state_skip_layer}: the text encoder "
                f"has {layers} layers, take 0 to {layers}"
            )

    def _check_head(self, name: str, template: Template) -> None:
        ids = self.tokenizer(template.head).input_ids
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        if len(ids) != template.crop_start:
            logger.warning(
                f"text encoder folder {self.folder}: the head of template {name} has {len(ids)} "
                f"tokens, {template.crop_start} are cut off: a part of the prompt is lost, or a "
                "part of the template stays; is this the official tokenizer?"
            )

    @torch.no_grad()
    def __call__(self, text: str, length: int) -> tuple[Tensor, Tensor]:
        """States (1, L, dim) and mask (1, L) of a prompt, the template's head cut off.

        length: frames of the clip, which decide on the template; see HunyuanConfig.text_tokens.
        """
        template = self.config.template(length)
        crop = template.crop_start
        ids, mask = padded_tokens(
            self.tokenizer,
            template.fill(text),
            crop + self.config.text_tokens(length),
            self.model.device,
            "text encoder with its template",
            template.tail,
        )
        out = self.model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        skip = self.config.hidden_state_skip_layer
        states = out.hidden_states[-(skip + 1)]
        if self.config.apply_final_norm and skip > 0:  # the last state is normed already
            states = self.model.norm(states)
        return states[:, crop:].to(self.dtype), mask[:, crop:]


class PooledClip(Encoder):
    """A prompt to CLIP's pooled vector."""

    def __init__(self, folder: Path, config: HunyuanConfig, device: torch.device | str) -> None:
        self.text_len = config.text_len_2
        super().__init__(
            folder, CLIPTextModel, config.text_encoder_precision_2, device, self.text_len
        )
        self.dim = self.model.config.hidden_size

    def _check_kind(self, config: PretrainedConfig) -> None:
        if config.model_type != "clip_text_model":
            raise InputError(
                f"text encoder folder {self.folder} holds a {config.model_type!r} model, no CLIP: "
                f"{HOW_TO_GET['text_encoder_2']}"
            )

    @torch.no_grad()
    def __call__(self, text: str) -> Tensor:
        """The vector (1, dim) of a prompt, cut or padded to text_len tokens."""
        what = "second text encoder"
        ids, mask = padded_tokens(self.tokenizer, text, self.text_len, self.model.device, what)
        return self.model(ids, attention_mask=mask).pooler_output.to(self.dtype)

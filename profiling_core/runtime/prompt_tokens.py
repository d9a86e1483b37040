"""Prompts as the tokens of a text encoder; what does not fit is logged."""

from typing import Any

import torch
from loguru import logger
from torch import Tensor

SHOWN = 100  # characters of a text that was cut


def padded_tokens(
    tokenizer: Any, text: str, length: int, device: torch.device, what: str, tail: str = ""
) -> tuple[Tensor, Tensor]:
    """Ids and mask, (1, length) each; what: the encoder; tail: the end of `text` that is no prompt.

    A longer text is cut as officially, with a warning that shows what the encoder does not see.
    """
    tokens = tokenizer(
        text,
        padding="max_length",
        truncation=True,
        max_length=length,
        return_attention_mask=True,
        return_tensors="pt",
    ).to(device)
    if tokens.attention_mask.all():
        lost = _beyond(tokenizer, text.removesuffix(tail), length)
        if lost:
            shown = lost if len(lost) <= SHOWN else f"{lost[:SHOWN]}..."
            logger.warning(
                f"the prompt is longer than the {length} tokens of the {what}, which does not see "
                f"its end: {shown!r}"
            )
    return tokens.input_ids, tokens.attention_mask


def _beyond(tokenizer: Any, text: str, length: int) -> str:
    """The part of `text` that `length` tokens do not hold."""
    room = length - tokenizer.num_special_tokens_to_add()
    options = {"add_special_tokens": False, "truncation": False, "verbose": False}
    if not tokenizer.is_fast:
        return tokenizer.decode(tokenizer(text, **options).input_ids[room:]).strip()
    places = tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]
    return text[places[room][0] :].strip() if len(places) > room else ""

"""Sizes of a loop that is not ours, seen in its first model call: what anchors will weigh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from profiling_core.engine.anchors import tensors_of
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.describe import format_bytes, storage_words


class FirstCall:
    """Hooks on a model and the first block of its last list, gone after one call, which they tell.

    The tokens are those of all tensors that a block updates: image and text, joined or apart.
    """

    def __init__(
        self, model: nn.Module, blocks: nn.ModuleList, plan: CachePlan, tell: Callable[[str], None]
    ) -> None:
        self.plan, self._tell = plan, tell
        self._stream: list[torch.Tensor] = []
        first = next(iter(blocks._modules.values()))
        self._handles = [
            first.register_forward_hook(self._see_block),
            model.register_forward_hook(self._see_model),
        ]

    def close(self) -> None:
        """Take the hooks off."""
        self._stream = []
        while self._handles:
            self._handles.pop().remove()

    def _see_block(self, block: nn.Module, args: tuple, output: Any) -> None:
        self._stream = tensors_of(output)

    def _see_model(self, model: nn.Module, args: tuple, output: Any) -> None:
        predictions, plan = tensors_of(output), self.plan
        held = bytes_held(
            plan,
            tokens=sum(tensor.numel() // tensor.shape[-1] for tensor in self._stream),
            stream_itemsize=self._stream[0].element_size(),
            latent_numel=sum(tensor.numel() for tensor in predictions),
            prediction_itemsize=predictions[0].element_size(),
        )
        self.close()
        self._tell(
            f"holds at most {format_bytes(held // len(plan.branches))} of anchors in "
            f"{storage_words(plan)}, for every model call of a step"
        )

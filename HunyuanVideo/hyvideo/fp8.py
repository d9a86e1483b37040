"""Weights of the blocks' linears in 8 bits, put back into the computing type layer by layer.

Only memory is saved: every call multiplies the stored weight (float8_e4m3fn) by its layer's scale
and calls the plain linear. The scales lie in a file of their own, by module name.
"""

from math import isfinite
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from profiling_core.errors import InputError
from profiling_core.files import unreadable

BLOCK_LISTS = ("double_blocks", "single_blocks")


class Fp8Linear(nn.Linear):
    """A linear whose weight is stored in 8 bits; the bias keeps the computing type."""

    fp8_scale: float

    def forward(self, x: Tensor) -> Tensor:
        # exact in the computing type, times a scale in fp32: rounded once
        weight = self.weight.to(self.bias.dtype) * self.fp8_scale
        return F.linear(x, weight, self.bias)


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears inside the double- and single-stream blocks, by module name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(f"{b}." for b in BLOCK_LISTS))
    }


def store_as_fp8(model: nn.Module) -> None:
    """Make every linear of the blocks one with an 8-bit weight; names and shapes stay."""
    for linear in block_linears(model).values():
        linear.__class__ = Fp8Linear
        stored = torch.empty_like(linear.weight, dtype=torch.float8_e4m3fn)
        linear.weight = nn.Parameter(stored, requires_grad=False)
        linear.fp8_scale = 1.0


def load_scales(model: nn.Module, path: Path) -> None:
    """Give every linear of the blocks its scale from a map file; other names are ignored."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage can surface anywhere in the unpickler
        raise InputError(unreadable(path, "file of scales", error)) from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no dict of scales: download it again")
    linears = block_linears(model)
    absent = [name for name in linears if name not in content]
    if absent:
        raise InputError(
            f"{path}: the scales of {len(absent)} layers are missing, the first is {absent[0]!r}: "
            "this map belongs to another file"
        )
    for name, linear in linears.items():
        linear.fp8_scale = _scale(path, name, content[name])


def _scale(path: Path, name: str, value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, int | float) or not isfinite(value) or value <= 0:
        raise InputError(f"{path}: the scale of {name!r} is no positive number")
    return float(value)

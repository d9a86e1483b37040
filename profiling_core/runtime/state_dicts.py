"""Weight files as state dicts, and strict loading of them into modules on the meta device."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from profiling_core.errors import InputError
from profiling_core.runtime.checkpoint_files import first_line

Shapes = dict[str, tuple[int, ...]]


def shapes(state: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_names(source: Path, expected: Shapes, found: Shapes) -> None:
    """InputError unless both have the same names and shapes."""
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    for names, what in ((missing, "missing"), (surplus, "not known to this model")):
        if names:
            raise InputError(
                f"{source}: {len(names)} tensors are {what}, the first is {names[0]!r}: "
                "this is another model's checkpoint, or a part of one"
            )
    for name, shape in expected.items():
        if found[name] != shape:
            raise InputError(
                f"{source}: tensor {name!r} has shape {found[name]}, the model {shape}: "
                "the weights belong to other sizes than the configuration"
            )


def read_torch_file(path: Path) -> dict[str, Any]:
    """The dict in a .pt or .pth file, mapped rather than read where its format allows."""
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # damage can surface anywhere in the unpickler
        raise InputError(
            f"{path} is not a complete weight file ({first_line(error)}): download it again"
        ) from None
    return plain_dict(path, content)


def plain_dict(path: Path, content: Any) -> dict[str, Any]:
    """`content` if it is a dict with names as keys."""
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} holds no plain state dict of tensors: download it again")
    return dict(content)


def plain_state(path: Path, content: Any) -> dict[str, Tensor]:
    """`content` if it is a dict from names to tensors."""
    state = plain_dict(path, content)
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path} holds no plain state dict of tensors: download it again")
    return state


def assign(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Give a meta module the tensors of `state`, without a copy; strict about names and shapes."""
    check_names(source, shapes(module.state_dict()), shapes(state))
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)


def check_finite(result: Tensor, what: str, way_out: str) -> None:
    """InputError when an overflow or damaged weights would give a black or random clip."""
    if not result.isfinite().all():
        raise InputError(f"{what} gave numbers that are not finite: {way_out}")

"""Official checkpoint files into modules: strict, by name and shape, with one copy in memory.

A module is built on the meta device, the files' headers are compared with it, and only then are
tensors read and assigned. Nothing is renamed: the transformer has the official names.
"""

import inspect
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from profiling_core.errors import InputError
from profiling_core.files import first_line
from profiling_core.parallel.sharding import Precision, fill, shard
from profiling_core.runtime.checkpoint_files import check_counts, read_json
from profiling_core.runtime.state_dicts import (
    Shapes,
    check_names,
    check_types,
    official_names,
    read_header,
    shapes,
)

from .checkpoint import dit_files
from .model import WanModel
from .vace_model import VaceWanModel


def model_kwargs(folder: Path) -> dict[str, Any]:
    """The model's arguments from config.json; unknown keys are skipped, missing ones default."""
    path = folder / "config.json"
    given = read_json(path)
    defaults = dict(inspect.signature(WanModel).parameters)
    if given.get("model_type") == "vace":
        defaults |= inspect.signature(VaceWanModel).parameters
    kwargs = {}
    for name, default in ((n, p.default) for n, p in defaults.items() if p.kind != p.VAR_KEYWORD):
        value = default
        if name in given:
            value = tuple(given[name]) if isinstance(given[name], list) else given[name]
            value = float(value) if isinstance(default, float) and type(value) is int else value
        if type(value) is not type(default):
            kind = type(default).__name__
            raise InputError(f"{path}: {name} is {value!r}, expected a value of type {kind}")
        counts = value if isinstance(value, tuple) else (value,)
        if isinstance(default, tuple) and any(type(n) is not int for n in counts):
            raise InputError(f"{path}: {name} is {value!r}, expected whole numbers")
        check_counts(path, {name: value}, least=0 if name == "vace_layers" else 1)
        if isinstance(default, tuple) and default and len(value) != len(default):
            raise InputError(f"{path}: {name} is {value!r}, expected {len(default)} numbers")
        kwargs[name] = value
    return kwargs


def build_transformer(folder: Path) -> WanModel:
    """The model of config.json on the meta device: names and shapes, no memory."""
    kwargs = model_kwargs(folder)
    kind = VaceWanModel if kwargs["model_type"] == "vace" else WanModel
    try:
        with torch.device("meta"):
            return kind(**kwargs)
    except (ValueError, RuntimeError) as error:  # torch: sizes whose product overflows
        raise InputError(f"{folder / 'config.json'}: {first_line(error)}") from None


def blocks_of(model: WanModel) -> list[nn.Module]:
    """All blocks, those that make hints included."""
    return [*model.blocks, *getattr(model, "vace_blocks", ())]


def load_transformer(
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    sharded: Precision | None = None,
) -> WanModel:
    """The transformer of a checkpoint folder on `device`, in eval mode and without gradients.

    On the meta device everything is checked against the files' headers and no tensor is read.
    sharded: what FSDP gathers, where the processes of this run share out the weights; each of them
    reads its own rows alone. InputError names the file and the first tensor that is missing,
    unexpected or of wrong shape.
    """
    device = torch.device(device)
    model = build_transformer(folder)
    expected = shapes(model.state_dict())
    files = dit_files(folder)
    found: Shapes = {}
    for file, names in files.items():
        found |= _checked_header(folder / file, names)
    check_names(folder, expected, found)
    if sharded is not None:
        with _Rows(folder, files) as read:
            fill(shard(model.to(dtype), blocks_of(model), device, sharded), read, device)
    elif device.type != "meta":
        state: dict[str, Tensor] = {}
        for file in files:
            state |= _read(folder / file, device, dtype)
        model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _checked_header(path: Path, names: set[str] | None) -> Shapes:
    """Official names and shapes in a safetensors file; `names` must be among its own."""
    found, types = read_header(path)
    check_types(path, types, "take the official file, or one in bf16, fp16 or fp32")
    absent = (names or set()) - found.keys()
    if absent:
        raise InputError(
            f"{path}: tensor {min(absent)!r} is missing, though the index names it: "
            "download both again"
        )
    return {name: found[stored] for name, stored in official_names(path, found).items()}


def _read(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        # What comes out of the file is mapped memory at odd addresses. A copy of each tensor is
        # aligned, so that results do not depend on how a checkpoint was cut into shards.
        return {
            name: file.get_tensor(stored).to(device, dtype, copy=True)
            for name, stored in official_names(path, file.keys()).items()
        }


class _Rows(ExitStack):
    """Rows of tensors from the files of a checkpoint, which stay open for the while."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        super().__init__()
        self._found = {}
        for path in (folder / file for file in files):
            opened = self.enter_context(safe_open(path, framework="pt"))
            names = official_names(path, opened.keys())
            self._found |= {name: (opened, stored) for name, stored in names.items()}

    def __call__(self, name: str, first: int, end: int) -> Tensor:
        opened, stored = self._found[name]
        return opened.get_slice(stored)[first:end]

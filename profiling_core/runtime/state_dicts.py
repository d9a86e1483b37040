"""Weight files as state dicts, and strict loading of them into modules on the meta device."""

import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from profiling_core.errors import InputError
from profiling_core.files import PLAIN_TYPES, unreadable

Shapes = dict[str, tuple[int, ...]]
PREFIXES = ("model.diffusion_model.", "model.model.", "diffusion_model.")  # of ComfyUI's files
FOREIGN = {  # in a tensor's name: whose file it is
    "lora_": "this is a LoRA, which is not applied here",
    "condition_embedder.": "these are diffusers' names: run that file with cache_pipeline",
    "transformer_blocks.": "these are diffusers' names: run that file with cache_pipeline",
}


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
                f"{_whose(found)}"
            )
    for name, shape in expected.items():
        if found[name] != shape:
            raise InputError(
                f"{source}: tensor {name!r} has shape {found[name]}, the model {shape}: "
                "the weights belong to other sizes than the configuration"
            )


def _whose(names: Collection[str]) -> str:
    known = (text for part, text in FOREIGN.items() if any(part in name for name in names))
    return next(known, "this is another model's checkpoint, or a part of one")


def check_types(source: Path, types: dict[str, str], way_out: str) -> None:
    """InputError for numbers that are weights only together with a scale, as in 8 bits.

    A cast would take them for the weights, and the clip would be noise.
    """
    coded = [name for name, kind in types.items() if kind not in PLAIN_TYPES]
    if coded:
        raise InputError(
            f"{source}: {len(coded)} tensors are stored as {types[coded[0]]}, the first is "
            f"{coded[0]!r}: these are no weights without their scales, {way_out}"
        )


def types_of(state: dict[str, Tensor]) -> dict[str, str]:
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()}


def official_names(source: Path, names: Collection[str]) -> dict[str, str]:
    """Official name -> name in the file, which ComfyUI's prefix may lead.

    InputError for a file that has more than the transformer.
    """
    for prefix in PREFIXES:
        others = [name for name in names if not name.startswith(prefix)]
        if len(others) == len(names):
            continue
        if others:
            raise InputError(
                f"{source} has a whole model in ComfyUI's layout: {len(others)} tensors belong to "
                f"other parts, the first is {others[0]!r}: take the transformer's own file"
            )
        return {name.removeprefix(prefix): name for name in names}
    return {name: name for name in names}


def read_header(path: Path) -> tuple[Shapes, dict[str, str]]:
    """Shapes and types in a safetensors file, by name; no tensor is read."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found = {name: tuple(part.get_shape()) for name, part in slices.items()}
            return found, {name: str(part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(unreadable(path, "safetensors file", error)) from None


def read_torch_file(path: Path) -> dict[str, Any]:
    """The dict in a .pt or .pth file, mapped rather than read where its format allows."""
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # damage can surface anywhere in the unpickler
        raise InputError(unreadable(path, "weight file", error)) from None
    return plain_dict(path, content)


def plain_dict(path: Path, content: Any) -> dict[str, Any]:
    """`content` if it is a dict with names as keys."""
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} holds no plain state dict of tensors: download it again")
    return dict(content)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pt or .pth file, whose numbers are the weights."""
    state = plain_state(path, read_torch_file(path))
    check_types(path, types_of(state), "take the official file")
    return state


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


def load_pretrained(kind: Any, folder: Path, name: str, way_out: str, **options: Any) -> Any:
    """A model of transformers from its folder; InputError unless every weight of it is there.

    name: what errors call the folder. No code of the folder runs and nothing is fetched; whatever
    the library raises on a damaged file is the caller's.
    """
    with quiet_transformers():
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    for what in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, report.get(what) or ()))
        if names:
            raise InputError(
                f"{name}: {len(names)} tensors are {what.removesuffix('_keys')}, the first is "
                f"{names[0]}: {way_out}"
            )
    return model.eval().requires_grad_(False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the library's progress bar and its list of tensors: those that count raise errors."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()

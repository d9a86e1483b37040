"""Official checkpoint files into modules: strict, by name and shape, with one copy in memory.

A module is built on the meta device, the file's names and shapes are compared with it, and only
then are tensors read and assigned. Nothing is renamed: the transformer has the official names.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from profiling_core.errors import InputError
from profiling_core.files import first_line
from profiling_core.runtime.state_dicts import (
    check_names,
    check_types,
    official_names,
    plain_state,
    read_header,
    read_torch_file,
    shapes,
    types_of,
)

from .checkpoint import fp8_map
from .config import HunyuanConfig
from .fp8 import load_scales, store_as_fp8
from .model import HYVideoDiffusionTransformer

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LOAD_KEYS = ("module", "ema")


def build_transformer(config: HunyuanConfig) -> HYVideoDiffusionTransformer:
    """The model on the meta device, in the types its weights will have: no memory.

    The final projection stays fp32 as in the official code.
    """
    try:
        with torch.device("meta"):
            model = HYVideoDiffusionTransformer(**config.transformer)
    except (ValueError, RuntimeError, TypeError) as error:  # RuntimeError: sizes that overflow
        raise InputError(f"model {config.model}: {first_line(error)}") from None
    model.to(DTYPES[config.precision])
    model.final_layer.linear.float()
    if config.use_fp8:
        store_as_fp8(model)
    return model.eval().requires_grad_(False)


def transformer_bytes(config: HunyuanConfig) -> int:
    """Memory that the weights take."""
    return sum(p.numel() * p.element_size() for p in build_transformer(config).parameters())


def load_transformer(
    file: Path, config: HunyuanConfig, device: torch.device | str
) -> HYVideoDiffusionTransformer:
    """The transformer of a checkpoint file on `device`, in eval mode and without gradients.

    On the meta device names and shapes are checked and no tensor is read. InputError names the file
    and the first tensor that is missing, unexpected or of wrong shape.
    """
    device = torch.device(device)
    model = build_transformer(config)
    state = read_transformer_file(file, config.load_key)
    expected = model.state_dict()
    scaled = {name for name, tensor in expected.items() if tensor.dtype == torch.float8_e4m3fn}
    types = {name: kind for name, kind in types_of(state).items() if name not in scaled}
    way_out = "give --use-fp8 for the official fp8 file with its map, or take one in bf16"
    check_types(file, types, way_out)
    check_names(file, shapes(expected), shapes(state))
    if config.use_fp8:
        _check_fp8(file, expected, state)
        load_scales(model, fp8_map(file))
    if device.type != "meta":
        # A copy of each tensor: what comes out of the file is mapped, and a file that is replaced
        # during the run would change the weights.
        for name in expected:
            state[name] = state[name].to(device, expected[name].dtype, copy=True)
        model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _check_fp8(file: Path, expected: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if tensor.dtype == torch.float8_e4m3fn != state[name].dtype:
            raise InputError(
                f"{file}: tensor {name!r} is {state[name].dtype}, expected float8_e4m3fn: "
                "give --dit-weight the fp8 file, or leave --use-fp8 out"
            )


def read_transformer_file(path: Path, load_key: str) -> dict[str, Tensor]:
    """The state dict under `load_key`, or the file itself where it is a bare one."""
    if path.suffix == ".safetensors":
        names = official_names(path, read_header(path)[0])
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(stored) for name, stored in names.items()}
    content = read_torch_file(path)
    found = [key for key in LOAD_KEYS if key in content]
    if found and load_key not in content:
        raise InputError(
            f"{path} has no {load_key!r}: take --load-key {' or '.join(map(str, found))}"
        )
    state = plain_state(path, content[load_key] if found else content)
    return {name: state[stored] for name, stored in official_names(path, state).items()}

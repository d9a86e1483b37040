"""Folders and JSON files of a checkpoint; no torch, so that bad input ends early.

A folder of another program is recognised by what lies in it, and named with the way out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from profiling_core.errors import InputError
from profiling_core.files import stand_in, unreadable

MOST_LAYERS, LARGEST_SIZE = 1000, 10**6  # far past every real model, small enough to be counted

CACHES = ("*", "snapshots/*", "models--*/snapshots/*", "hub/models--*/snapshots/*")
ELSEWHERE = "run it with diffusers and cache_pipeline, or"
DIFFUSERS = f"is in diffusers' layout: {ELSEWHERE}"
CACHE = "belongs to a cache of the Hugging Face Hub, and this model is not in it:"
COMFYUI = "is ComfyUI's: put its transformer's file beside the official other parts, or"
LAYOUTS = (  # what lies in a folder, what the folder is
    ("model_index.json", DIFFUSERS),
    ("../model_index.json", DIFFUSERS),
    ("snapshots", CACHE),
    ("models--*", CACHE),
    ("hub/models--*", CACHE),
    ("diffusion_models", COMFYUI),
    ("models/diffusion_models", COMFYUI),
    ("../diffusion_models", COMFYUI),
    ("*.gguf", "has quantised GGUF files, which are not read here:"),
    ("high_noise_model", f"is Wan 2.2's: {ELSEWHERE}"),
    ("Wan2.2_VAE.pth", f"is Wan 2.2's: {ELSEWHERE}"),
    ("hunyuan-video-i2v-720p", f"is HunyuanVideo-I2V's: {ELSEWHERE}"),
    ("transformer/*0p_*", f"is HunyuanVideo-1.5's: {ELSEWHERE}"),
)


def foreign_layout(folder: Path, option: str, holds: Callable[[Path], bool]) -> str | None:
    """What an unfit checkpoint folder is, as the begin of the way out; None when it is not known.

    holds: does this folder look like the checkpoint itself?
    """
    if folder.is_file():
        return f"{stand_in(folder) or 'is a file: give the folder of all parts'}, or"
    for path in (path for pattern in CACHES for path in sorted(folder.glob(pattern))):
        if holds(path) and not path.name.endswith("-mini"):  # the bundled one, of another model
            return f"is not the checkpoint itself: give {option} {path}, or"
    return next((what for mark, what in LAYOUTS if any(folder.glob(mark))), None)


def check_present(path: Path) -> None:
    """InputError for a file that another one stands in for."""
    instead = stand_in(path)
    if instead is not None:
        raise InputError(f"{path} {instead}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; InputError when the file is missing, unreadable or something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(unreadable(path, "JSON file", error)) from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object: download it again")
    return document


def check_counts(path: Path, sizes: dict[str, Any], least: int = 0) -> None:
    """InputError when an integer in `sizes`, alone or in a list, is out of every model's range."""
    for name, value in sizes.items():
        most = MOST_LAYERS if name.startswith(("num_", "layers_")) else LARGEST_SIZE
        for count in value if isinstance(value, list | tuple) else (value,):
            if type(count) is int and not least <= count <= most:
                raise InputError(f"{path}: {name} is {value!r}, expected {least} to {most}")

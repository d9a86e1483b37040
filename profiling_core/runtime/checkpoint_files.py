"""JSON files of a checkpoint, and sizes read from them; no torch, so that bad input ends early."""

import json
from pathlib import Path
from typing import Any

from profiling_core.errors import InputError

MOST_LAYERS, LARGEST_SIZE = 1000, 10**6  # far past every real model, small enough to be counted


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; InputError when the file is missing, unreadable or something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): download it again") from None
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


def first_line(error: Exception) -> str:
    """The message of another library's error, short enough for one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]

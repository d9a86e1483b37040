"""The stages `files` and `memory`: is the checkpoint whole, and is there room for it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from profiling_core.commands.check.report import Found
from profiling_core.errors import InputError, UserError
from profiling_core.files import stand_in
from profiling_core.plan.describe import format_bytes
from profiling_core.runtime.memory import available_bytes
from profiling_core.runtime.state_dicts import read_header, read_torch_file
from profiling_core.trees.tree_model import Part, TreeModel

TORCH_FILES = (".pt", ".pth", ".bin")


def files(model: TreeModel, found: Found) -> list[str]:
    """Every file that would be loaded, and each part against the model; the lines to print."""
    parts, faults, folder = model.parts(), found["faults"], model.checkpoint_dir
    found["parts"] = {
        name: [_file(path, folder) for path in part.files] for name, part in parts.items()
    }
    rows = [(name, row) for name, listed in found["parts"].items() for row in listed]
    try:
        model.check_files()
    except UserError as error:  # the first fault, with the way out
        faults.append(str(error))
    named, there = " ".join(faults), [row for row in rows if "fault" not in row[1]]
    if there:  # else the first fault says it all: this is another folder
        faults += [_line(*row) for row in rows if row not in there and row[1]["name"] not in named]
    for name, part in parts.items():
        if all(path.is_file() and stand_in(path) is None for path in part.files):
            _check_part(name, part, found)
    return [_line(*row) for row in there]


def _file(path: Path, folder: Path) -> Found:
    name = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    if not path.is_file():
        return {"name": name, "fault": "is missing"}
    row: Found = {"name": name, "bytes": path.stat().st_size}
    instead = stand_in(path)
    return row if instead is None else {**row, "fault": instead}


def _check_part(name: str, part: Part, found: Found) -> None:
    """Names, shapes and types against the model; nothing of the weights is read."""
    try:
        part.check()
        for path, row in zip(part.files, found["parts"][name], strict=True):
            types = Counter(_types(path))
            if types:
                row["tensors"] = dict(types)
    except UserError as error:
        found["faults"].append(f"{name}: {error}")


def _types(path: Path) -> Iterator[str]:
    """The stored type of every tensor in a weight file."""
    if path.suffix == ".safetensors":
        yield from read_header(path)[1].values()
    elif path.suffix in TORCH_FILES:
        yield from _torch_types(read_torch_file(path))


def _torch_types(content: dict[str, Any]) -> Iterator[str]:
    for value in content.values():
        if isinstance(value, dict):
            yield from _torch_types(value)
        elif isinstance(value, torch.Tensor):
            yield str(value.dtype).removeprefix("torch.")


def _line(part: str, row: Found) -> str:
    if "fault" in row:
        return f"{part}: {row['name']} {row['fault']}"
    tensors = ", ".join(f"{count} tensors {kind}" for kind, count in row.get("tensors", {}).items())
    return f"{part}: {row['name']}, {format_bytes(row['bytes'])}{tensors and f', {tensors}'}"


def memory(model: TreeModel, found: Found) -> list[str]:
    """What a run needs and what is free, for the options given and for those that need less."""
    needs = found["needed_bytes"] = model.needed_bytes()
    free = found["free_bytes"] = available_bytes(model.device)
    found["settings"] = {}
    for name, check in model.memory_checks().items():
        try:
            check()
            found["settings"][name] = "fits"
        except InputError as error:
            found["settings"][name] = " ".join(str(error).split())
    if found["settings"]["as given"] != "fits":
        found["faults"].append(found["settings"]["as given"])
    there = "unknown" if free is None else format_bytes(free)
    return [
        *(f"{moment}: {_parts(parts)}" for moment, parts in needs.items()),
        f"free on {model.device}: {there}",
        *(
            f"{name}: {'fits' if outcome == 'fits' else 'does not fit'}"
            for name, outcome in found["settings"].items()
        ),
    ]


def _parts(parts: dict[str, int]) -> str:
    each = " + ".join(f"{name} {format_bytes(count)}" for name, count in parts.items() if count)
    return f"{each} = {format_bytes(sum(parts.values()))}"

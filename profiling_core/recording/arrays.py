"""The arrays of a profile, computed from the raw data of one run."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from profiling_core.files import installed_version
from profiling_core.profile.profile import (
    FLOAT16,
    FLOAT64,
    MAP_GRID,
    Profile,
    Run,
    Settings,
    Subject,
)
from profiling_core.recording.attention_share import foreground_share, high_attention
from profiling_core.recording.foreground import foreground_mask
from profiling_core.recording.run_data import Recording, products

Arrays = dict[str, np.ndarray]


def profile_of(
    recording: Recording,
    settings: Settings,
    facts: dict[str, Any],
    *,
    video: Tensor | None = None,
    number: int = 0,
) -> Profile:
    """A profile of one run, whose parts are added up.

    facts: prompt, seed and guidance; video: (3, F, H, W), for motion masks; number: of the run in
    its file, for masks from files.
    """
    subject = recording.subject
    arrays = step_arrays(recording) | delta_arrays(recording) | cost_arrays(recording)
    measured: dict[str, Any] = {}
    if subject.attention_steps:
        masks = foreground_masks(recording, settings, facts["guidance"], video, number)
        arrays |= attention_arrays(recording, settings, masks)
        measured = _attention_facts(recording, arrays["mask"])
    seconds = recording.model_seconds
    run = Run(
        **facts,
        **measured,
        device=_device_name(recording.device),
        dtype=str(recording.predictions[subject.branches[0]][0].dtypes[0]).removeprefix("torch."),
        torch=torch.__version__,
        seconds=recording.seconds,
        model_seconds=float(np.mean(seconds)) if seconds else None,
        made_by=f"profiling-dit {installed_version()}",
    )
    typed = {name: _typed(name, array) for name, array in arrays.items()}
    return Profile(settings, subject, (run,), typed)


def step_arrays(recording: Recording) -> Arrays:
    """l1, l1_relative, cosine and gram."""
    vectors = recording.vectors()
    gram = (products(vectors) / vectors.shape[1]).numpy()  # mean products
    steps, branches = recording.subject.steps, len(recording.subject.branches)
    found: dict[str, list[Any]] = {"l1": [], "l1_relative": [], "cosine": []}
    for first in range(0, branches * steps, steps):
        path = vectors[first : first + steps]
        change = (path[1:] - path[:-1]).abs().mean(dim=1)
        found["l1"].append(change)
        found["l1_relative"].append(change / path[:-1].abs().mean(dim=1).clamp_min(1e-12))
        found["cosine"].append(_drift(gram[first : first + steps, first : first + steps])[1])
    return {"gram": gram[None]} | {name: _rows(value) for name, value in found.items()}


def delta_arrays(recording: Recording) -> Arrays:
    """drift, delta_cosine, magnitude and the delta_gram of every list."""
    subject = recording.subject
    drift, cosine, arrays = [], [], {}
    for name, grams in recording.grams.items():
        arrays[f"delta_gram.{name}"] = np.stack(grams)
        per_block = [[_drift(own) for own in _diagonal(gram, subject.steps)] for gram in grams]
        drift.append([[pair[0] for pair in blocks] for blocks in per_block])
        cosine.append([[pair[1] for pair in blocks] for blocks in per_block])
    stacked = (np.concatenate(part, axis=1).swapaxes(1, 2)[None] for part in (drift, cosine))
    arrays["drift"], arrays["delta_cosine"] = stacked  # (1, C, S-1, B)
    return arrays | {"magnitude": _rows(recording.growth)}


def cost_arrays(recording: Recording) -> Arrays:
    """block_seconds, block_flops and sensitivity."""
    seconds = recording.block_seconds
    effects = [recording.sensitivity.get(step, np.nan) for step in range(recording.subject.steps)]
    unknown = np.full(len(recording.flops), np.nan)
    return {
        "block_seconds": (np.mean(seconds, axis=0) if seconds else unknown)[None],
        "block_flops": recording.flops,
        "sensitivity": np.array(effects)[None],
    }


def foreground_masks(
    recording: Recording,
    settings: Settings,
    guidance: float | None,
    video: Tensor | None,
    number: int,
) -> dict[int, Tensor]:
    """A mask (f, h, w) for every attention step; only pca and sam2 masks differ between steps."""
    subject = recording.subject

    kind, steps = settings.mask, subject.attention_steps
    given: dict[str, Any] = {"grid": subject.grid, "video": video, "path": settings.mask_source}
    if kind in ("pca", "sam2"):
        signals = {step: recording.signal(step, guidance) for step in steps}
        return {s: foreground_mask(kind, signal=signal, **given) for s, signal in signals.items()}
    return dict.fromkeys(steps, foreground_mask(kind, run=number, **given))


def attention_arrays(recording: Recording, settings: Settings, masks: dict[int, Tensor]) -> Arrays:
    """attention_share, attention_chance, attention_maps and mask."""
    subject = recording.subject
    blocks = sum(subject.model.block_lists.values())
    size = (len(subject.branches), len(subject.attention_steps), blocks)
    share, chance = np.empty(size), np.empty(size)
    for c, branch in enumerate(subject.branches):
        for a, step in enumerate(subject.attention_steps):
            for block in range(blocks):
                received = recording.received[branch, step, block].mean()
                high = high_attention(received, settings.high_share, settings.high_threshold)
                share[c, a, block], chance[c, a, block] = foreground_share(
                    high, masks[step], subject.grid
                )
    first = subject.branches[0]
    maps = [
        [_map(recording.received[first, step, block].mean(), subject) for block in range(blocks)]
        for step in subject.map_steps
    ]
    mask = torch.stack([masks[step].float() for step in subject.attention_steps]).mean(dim=0)
    return {
        "attention_share": share[None],
        "attention_chance": chance[None],
        "attention_maps": np.array(maps)[None],
        "mask": mask[None].numpy(),
    }


def _drift(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|v_s - v_s-1| / |v_s-1| and the cosine of consecutive vectors, from their products."""
    squares = np.maximum(np.diag(gram), 1e-30)
    mixed = np.diag(gram, 1)
    change = np.maximum(squares[1:] + squares[:-1] - 2 * mixed, 0)
    return np.sqrt(change / squares[:-1]), mixed / np.sqrt(squares[1:] * squares[:-1])


def _diagonal(gram: np.ndarray, steps: int) -> list[np.ndarray]:
    """Every block's own (S, S) products."""
    return [gram[n : n + steps, n : n + steps] for n in range(0, len(gram), steps)]


def _map(received: Tensor, subject: Subject) -> np.ndarray:
    """Attention over its mean, pooled to at most MAP_GRID."""
    clip = (received / received.mean()).view(1, 1, *subject.grid)
    frames, rows, columns = (min(n, most) for n, most in zip(subject.grid, MAP_GRID, strict=True))
    return F.adaptive_avg_pool3d(clip, (frames, rows, columns))[0, 0].numpy()


def _attention_facts(recording: Recording, mask: np.ndarray) -> dict[str, Any]:
    received = list(recording.received.values())
    errors = [error for one in received if (error := one.relative_error()) is not None]
    facts: dict[str, Any] = {"foreground": float(mask.mean())}
    if errors:
        facts["attention_error"] = float(np.mean(errors))
        facts["attention_rows"] = round(float(np.mean([one.sampled for one in received])))
    return facts


def _rows(values: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(value, np.float64) for value in values])[None]


def _typed(name: str, array: np.ndarray) -> np.ndarray:
    wide = name.startswith(FLOAT64)
    return array.astype(np.float64 if wide else np.float16 if name in FLOAT16 else np.float32)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"

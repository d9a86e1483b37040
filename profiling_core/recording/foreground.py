"""Foreground masks on the token grid: from a model's prediction, from the clip, or from a file.

pca     directions of the prediction's first three principal components, see pca_mask.py
sam2    SAM 2 on the three components as RGB (the paper's figure 2), see sam2_mask.py
motion  tokens that differ from the clip's median in time
file    masks on disk

Axes: C channels, F frames, H rows and W columns of a clip or latent; f, h, w those of the tokens.
A causal VAE makes the first latent frame of one frame and each further one of four.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from profiling_core.errors import ProfileError
from profiling_core.recording.pca_mask import (
    TokenGrid,
    otsu,
    pca_mask,
    principal_components,
    to_rgb,
)
from profiling_core.recording.sam2_mask import check_weights, sam2_mask

Needed = TypeVar("Needed")

FRAMES_PER_LATENT = 4
HALF = 0.5 - 1e-6  # means of fractions miss a half by rounding


def foreground_mask(
    kind: str,
    *,
    grid: TokenGrid,
    signal: Tensor | None = None,
    video: Tensor | None = None,
    path: str | Path | None = None,
    run: int = 0,
) -> Tensor:
    """Foreground tokens, bool (f, h, w) on the CPU, by one of the kinds of the module's docstring.

    `signal`: a prediction (C, F, H, W), for pca and sam2; `video`: (3, F, H, W), for motion;
    `path`: the weights' folder for sam2, the masks for file, whose row `run` is taken.
    """
    place = None if path is None else Path(path)
    if kind == "pca":
        mask = pca_mask(_given(signal, kind, "a prediction"), grid)
    elif kind == "sam2":
        folder = _given(place, kind, "the folder of its weights")
        components = principal_components(_given(signal, kind, "a prediction"))
        mask = sam2_mask(to_rgb(components), folder, grid)
    elif kind == "motion":
        mask = motion_mask(_given(video, kind, "the decoded clip"), grid)
    elif kind == "file":
        mask = file_mask(_given(place, kind, "the path of the masks"), run, grid)
    else:
        raise ProfileError(f"foreground mask {kind!r}: expected pca, sam2, motion or file")
    return mask.cpu()


def check_source(kind: str, path: str | None, run: int) -> None:
    """ProfileError for masks, or weights, that are not there: before a run that needs them."""
    if kind == "sam2":
        check_weights(_given(None if path is None else Path(path), kind, "its weights' folder"))
    elif kind == "file":
        _read(_given(None if path is None else Path(path), kind, "the path of the masks"), run)


def _given(value: Needed | None, kind: str, what: str) -> Needed:
    if value is None:
        raise ProfileError(f"a foreground mask by {kind} needs {what}")
    return value


def motion_mask(video: Tensor, grid: TokenGrid) -> Tensor:
    """Tokens (f, h, w) where a clip (3, F, H, W), in any range, changes most.

    Mean absolute difference from the median over all frames, which shows the background wherever
    the subject stays for less than half of the clip; averaged over every token's pixels and frames,
    split by Otsu's threshold. A clip without any change has no foreground.
    """
    frames, rows, columns = grid
    if video.ndim != 4 or video.shape[1] < max(3, frames):
        raise ProfileError(
            f"no motion in a clip {tuple(video.shape)}: expected (channels, frames, rows, columns) "
            f"with at least {max(3, frames)} frames; take another mask"
        )
    if video.shape[2] % rows or video.shape[3] % columns:
        raise ProfileError(
            f"a clip of {video.shape[2]} x {video.shape[3]} pixels on {rows} x {columns} tokens: "
            "expected a whole number of pixels per token"
        )
    bands = video.split(video.shape[2] // rows, dim=2)  # a row of tokens at a time, for memory
    change = torch.stack([_change(band, columns) for band in bands], dim=1)  # (F, h, w)
    change = _frames_of_tokens(change, frames)
    return change > otsu(change)


def _change(band: Tensor, columns: int) -> Tensor:
    """Difference of a band (C, F, H/h, W) from its median in time: (F, w)."""
    band = band.float().contiguous()  # torch's median of an expanded clip is wrong
    change = (band - band.median(dim=1, keepdim=True).values).abs().mean(dim=(0, 2))
    return change.unflatten(1, (columns, -1)).mean(dim=2)


def _frames_of_tokens(values: Tensor, frames: int) -> Tensor:
    """Means (f, h, w) over each token's frames of (F, h, w): one, then four each; or even."""
    if len(values) != FRAMES_PER_LATENT * (frames - 1) + 1:
        return F.adaptive_avg_pool3d(values[None, None], (frames, *values.shape[1:]))[0, 0]
    later = values[1:].unflatten(0, (frames - 1, FRAMES_PER_LATENT)).mean(dim=1)
    return torch.cat([values[:1], later])


def file_mask(path: str | Path, run: int, grid: TokenGrid) -> Tensor:
    """A mask from disk as tokens (f, h, w), foreground where half of the token's area or more is.

    A .npy file (F, H, W) or (runs, F, H, W) of bool, 0..1 or 0..255, or a folder of PNG frames in
    the order of their names. F is that of the tokens or of the clip, 4 (f - 1) + 1; H and W are
    multiples of the tokens' rows and columns.
    """
    path = Path(path)
    found = _read(path, run)
    frames, rows, columns = grid
    video = FRAMES_PER_LATENT * (frames - 1) + 1
    if found.shape[0] not in (frames, video) or found.shape[1] % rows or found.shape[2] % columns:
        raise ProfileError(
            f"masks {path}: found {found.shape[0]} frames of {found.shape[1]} x {found.shape[2]}, "
            f"expected {frames} or {video} frames of a multiple of {rows} x {columns}"
        )
    blocks = _inside(found, path).reshape(len(found), rows, -1, columns, found.shape[2] // columns)
    area = torch.from_numpy(blocks.mean(axis=(2, 4), dtype=np.float32))  # (F, h, w)
    return (area if len(area) == frames else _frames_of_tokens(area, frames)) >= HALF


def _read(path: Path, run: int) -> np.ndarray:
    return _read_png(path) if path.is_dir() else _read_npy(path, run)


def _read_npy(path: Path, run: int) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ProfileError(
            f"masks {path}: {error}; expected a .npy file or a folder of PNG frames"
        ) from None
    if not isinstance(found, np.ndarray) or found.ndim not in (3, 4) or 0 in found.shape:
        shape = found.shape if isinstance(found, np.ndarray) else type(found).__name__
        raise ProfileError(
            f"masks {path}: found {shape}, expected (frames, rows, columns) or "
            "(runs, frames, rows, columns)"
        )
    if found.ndim == 3:
        return found
    if not 0 <= run < len(found):
        raise ProfileError(f"masks {path}: holds {len(found)} runs, counted from 0; no run {run}")
    return found[run]


def _read_png(folder: Path) -> np.ndarray:
    from PIL import Image

    frames: list[np.ndarray] = []
    for file in sorted(folder.glob("*.png")):
        try:
            with Image.open(file, formats=["PNG"]) as image:
                frames.append(np.asarray(image.convert("L")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ProfileError(f"mask {file}: {error}; expected a PNG image") from None
        if frames[-1].shape != frames[0].shape:
            raise ProfileError(
                f"mask {file}: found {frames[-1].shape[0]} x {frames[-1].shape[1]}, expected "
                f"{frames[0].shape[0]} x {frames[0].shape[1]} as of the first frame"
            )
    if not frames:
        raise ProfileError(f"masks {folder}: no .png file in this folder")
    return np.stack(frames)


def _inside(found: np.ndarray, path: Path) -> np.ndarray:
    """Bool: at least half of the full value, which is 1 or (where any value is larger) 255."""
    if found.dtype.kind not in "buif":
        raise ProfileError(f"masks {path}: dtype {found.dtype}, expected bool, integers or floats")
    low, high = float(found.min()), float(found.max())
    if not (0 <= low and high <= 255):  # NaN fails too
        raise ProfileError(f"masks {path}: values from {low} to {high}, expected 0..1 or 0..255")
    return found >= (0.5 if high <= 1 else 127.5)

"""Foreground masks on the token grid: from a model's prediction, from the clip, or the user's own.

pca     directions of the prediction's first three principal components, split by Otsu's threshold
sam2    SAM 2 on the three components as RGB (the paper's figure 2); see sam2.py
motion  what differs from the clip's median in time
file    masks on disk

Axes: C channels, F frames, H rows and W columns of a clip or latent; f, h, w those of the tokens.
A causal VAE makes the first latent frame of one frame and each further one of four.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from profiling_core.profile import ProfileError

Grid = tuple[int, int, int]
Needed = TypeVar("Needed")

FRAMES_PER_LATENT = 4
SMALLEST_SIDE = 0.005  # of the tokens: outliers alone are no foreground
NO_COMPONENT = 1e-5  # of the first component's deviation
CLIPPED_PERCENT = 1.0  # at each end of a colour channel
HALF = 0.5 - 1e-6  # means of fractions miss a half by rounding


def foreground_mask(
    kind: str,
    *,
    grid: Grid,
    signal: Tensor | None = None,
    video: Tensor | None = None,
    path: str | Path | None = None,
    run: int = 0,
) -> Tensor:
    """Foreground tokens, bool (f, h, w) on the CPU, by one of the kinds of the module's docstring.

    `signal`: a prediction (C, F, H, W), for pca and sam2; `video`: (3, F, H, W), for motion;
    `path`: the weights' folder for sam2, the masks for file, whose row `run` is taken.
    """
    if kind == "pca":
        mask = pca_mask(_given(signal, kind, "a prediction"), grid)
    elif kind == "sam2":
        from profiling_core.sam2 import sam2_mask

        folder = _given(path, kind, "the folder of its weights")
        components = principal_components(_given(signal, kind, "a prediction"))
        mask = sam2_mask(to_rgb(components), folder, grid)
    elif kind == "motion":
        mask = motion_mask(_given(video, kind, "the decoded clip"), grid)
    elif kind == "file":
        mask = file_mask(_given(path, kind, "the path of the masks"), run, grid)
    else:
        raise ProfileError(f"foreground mask {kind!r}: expected pca, sam2, motion or file")
    return mask.cpu()


def _given(value: Needed | None, kind: str, what: str) -> Needed:
    if value is None:
        raise ProfileError(f"a foreground mask by {kind} needs {what}")
    return value


# -- principal components


def principal_components(signal: Tensor, count: int = 3) -> Tensor:
    """Projections (count, F, H, W) of a signal (C, F, H, W) on its first principal components.

    Channels are the features, positions the samples; the covariance is fp64. The largest weight of
    every component is positive, which makes the sign the same everywhere.
    """
    return _project(signal, _loadings(signal, count)).float()


def to_rgb(components: Tensor) -> Tensor:
    """Three components (3, F, H, W) as uint8 (F, H, W, 3).

    Each is scaled so that its 1st and 99th percentile are 0 and 255; a constant one is 127.
    """
    channels = []
    for component in components.float().cpu():
        low, high = np.percentile(component.numpy(), (CLIPPED_PERCENT, 100 - CLIPPED_PERCENT))
        level = (component - low) / (high - low) if high > low else torch.full_like(component, 0.5)
        channels.append((255 * level).clamp(0, 255).to(torch.uint8))
    return torch.stack(channels, dim=-1).to(components.device)


def pca_mask(signal: Tensor, grid: Grid) -> Tensor:
    """Foreground tokens (f, h, w) of a signal (C, F, H, W): where `saliency` is positive."""
    return saliency(signal, grid) > 0


def saliency(signal: Tensor, grid: Grid) -> Tensor:
    """How far a token is on the foreground's side of the best split: (f, h, w) fp32, 0 between.

    The signal is averaged over every token's patch. Its principal axes are taken after smoothing
    over neighbours (1 2 1 along frames, rows and columns), since a predicted velocity holds white
    noise; the tokens themselves stay sharp, since a subject may be a few tokens wide. Neither the
    first component nor any other need be the one that separates the subject: of the first three,
    scaled to unit variance, every sum and difference is split by Otsu's threshold. Of both sides
    of all splits the one wins whose `looseness`, times the share of variance that the split leaves
    within the sides, is smallest. All zero when no side holds 0.5 % of the tokens.
    """
    tokens = _pool(signal, grid)
    shown = _project(tokens, _loadings(_smooth(tokens), min(3, len(tokens)))).cpu()
    scale = shown.flatten(1).std(dim=1, correction=0)
    scale[scale <= NO_COMPONENT * scale.max()] = float("inf")  # rounding alone: silent
    shown /= scale[:, None, None, None]
    best, smallest = torch.zeros(grid, dtype=torch.float64), float("inf")
    for weights in product((-1.0, 0.0, 1.0), repeat=len(shown)):
        side = torch.einsum("c,cfhw->fhw", shown.new_tensor(weights), shown)
        side -= otsu(side)  # weights and their negatives: both sides are tried
        cost = looseness(side > 0) * _left_within(side)
        if cost < smallest:
            best, smallest = side, cost
    return best.float().to(signal.device)


def looseness(side: Tensor) -> float:
    """How little a set of tokens (f, h, w) looks like a subject: smaller is more compact.

    Mean squared distance of its tokens to their own frame's centroid, over that of all tokens of
    the grid to theirs, plus the share of the frames' border that it covers. A small disc scores
    about a tenth, half of the picture one, its surroundings and texture more. Infinite below 0.5 %
    of the tokens.
    """
    if side.double().mean() < SMALLEST_SIDE:
        return float("inf")
    whole = torch.ones_like(side)
    border = whole[0].clone()
    border[1:-1, 1:-1] = False
    return _spread(side) / max(_spread(whole), 1e-12) + float(side[:, border].double().mean())


def otsu(values: Tensor) -> float:
    """Otsu's threshold; of constant values their own, so that nothing lies above it."""
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values.detach().cpu().flatten().numpy()))


def _left_within(side: Tensor) -> float:
    """Share of the variance of values that their split at 0 leaves within its two sides."""
    above = side > 0
    if above.all() or not above.any():
        return 1.0
    within = sum(part.var(correction=0) * part.numel() for part in (side[above], side[~above]))
    return float(within / (side.var(correction=0) * side.numel()))


def _spread(side: Tensor) -> float:
    """Mean squared distance of tokens to the centroid of their frame, in tokens squared."""
    where = torch.nonzero(side).double()  # (tokens, 3): frame, row, column
    frame = where[:, 0].long()
    count = torch.bincount(frame, minlength=len(side)).clamp_min(1)
    total = 0.0
    for place in (where[:, 1], where[:, 2]):
        centre = torch.bincount(frame, place, minlength=len(side)) / count
        total += float((place - centre[frame]).square().mean())
    return total


def _loadings(signal: Tensor, count: int) -> Tensor:
    """The first `count` principal axes of the channels: (C, count) fp64."""
    if signal.ndim != 4 or len(signal) < count:
        raise ProfileError(
            f"a signal {tuple(signal.shape)} has no {count} principal components: expected "
            f"(channels, frames, rows, columns) with at least {count} channels"
        )
    samples = signal.flatten(1).double()
    if not torch.isfinite(samples).all():
        raise ProfileError("the prediction holds NaN or infinity: no foreground can be found in it")
    samples = samples - samples.mean(dim=1, keepdim=True)
    axes = torch.linalg.eigh(samples @ samples.T).eigenvectors  # ascending
    axes = axes.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return axes * torch.where(largest < 0, -1.0, 1.0)


def _project(signal: Tensor, axes: Tensor) -> Tensor:
    samples = signal.flatten(1).double()
    samples = samples - samples.mean(dim=1, keepdim=True)
    return (axes.T @ samples).reshape(-1, *signal.shape[1:])


def _smooth(tokens: Tensor) -> Tensor:
    """(1 2 1) / 4 along frames, rows and columns of (C, f, h, w), edges repeated."""
    for axis in (1, 2, 3):
        last = tokens.shape[axis] - 1
        at = torch.arange(last + 1, device=tokens.device)
        before, after = ((at + step).clamp(0, last) for step in (-1, 1))
        tokens = (
            tokens.index_select(axis, before) + 2 * tokens + tokens.index_select(axis, after)
        ) / 4
    return tokens


def _pool(signal: Tensor, grid: Grid) -> Tensor:
    """Means over the patch of every token: (C, f, h, w) fp32."""
    if signal.ndim != 4 or any(n % g for n, g in zip(signal.shape[1:], grid, strict=True)):
        raise ProfileError(
            f"a signal {tuple(signal.shape)} on a grid of {grid} tokens: expected (channels, "
            "frames, rows, columns) with a whole number of positions per token"
        )
    return F.adaptive_avg_pool3d(signal.float()[None], grid)[0]


# -- the moving part of a clip


def motion_mask(video: Tensor, grid: Grid) -> Tensor:
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
    """Means (f, h, w) over the frames of every token of (F, h, w): one, then four each; or even."""
    if len(values) != FRAMES_PER_LATENT * (frames - 1) + 1:
        return F.adaptive_avg_pool3d(values[None, None], (frames, *values.shape[1:]))[0, 0]
    later = values[1:].unflatten(0, (frames - 1, FRAMES_PER_LATENT)).mean(dim=1)
    return torch.cat([values[:1], later])


# -- masks on disk


def file_mask(path: str | Path, run: int, grid: Grid) -> Tensor:
    """A user's mask as tokens (f, h, w): foreground where at least half of the token's area is.

    A .npy file (F, H, W) or (runs, F, H, W) of bool, 0..1 or 0..255, or a folder of PNG frames in
    the order of their names. F is that of the tokens or of the clip, 4 (f - 1) + 1; H and W are
    multiples of the tokens' rows and columns.
    """
    path = Path(path)
    found = _read_png(path) if path.is_dir() else _read_npy(path, run)
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
    """Bool: what is at least half of the value that means all, 1 or (where any is larger) 255."""
    if found.dtype.kind not in "buif":
        raise ProfileError(f"masks {path}: dtype {found.dtype}, expected bool, integers or floats")
    low, high = float(found.min()), float(found.max())
    if not (0 <= low and high <= 255):  # NaN fails too
        raise ProfileError(f"masks {path}: values from {low} to {high}, expected 0..1 or 0..255")
    return found >= (0.5 if high <= 1 else 127.5)

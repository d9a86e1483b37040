"""Foreground tokens from a prediction's principal components, split by Otsu's threshold.

Axes: C channels, F frames, H rows and W columns of a latent; f, h, w those of the tokens.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from profiling_core.errors import ProfileError

TokenGrid = tuple[int, int, int]

SMALLEST_SIDE = 0.005  # of the tokens: outliers are no foreground
NO_COMPONENT = 1e-5  # of the first component's deviation
BINS = 256  # of the histogram that Otsu's threshold is taken from
CLIPPED_PERCENT = 1.0  # at each end of a colour channel


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


def pca_mask(signal: Tensor, grid: TokenGrid) -> Tensor:
    """Foreground tokens (f, h, w) of a signal (C, F, H, W): where `saliency` is positive."""
    return saliency(signal, grid) > 0


def saliency(signal: Tensor, grid: TokenGrid) -> Tensor:
    """How far a token is on the foreground's side of the best split: (f, h, w) fp32, 0 between.

    The signal is averaged over every token's patch. Its principal axes are taken after smoothing
    over neighbours (1 2 1 along frames, rows and columns), since a predicted velocity holds white
    noise; the tokens themselves stay sharp, since a subject may be a few tokens wide. No single
    component need separate the subject: every sum and difference of the first three, scaled to unit
    variance, is split by Otsu's threshold. The foreground is the side with the smallest product of
    `looseness` and the share of variance that the split leaves within the sides. All zero when no
    side holds 0.5 % of the tokens.
    """
    tokens = _pool(signal, grid)
    shown = _project(tokens, _loadings(_smooth(tokens), min(3, len(tokens)))).cpu()
    scale = shown.flatten(1).std(dim=1, correction=0)
    scale[scale <= NO_COMPONENT * scale.max()] = float("inf")  # rounding alone: ignored
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
    """Otsu's threshold; of constant values their own, so that nothing lies above it.

    The centre of one of BINS equal bins: the one whose values are the last below the split with
    the largest variance between both sides. scikit-image's threshold_otsu to the bit.
    """
    array = values.detach().cpu().flatten().numpy()
    if (array == array[0]).all():
        return float(array[0])
    counts, edges = np.histogram(array, BINS)
    counts, centres = counts.astype(np.float32), (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    sums = counts * centres
    mean_below = np.cumsum(sums) / below
    mean_above = np.cumsum(sums[::-1])[::-1] / above
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[np.argmax(between)])


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


def _pool(signal: Tensor, grid: TokenGrid) -> Tensor:
    """Means over the patch of every token: (C, f, h, w) fp32."""
    if signal.ndim != 4 or any(n % g for n, g in zip(signal.shape[1:], grid, strict=True)):
        raise ProfileError(
            f"a signal {tuple(signal.shape)} on a grid of {grid} tokens: expected (channels, "
            "frames, rows, columns) with a whole number of positions per token"
        )
    return F.adaptive_avg_pool3d(signal.float()[None], grid)[0]

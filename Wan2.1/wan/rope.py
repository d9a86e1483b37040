"""Rotary position embedding over the (frame, row, column) grid of a clip."""

import torch
import torch.nn.functional as F
from torch import Tensor

THETA = 10000.0


def pairs_per_axis(head_dim: int) -> tuple[int, int, int]:
    """How many of the head_dim / 2 channel pairs rotate by frame, by row and by column."""
    spatial = head_dim // 6
    return head_dim // 2 - 2 * spatial, spatial, spatial


def axis_turns(length: int, pairs: int, device: torch.device) -> Tensor:
    """Unit complex factors of positions 0 .. length - 1 on one axis, (length, pairs) complex128:
    the angles are position * theta^(-i / pairs).
    """
    exponents = torch.arange(pairs, dtype=torch.float64, device=device) / pairs
    positions = torch.arange(length, dtype=torch.float64, device=device)
    angles = torch.outer(positions, 1.0 / THETA**exponents)
    return torch.polar(torch.ones_like(angles), angles)


def rotation(
    grid: tuple[int, int, int], head_dim: int, length: int, device: torch.device
) -> Tensor:
    """Unit complex factor per token and channel pair, complex128 (length, 1, head_dim / 2).

    Rows past the grid are padding and get the factor 1: they are not rotated.
    """
    frames, rows, columns = grid
    t, h, w = (
        axis_turns(size, pairs, device)
        for size, pairs in zip(grid, pairs_per_axis(head_dim), strict=True)
    )
    turns = torch.cat(
        [
            t[:, None, None].expand(-1, rows, columns, -1),
            h[None, :, None].expand(frames, -1, columns, -1),
            w[None, None, :].expand(frames, rows, -1, -1),
        ],
        dim=-1,
    ).flatten(0, 2)  # (n, head_dim / 2)
    return F.pad(turns, (0, 0, 0, length - len(turns)), value=1.0)[:, None]


def apply_rope(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate the channel pairs (2i, 2i + 1) of x (B, L, heads, head_dim), in place where x is fp32.

    Each product is one of float64, as in the official code: after rounding to bf16 the smallest
    differences would grow. In place it is one pass on a GPU, which converts on the way.
    """
    x = x.float()
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(factors)
    return x

"""Rotary position embedding over the (frame, row, column) grid of a clip."""

import torch
from torch import Tensor

THETA = 10000.0


def pairs_per_axis(head_dim: int) -> tuple[int, int, int]:
    """How many of the head_dim / 2 channel pairs rotate by frame, by row and by column."""
    spatial = head_dim // 6
    return head_dim // 2 - 2 * spatial, spatial, spatial


def axis_angles(length: int, pairs: int, device: torch.device) -> Tensor:
    """Angles of positions 0 .. length - 1 on one axis, float64: position * theta^(-i / pairs)."""
    exponents = torch.arange(pairs, dtype=torch.float64, device=device) / pairs
    positions = torch.arange(length, dtype=torch.float64, device=device)
    return torch.outer(positions, 1.0 / THETA**exponents)  # (length, pairs)


def rotation(
    grid: tuple[int, int, int], head_dim: int, length: int, device: torch.device
) -> Tensor:
    """Unit complex factor per token and channel pair, complex128 (length, 1, head_dim / 2).

    Rows past the grid are padding and get the factor 1: they are not rotated.
    """
    frames, rows, columns = grid
    t, h, w = (
        axis_angles(size, pairs, device)
        for size, pairs in zip(grid, pairs_per_axis(head_dim), strict=True)
    )
    angles = torch.cat(
        [
            t[:, None, None].expand(-1, rows, columns, -1),
            h[None, :, None].expand(frames, -1, columns, -1),
            w[None, None, :].expand(frames, rows, -1, -1),
        ],
        dim=-1,
    ).flatten(0, 2)  # (n, head_dim / 2)
    angles = torch.nn.functional.pad(angles, (0, 0, 0, length - angles.shape[0]))[:, None]
    return torch.polar(torch.ones_like(angles), angles)


def apply_rope(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate the channel pairs (2i, 2i + 1) of x (B, L, heads, head_dim); the result is fp32.

    In float64 like the official code: after rounding to bf16 the smallest differences would grow.
    As complex numbers it is one pass, faster than fp32 arithmetic on the two halves.
    """
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))  # (B, L, heads, head_dim / 2)
    return torch.view_as_real(pairs * factors).flatten(-2).float()

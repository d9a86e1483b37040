"""Rotary position embedding over the (frame, row, column) grid of a clip, theta 256."""

import torch
from torch import Tensor

THETA = 256.0


def axis_angles(length: int, dim: int, theta: float = THETA) -> Tensor:
    """Angles of positions 0 .. length - 1 on one axis, fp32 (length, dim / 2): p / theta^(2k/d)."""
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    return torch.outer(torch.arange(length).float(), frequencies)


def rope_tables(
    grid: tuple[int, int, int],
    dims: tuple[int, int, int],
    theta: float = THETA,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, fp32 (N, head_dim) each, of all tokens of a grid, the frame slowest.

    dims: how many of the head's channels turn with the frame, the row and the column; every angle
    stands twice, for the neighbours (2k, 2k + 1).
    """
    frames, rows, columns = grid
    t, h, w = (
        axis_angles(size, dim, theta).repeat_interleave(2, dim=1)
        for size, dim in zip(grid, dims, strict=True)
    )
    angles = torch.cat(
        [
            t[:, None, None].expand(-1, rows, columns, -1),
            h[None, :, None].expand(frames, -1, columns, -1),
            w[None, None, :].expand(frames, rows, -1, -1),
        ],
        dim=-1,
    ).flatten(0, 2)  # (N, head_dim)
    return angles.cos().to(device), angles.sin().to(device)


def factors(cos: Tensor, sin: Tensor) -> Tensor:
    """Unit complex factor per token and channel pair, (N, 1, head_dim / 2), of the tables."""
    return torch.complex(cos[:, ::2], sin[:, ::2])[:, None]


def apply_rope(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the channel pairs (2k, 2k + 1) of x (B, N, heads, head_dim) in fp32, and x in place."""
    full = x.float()
    torch.view_as_complex(full.unflatten(-1, (-1, 2))).mul_(turns)
    return x.copy_(full)

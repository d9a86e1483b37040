"""diffusers' Euler solver for flow matching, run on the official noise levels.

diffusers' own grid differs, so its levels are replaced by ours. A run may visit a subset of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from .sigmas import sigma_grid

TRAIN_TIMESTEPS = 1000


def build_scheduler(
    steps: int,
    shift: float,
    device: torch.device | str = "cpu",
    visit: Sequence[int] | None = None,
    *,
    reverse: bool = True,
) -> FlowMatchEulerDiscreteScheduler:
    """The solver, set up to visit the steps `visit` of the grid (all of them by default).

    `scheduler.sigmas` holds the visited levels and the grid's end (fp32, on the CPU),
    `scheduler.timesteps` their 1000 * sigma in fp32, on `device`. `step` wants fp32 predictions:
    what it returns has their type.
    """
    grid = sigma_grid(steps, shift, reverse)
    visited = grid[:-1] if visit is None else grid[list(visit)]
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=1.0)
    scheduler.set_timesteps(sigmas=visited)
    scheduler.sigmas = torch.from_numpy(np.append(visited, grid[-1:]))
    scheduler.timesteps = (scheduler.sigmas[:-1] * TRAIN_TIMESTEPS).to(device)
    scheduler.set_begin_index(0)  # else the first timestep is looked up by value, on the device
    return scheduler

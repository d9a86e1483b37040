"""diffusers' UniPC and DPM++ solvers, run on the official noise levels.

diffusers' own grids differ (UniPC from 1 to 0.001, DPM++ from 0.999), so its levels are replaced
by ours. A run may visit a subset of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from .sigmas import sigma_grid

TRAIN_TIMESTEPS = 1000

Scheduler = UniPCMultistepScheduler | DPMSolverMultistepScheduler


def build_scheduler(
    solver: str,
    steps: int,
    shift: float,
    device: torch.device | str = "cpu",
    visit: Sequence[int] | None = None,
) -> Scheduler:
    """The solver, set up to visit the steps `visit` of the grid (all of them by default).

    `scheduler.sigmas` holds the visited levels and a final 0 (fp32, on the CPU),
    `scheduler.timesteps` their 1000 * sigma truncated to int64, on `device`.
    """
    grid = sigma_grid(solver, steps, shift)
    visited = grid if visit is None else grid[list(visit)]
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    if solver == "unipc":
        scheduler = UniPCMultistepScheduler(num_train_timesteps=TRAIN_TIMESTEPS, **flow)
    else:
        scheduler = DPMSolverMultistepScheduler(num_train_timesteps=TRAIN_TIMESTEPS, **flow)
    scheduler.set_timesteps(len(visited), device=device)
    scheduler.sigmas = torch.from_numpy(np.append(visited, 0.0).astype(np.float32))
    timesteps = torch.from_numpy(visited * TRAIN_TIMESTEPS)
    scheduler.timesteps = timesteps.to(device=device, dtype=torch.int64)
    # Without a begin index the solver looks its first timestep up by value and, where the first
    # two are equal, starts at the second: one level is skipped and the last step fails.
    scheduler.set_begin_index(0)
    return scheduler

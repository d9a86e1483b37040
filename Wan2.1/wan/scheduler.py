"""diffusers' UniPC and DPM++ solvers, run on the official noise levels.

diffusers' own grids differ (UniPC from 1 to 0.001, DPM++ from 0.999), so its levels are replaced
by ours. A run may visit a subset of them. No step waits for the device.
"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from .sigmas import sigma_grid

TRAIN_TIMESTEPS = 1000

Scheduler = UniPCMultistepScheduler | DPMSolverMultistepScheduler
Weights = Sequence[tuple[float, float, float]]  # c, d and p of every visited step


class UniPC(UniPCMultistepScheduler):
    """diffusers' UniPC of order 2 (bh2, predicting x0) with its coefficients on the host.

    diffusers moves levels to the device, six a step, and solves there; each is a wait for it. With
    the noise level s, a = 1 - s, l = ln a - ln s, h = l_t - l_0, r = (l_1 - l_0) / h,
    B = exp(-h) - 1, predictions m of x0, D_1 = (m_1 - m_0) / r and D_t = m_t - m_0,

        x_t = s_t / s_0 x - a_t B m_0 - a_t B (p D_1 + c D_t)

    predicts with p = 1/2, c = 0 and corrects with p, c that solve the two conditions of order 2;
    at order 1 there is no D_1, and c = 1/2.

    weights, of a fitted plan: a corrected latent gets c (m_t - m_0) + d (m_0 - m_1) more, and a
    predicted one p (m_0 - m_1).
    """

    weights: Weights = ()

    def multistep_uni_p_bh_update(
        self, model_output: Tensor, *, sample: Tensor, order: int
    ) -> Tensor:
        start, scale, first = self._parts(sample, self.step_index + 1, order)[:3]
        latent = start if first is None else start - scale * (0.5 * first)
        if not self.weights:
            return latent
        return latent + self.weights[self.step_index][2] * self._last_change()

    def multistep_uni_c_bh_update(
        self, this_model_output: Tensor, *, last_sample: Tensor, this_sample: Tensor, order: int
    ) -> Tensor:
        start, scale, first, r, h = self._parts(last_sample, self.step_index, order)
        now = this_model_output - self.model_outputs[-1]
        if self.weights:
            c, d, _ = self.weights[self.step_index]
            start = start + c * now + d * self._last_change()
        if first is None:
            return start - scale * (0.5 * now)
        b = torch.expm1(-h)
        one = b / -h - 1
        two = one / -h - 0.5
        points = torch.stack((r, torch.ones(())))
        rows = torch.stack((torch.ones(2), points))
        p, c = torch.linalg.solve(rows, torch.stack((one / b, two * 2 / b)))
        return start - scale * (p * first + c * now)

    def _parts(
        self, x: Tensor, to: int, order: int
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """The step of order 1 to level number `to`, a_t B, D_1, r and h."""
        sigmas = self.sigmas[[to, to - 1, to - order]]
        alphas = 1 - sigmas
        log_ratios = torch.log(alphas) - torch.log(sigmas)
        m0, h = self.model_outputs[-1], log_ratios[0] - log_ratios[1]
        scale = alphas[0] * torch.expm1(-h)
        start = sigmas[0] / sigmas[1] * x - scale * m0
        r = (log_ratios[2] - log_ratios[1]) / h
        first = (self.model_outputs[-2] - m0) / r if order == 2 else None
        return start, scale, first, r, h

    def _last_change(self) -> Tensor | float:
        """Between the last two predictions of x0; 0 where there is one."""
        older, newest = self.model_outputs
        return 0.0 if older is None else newest - older


def build_scheduler(
    solver: str,
    steps: int,
    shift: float,
    device: torch.device | str = "cpu",
    visit: Sequence[int] | None = None,
    weights: Weights = (),
) -> Scheduler:
    """The solver, set up to visit the steps `visit` of the grid (all of them by default).

    weights: of UniPC with a fitted plan, for every visited step.

    `scheduler.sigmas` holds the visited levels and a final 0 (fp32, on the CPU),
    `scheduler.timesteps` their 1000 * sigma truncated to int64, on `device`.
    """
    grid = sigma_grid(solver, steps, shift)
    visited = grid if visit is None else grid[list(visit)]
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    if solver == "unipc":
        scheduler: Scheduler = UniPC(num_train_timesteps=TRAIN_TIMESTEPS, **flow)
        scheduler.weights = tuple(weights)
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

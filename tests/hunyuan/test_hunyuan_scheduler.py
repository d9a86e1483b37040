"""Noise levels and Euler steps against the figures of the official sampler."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from hyvideo.scheduler import build_scheduler
from hyvideo.sigmas import sigma_grid, sigmas_fp32
from profiling_core.errors import InputError


def official_levels(steps: int, shift: float) -> Tensor:
    line = torch.linspace(1, 0, steps + 1)
    return shift * line / (1 + (shift - 1) * line)


def toy_velocity(x: Tensor, t: Tensor) -> Tensor:
    """A nonlinear model of latents (1, 16, 3, 6, 8), the same in every process."""
    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(5)) / 4
    return torch.einsum("oc,bcfhw->bofhw", mix, torch.tanh(x)) + x * float(t) / 1000


def start() -> Tensor:
    return torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(6))


def trajectory(scheduler: FlowMatchEulerDiscreteScheduler) -> Tensor:
    x, visited = start(), []
    for t in scheduler.timesteps:
        x = scheduler.step(toy_velocity(x, t), t, x, return_dict=False)[0]
        visited.append(x)
    return torch.stack(visited)


def test_timesteps_at_50_steps_and_shift_7_are_the_official_ones() -> None:
    scheduler = build_scheduler(50, 7.0)
    timesteps = scheduler.timesteps
    assert timesteps.dtype == torch.float32 and len(timesteps) == 50
    first, last = [1000, 997.09, 994.08, 990.96, 987.73], [308.82, 225.81, 125.0]
    torch.testing.assert_close(timesteps[:5], torch.tensor(first), atol=5e-3, rtol=0)
    torch.testing.assert_close(timesteps[-3:], torch.tensor(last), atol=5e-3, rtol=0)
    assert len(scheduler.sigmas) == 51 and scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("shift", [1.0, 3.3, 5.0, 7.0, 17.0])
def test_levels_equal_torchs_bit_by_bit(shift: float) -> None:
    for steps in (*range(1, 130), 333, 1000):
        official = official_levels(steps, shift)
        assert np.array_equal(sigma_grid(steps, shift), official.numpy()), steps
        assert np.array_equal(sigma_grid(steps, shift, reverse=False), (1 - official).numpy())


@pytest.mark.parametrize(("steps", "shift"), [(50, 7.0), (30, 7.0), (50, 5.0), (6, 17.0), (50, 1)])
def test_a_run_equals_the_official_steps_bit_by_bit(steps: int, shift: float) -> None:
    levels = official_levels(steps, shift)
    x, expected = start(), []
    for here, there in pairwise(levels):
        x = x + toy_velocity(x, here * 1000) * (there - here)
        expected.append(x)
    assert torch.equal(trajectory(build_scheduler(steps, shift)), torch.stack(expected))


def test_diffusers_own_grid_is_another() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=7.0)
    theirs.set_timesteps(50)
    distance = (build_scheduler(50, 7.0).timesteps - theirs.timesteps).abs().max()
    assert 60 < distance < 90  # of 1000


def test_without_reverse_the_levels_rise_to_1() -> None:
    scheduler = build_scheduler(50, 7.0, reverse=False)
    assert torch.equal(scheduler.sigmas, 1 - official_levels(50, 7.0))
    assert torch.equal(scheduler.timesteps, scheduler.sigmas[:-1] * 1000)
    assert scheduler.timesteps[0] == 0 and scheduler.sigmas[-1] == 1
    assert trajectory(scheduler).isfinite().all()


def test_a_visited_subset_has_the_grids_own_values() -> None:
    visit = (*range(10), 12, 15, 17, 20, 30, 40, 46, 47, 48, 49)
    full, subset = build_scheduler(50, 7.0), build_scheduler(50, 7.0, visit=visit)
    assert torch.equal(subset.sigmas[:-1], full.sigmas[list(visit)])
    assert subset.sigmas[-1] == 0
    assert torch.equal(subset.timesteps, full.timesteps[list(visit)])
    path = trajectory(subset)
    assert torch.equal(path[:9], trajectory(full)[:9])
    assert path.isfinite().all() and len(path) == len(visit)


def test_visiting_every_step_is_the_plain_run() -> None:
    every = build_scheduler(12, 3.0, visit=range(12))
    assert torch.equal(trajectory(every), trajectory(build_scheduler(12, 3.0)))


def test_fp32_predictions_keep_latents_fp32() -> None:
    scheduler = build_scheduler(4, 7.0)
    t = scheduler.timesteps[0]
    assert scheduler.step(start(), t, start(), return_dict=False)[0].dtype == torch.float32


def test_sigmas_are_the_solvers_own_as_python_floats() -> None:
    sigmas = sigmas_fp32(50, 7.0)
    assert len(sigmas) == 50
    assert torch.equal(torch.tensor(sigmas), build_scheduler(50, 7.0).sigmas[:-1])


@pytest.mark.parametrize(
    ("steps", "shift", "says"),
    [
        (0, 7.0, "infer-steps 0 is too few"),
        (1001, 7.0, "infer-steps 1001 is too many"),
        (50, 0.0, "flow-shift 0.0 is not a positive number"),
        (50, float("nan"), "flow-shift nan"),
        (50, 1e9, "flow-shift 1000000000.0 leaves no distance"),  # all 1 in fp32
        (50, 1e-300, "flow-shift 1e-300 leaves no distance"),  # all 0
    ],
)
def test_impossible_grids_are_refused(steps: int, shift: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sigma_grid(steps, shift)

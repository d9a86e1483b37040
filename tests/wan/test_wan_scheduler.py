"""Noise levels and solvers against the figures of the official samplers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from host_waits import DEVICE, HostWaits
from profiling_core.errors import InputError
from wan.scheduler import Scheduler, build_scheduler
from wan.sigmas import SOLVERS, sigma_grid, sigmas_fp32

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def toy_velocity(x: Tensor, t: Tensor) -> Tensor:
    """A nonlinear model of latents (1, 16, 3, 6, 8), the same in every process."""
    mix = torch.randn(16, 16, generator=torch.Generator().manual_seed(5)) / 4
    return torch.einsum("oc,bcfhw->bofhw", mix, torch.tanh(x)) + x * float(t) / 1000


def trajectory(scheduler: Scheduler, velocity: Callable = toy_velocity) -> Tensor:
    x = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(6))
    visited = []
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t), t, x, return_dict=False)[0]
        visited.append(x)
    return torch.stack(visited)


def test_unipc_has_the_official_grid_at_50_steps_and_shift_5() -> None:
    scheduler = build_scheduler("unipc", 50, 5.0)
    timesteps = scheduler.timesteps.tolist()
    assert timesteps[:4] == [999, 995, 991, 987] and timesteps[-4:] == [302, 241, 172, 92]
    assert scheduler.timesteps.dtype == torch.int64
    sigmas = scheduler.sigmas
    assert sigmas.dtype == torch.float32 and len(sigmas) == 51
    torch.testing.assert_close(
        sigmas[[0, 1, -4, -3, -2, -1]],
        torch.tensor([0.99980, 0.99573, 0.24174, 0.17227, 0.09251, 0.0]),
        atol=5e-6,
        rtol=0,
    )


def test_dpm_starts_at_sigma_1_and_stays_finite() -> None:
    scheduler = build_scheduler("dpm++", 50, 5.0)
    assert scheduler.sigmas[0] == 1 and scheduler.timesteps[0] == 1000
    assert trajectory(scheduler).isfinite().all()


@pytest.mark.parametrize(("steps", "shift"), [(50, 5.0), (50, 8.0), (40, 3.0), (20, 5.0), (4, 5.0)])
def test_unipc_equals_diffusers_given_the_official_sigmas(steps: int, shift: float) -> None:
    theirs = UniPCMultistepScheduler(flow_shift=shift, **FLOW)
    unshifted = np.linspace(float(np.float32(0.999)), 0, steps + 1)[:-1]
    theirs.set_timesteps(sigmas=unshifted)
    ours = build_scheduler("unipc", steps, shift)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(trajectory(ours), trajectory(theirs))


@pytest.mark.parametrize(
    ("solver", "steps", "shift", "along", "end"),
    [
        ("unipc", 50, 5.0, 5.6e-3, 2.1e-3),
        ("unipc", 10, 5.0, 4.2e-3, 4.2e-3),
        ("dpm++", 50, 5.0, 8.1e-4, 5.6e-4),
        ("dpm++", 10, 5.0, 1.8e-3, 1.8e-3),
    ],
)
def test_diffusers_own_grid_is_measurably_another(
    solver: str, steps: int, shift: float, along: float, end: float
) -> None:
    """Distances of the size measured on another toy model: within a factor of five."""
    kind = UniPCMultistepScheduler if solver == "unipc" else DPMSolverMultistepScheduler
    theirs = kind(flow_shift=shift, **FLOW)
    theirs.set_timesteps(steps)
    distance = trajectory(build_scheduler(solver, steps, shift)) - trajectory(theirs)
    assert along / 5 < distance.abs().max() < along * 5
    assert end / 5 < distance[-1].abs().max() < end * 5


def test_27_of_50_timesteps_differ_from_diffusers_own() -> None:
    theirs = UniPCMultistepScheduler(flow_shift=5.0, **FLOW)
    theirs.set_timesteps(50)
    assert (build_scheduler("unipc", 50, 5.0).timesteps != theirs.timesteps).sum() == 27


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_visited_subset_has_the_grids_own_values(solver: str) -> None:
    visit = (*range(10), 12, 15, 17, 20, 30, 40, 46, 47, 48, 49)
    full, subset = build_scheduler(solver, 50, 5.0), build_scheduler(solver, 50, 5.0, visit=visit)
    assert torch.equal(subset.sigmas[:-1], full.sigmas[list(visit)])
    assert subset.sigmas[-1] == 0
    assert torch.equal(subset.timesteps, full.timesteps[list(visit)])
    assert subset.num_inference_steps == len(visit)
    path = trajectory(subset)
    assert torch.equal(path[:9], trajectory(full)[:9])
    assert path.isfinite().all() and len(path) == len(visit)


@pytest.mark.parametrize("solver", SOLVERS)
def test_visiting_every_step_is_the_plain_run(solver: str) -> None:
    every = build_scheduler(solver, 12, 3.0, visit=range(12))
    assert torch.equal(trajectory(every), trajectory(build_scheduler(solver, 12, 3.0)))


def test_repeated_first_timesteps_do_not_skip_a_level() -> None:
    scheduler = build_scheduler("unipc", 100, 16.0)
    assert scheduler.timesteps[0] == scheduler.timesteps[1] == 999
    seen = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append(scheduler.step_index or 0)
        return toy_velocity(x, t)

    assert trajectory(scheduler, velocity).isfinite().all()
    assert seen == list(range(100))


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_last_step_lands_on_the_clean_prediction(solver: str) -> None:
    """Sigma 0 ends the grid: with a constant velocity the result is x - sigma_0 * v."""
    velocity = torch.full((1, 16, 3, 6, 8), 0.5)
    scheduler = build_scheduler(solver, 8, 5.0)
    start = torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(6))
    end = trajectory(scheduler, lambda x, t: velocity)[-1]
    torch.testing.assert_close(end, start - scheduler.sigmas[0] * velocity, atol=1e-5, rtol=0)


def test_sigmas_are_the_solvers_own_as_python_floats() -> None:
    sigmas = sigmas_fp32("unipc", 50, 5.0)
    assert len(sigmas) == 50
    assert torch.equal(torch.tensor(sigmas), build_scheduler("unipc", 50, 5.0).sigmas[:-1])


@pytest.mark.parametrize(
    ("solver", "steps", "shift", "says"),
    [
        ("euler", 50, 5.0, "sample_solver 'euler'"),
        ("unipc", 0, 5.0, "sample_steps 0"),
        ("unipc", 50, 0.0, "sample_shift 0.0"),
        ("unipc", 50, float("nan"), "sample_shift nan"),
        ("unipc", 50, 1e9, "sample_shift 1000000000.0 leaves no distance"),  # all 1 in fp32
        ("dpm++", 1, 1e-300, "sample_shift 1e-300 leaves no distance"),  # 0 / 0
    ],
)
def test_impossible_grids_are_refused(solver: str, steps: int, shift: float, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sigma_grid(solver, steps, shift)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_step_waits_for_the_device(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' UniPC moves levels there, and solves there: 62 times in ten steps."""
    assert waits(build_scheduler(solver, 10, 5.0, DEVICE)) == {}
    monkeypatch.setattr("wan.scheduler.UniPC", UniPCMultistepScheduler)
    theirs = {"unipc": {"_to_copy": 54, "_linalg_check_errors": 8}, "dpm++": {}}
    assert waits(build_scheduler(solver, 10, 5.0, DEVICE)) == theirs[solver]


def waits(scheduler: Scheduler) -> dict[str, int]:
    x = torch.empty(1, 16, 3, 6, 8, device=DEVICE)
    with HostWaits() as seen:
        for t in scheduler.timesteps:
            x = scheduler.step(torch.empty_like(x), t, x, return_dict=False)[0]
    return dict(seen.found)

"""Noise levels read from other people's schedulers."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from profiling_core.errors import PlanError
from profiling_core.loops.scheduler_grid import SteppedLevels, grid_of, visit_only, when_set
from profiling_core.plan.solvers import SOLVERS

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def scheduled(kind: type, steps: int = 8, given: dict | None = None, **config):
    scheduler = kind(**config)
    scheduler.set_timesteps(steps, **(given or {}))
    return scheduler


@pytest.mark.parametrize(
    ("kind", "config", "solver", "shift"),
    [
        (UniPCMultistepScheduler, FLOW, "unipc", 3.0),
        (DPMSolverMultistepScheduler, FLOW, "dpm++", 3.0),
        (FlowMatchEulerDiscreteScheduler, {"shift": 7.0}, "euler", 7.0),
        (FlowMatchEulerDiscreteScheduler, {"invert_sigmas": True}, "euler", 1.0),
    ],
)
def test_flow_schedulers_give_their_sigmas(kind, config, solver, shift) -> None:
    scheduler = scheduled(kind, **config)
    grid = grid_of(scheduler)
    assert (grid.solver, grid.shift, grid.steps) == (solver, shift, 8) and solver in SOLVERS
    own = scheduler.sigmas[:8]
    rises = bool(config.get("invert_sigmas"))
    torch.testing.assert_close(torch.tensor(grid.sigmas), 1 - own if rises else own)
    assert grid.rising == rises and max(grid.sigmas) <= 1 and min(grid.sigmas) > 0


def test_a_shift_by_resolution_is_told_with_the_timesteps() -> None:
    seen = []
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with when_set(scheduler, lambda scheduler, given: seen.append(grid_of(scheduler, given))):
        scheduler.set_timesteps(8, mu=1.0)
    assert seen[0].shift == pytest.approx(2.718281828)


def test_levels_of_other_schedulers_are_the_noises_share() -> None:
    scheduler = scheduled(CogVideoXDDIMScheduler, prediction_type="epsilon")
    grid = grid_of(scheduler)
    shares = 1 - scheduler.alphas_cumprod[scheduler.timesteps]
    torch.testing.assert_close(torch.tensor(grid.sigmas) ** 2, shares.float())
    assert grid.solver == "CogVideoXDDIM" and not grid.rising


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", [CogVideoXDDIMScheduler, DDIMScheduler])
def test_ddim_with_v_prediction_is_eulers_method_on_its_grid(kind, zero_snr, spacing) -> None:
    """Random predictions: the scheduler's latents, scaled, are those of Euler's steps."""
    config = {"prediction_type": "v_prediction", "timestep_spacing": spacing}
    scheduler = scheduled(kind, 10, clip_sample=False, rescale_betas_zero_snr=zero_snr, **config)
    grid = grid_of(scheduler)
    assert grid.solver == "euler" and grid.sigmas[0] == 1
    generator = torch.Generator().manual_seed(1)
    x = y = torch.randn(40, dtype=torch.float64, generator=generator)
    levels = (*grid.sigmas, 0.0)
    for step, t in enumerate(scheduler.timesteps):
        v = torch.randn(40, dtype=torch.float64, generator=generator)
        x = scheduler.step(v, t, x).prev_sample
        y = y + (levels[step + 1] - levels[step]) * grid.factor * v
        torch.testing.assert_close(y, x / grid.scales[step + 1], rtol=1e-5, atol=1e-6)


class OtherStep(FlowMatchEulerDiscreteScheduler):
    """Inherits Euler's name and steps otherwise."""

    def step(self, model_output, timestep, sample):
        return super().step(2 * model_output, timestep, sample)


class OwnShift(FlowMatchEulerDiscreteScheduler):
    """Inherits Euler's step."""


def test_a_solver_is_known_by_the_step_that_runs() -> None:
    assert grid_of(scheduled(OtherStep)).solver == "OtherStep"
    assert grid_of(scheduled(OwnShift)).solver == "euler"


def test_two_calls_per_level_are_refused() -> None:
    with pytest.raises(PlanError, match="one model call per step"):
        grid_of(scheduled(FlowMatchHeunDiscreteScheduler))


def test_visiting_some_levels_keeps_the_last_sigma() -> None:
    scheduler = scheduled(UniPCMultistepScheduler, **FLOW)
    sigmas, timesteps = scheduler.sigmas.clone(), scheduler.timesteps.clone()
    visit_only(scheduler, (0, 3, 7))
    assert torch.equal(scheduler.sigmas, sigmas[[0, 3, 7, 8]])
    assert torch.equal(scheduler.timesteps, timesteps[[0, 3, 7]])
    for scheduler in (scheduled(EulerDiscreteScheduler), scheduled(CogVideoXDDIMScheduler)):
        with pytest.raises(PlanError, match="steps by the number of a timestep"):
            visit_only(scheduler, (0, 3))


def test_watching_a_class_or_an_object_leaves_no_trace() -> None:
    class Own(UniPCMultistepScheduler):
        """One without a set_timesteps of its own."""

    scheduler, seen = Own(**FLOW), []
    for target in (Own, scheduler, UniPCMultistepScheduler):
        before, kept = dict(vars(target)), inspect.signature(target.set_timesteps)
        with when_set(target, lambda *given: seen.append(given[0])):
            assert inspect.signature(target.set_timesteps) == kept
            scheduler.set_timesteps(4)
        assert vars(target).get("set_timesteps") is before.get("set_timesteps")
    assert seen == [scheduler] * 3


def test_a_rounded_timestep_does_not_say_where_a_loop_begins() -> None:
    steps = SteppedLevels()
    steps.start(SimpleNamespace(timesteps=torch.tensor([997.0, 996.0, 500.0])))
    assert [steps.place_of(torch.tensor([t])) for t in (997.0, 996.0, 500.0, 3.0)] == [0, 1, 2, 0]
    assert steps.place_of(torch.tensor([997.0], dtype=torch.bfloat16)) == 0  # 996 there

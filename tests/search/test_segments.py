"""Errors of skipped stretches against the whole solver with and without the skip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from made_profiles import made_profile
from profiling_core.errors import ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.importers import from_steps
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.site_schedule import corrections, forecasts
from profiling_core.plan.solvers import SOLVERS, skips_of
from profiling_core.profile.profile import Profile
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.segments import SEEN, Segments
from profiling_core.search.trajectories import Trajectories, integrate, trajectories_of
from wan.scheduler import build_scheduler

STEPS = 12


def made_trajectories(solver: str = "unipc", first: float = 0.9998) -> Trajectories:
    """Smooth predictions of three runs and what the solver makes of them; first: its sigma."""
    rng = np.random.default_rng(3)
    turns = np.cumsum(rng.normal(size=(STEPS, 3, 5)), axis=0) * 0.1
    predictions = rng.normal(size=(3, 5)) + turns
    grid = np.linspace(first / (5 - 4 * first), 0.0, STEPS + 1)[:-1]
    levels = Levels((5 * grid / (1 + 4 * grid)).tolist())
    start = rng.normal(size=(3, 5))
    latents = flow_solvers.run(solver, levels, start, lambda k, _: predictions[k])
    return Trajectories(solver, levels, predictions, latents)


def test_coordinates_have_the_products_of_the_profile() -> None:
    profile = made_profile(model="hunyuan-video-t2v-mini", runs=2, steps=9)
    trajectories = trajectories_of(profile)
    rows = np.concatenate([trajectories.predictions, trajectories.latents])
    for run, gram in enumerate(profile.arrays["gram"]):
        assert np.allclose(rows[:, run] @ rows[:, run].T, gram / gram[-1, -1], atol=1e-9)


def test_two_branches_are_guided() -> None:
    profile = made_profile(runs=1, steps=9)
    gram, scale = profile.arrays["gram"][0], profile.runs[0].guidance
    trajectories = trajectories_of(profile)
    cond, uncond, mixed = gram[:9, :9], gram[9:18, 9:18], gram[:9, 9:18]
    wanted = scale**2 * cond + (1 - scale) ** 2 * uncond + scale * (1 - scale) * (mixed + mixed.T)
    v = trajectories.predictions
    assert np.allclose(v[:, 0] @ v[:, 0].T, wanted / gram[-1, -1], atol=1e-8)
    assert np.allclose(integrate(trajectories, v), trajectories.latents, atol=1e-6)


def test_a_profile_of_another_loop_is_refused() -> None:
    profile = made_profile(runs=2)
    arrays = dict(profile.arrays)
    arrays["gram"] = arrays["gram"].copy()
    arrays["gram"][1, -1] = arrays["gram"][1, :, -1] = 0  # a final latent from nowhere
    arrays["gram"][1, -1, -1] = 1
    with pytest.raises(ProfileError, match="run 2 of the profile does not follow unipc"):
        trajectories_of(Profile(profile.settings, profile.subject, profile.runs, arrays))


def test_two_branches_without_a_guidance_scale_are_refused() -> None:
    profile = made_profile(runs=1)
    run = profile.runs[0].model_copy(update={"guidance": None})
    with pytest.raises(ProfileError, match="run 1 of the profile has two branches and no guidance"):
        trajectories_of(Profile(profile.settings, profile.subject, (run,), profile.arrays))


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_skipped_is_no_error(solver: str) -> None:
    trajectories = made_trajectories(solver)
    for skip in skips_of(solver):
        table = Segments(trajectories, skip).table
        for j in range(STEPS):
            row = table.row_of[max(j - 1, 0), j, j + 1]
            assert table.ends[row] == j + 1
            assert np.abs(table.errors[row]).max() < 1e-6


@pytest.mark.parametrize("skip", ["hold", "linear"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_forecasts_are_fed_to_the_solver(solver: str, skip: str) -> None:
    trajectories = made_trajectories(solver)
    segments = Segments(trajectories, skip)
    log_snr, v = trajectories.levels.log_snr, trajectories.predictions
    i, j, n = 3, 5, 9
    forecast = v.copy()
    for s in range(j + 1, n):
        if skip == "hold":
            forecast[s] = v[j]
        else:
            share = (log_snr[s] - log_snr[j]) / (log_snr[j] - log_snr[i])
            forecast[s] = v[j] + share * (v[j] - v[i])
    error = integrate(trajectories, forecast)[n] - trajectories.latents[n]
    assert np.allclose(segments.errors(i, j)[n - j - 1], error, atol=1e-12)
    row = segments.table.row_of[i, j, n]
    assert np.allclose(segments.table.errors[row], error, atol=1e-6)


def test_segments_out_of_order_have_no_row() -> None:
    row_of = Segments(made_trajectories(), "hold").table.row_of
    assert row_of.shape == (STEPS, STEPS, STEPS + 1)
    assert row_of[5, 3, 9] == row_of[3, 5, 5] == row_of[2, 2, 4] == -1
    rows = row_of[row_of >= 0]
    assert sorted(rows) == list(range(rows.size))


@pytest.mark.parametrize(("i", "j", "n"), [(3, 5, 9), (0, 0, 4), (0, 1, 10), (4, 5, 7)])
@pytest.mark.parametrize("first", [0.9998, 1.0])
def test_a_correction_replaces_the_forecasts_in_the_latent(
    i: int, j: int, n: int, first: float
) -> None:
    """Euler, given the corrected prediction at n, ends its step on the line from v_j to v_n."""
    trajectories = made_trajectories("euler", first)
    plan = CachePlan.build(
        name="corrected",
        model=MODELS["hunyuan-video-t2v-mini"].fingerprint,
        steps=STEPS,
        sigmas=trajectories.levels.sigma[:-1].tolist(),
        solver="euler",
        shift=5.0,
        sites=from_steps(STEPS, sorted({0, i, j, *range(n, STEPS)}), skip="corrected"),
        provenance={"made_by": "tests", "source": "tests"},
    )
    v, given = trajectories.predictions, trajectories.predictions.copy()
    for s, forecast in forecasts(plan, plan.prediction, "cond").items():
        if s > j:
            given[s] = sum(weight * v[anchor] for anchor, weight in forecast)
    seen = integrate(trajectories, given)[n] - trajectories.latents[n]
    given[n] = sum(weight * v[anchor] for anchor, weight in corrections(plan, "cond")[n])
    left = integrate(trajectories, given)[n + 1] - trajectories.latents[n + 1]
    found = Segments(trajectories, "corrected").errors(i, j)[n - j - 1]
    assert np.allclose(found, left + SEEN * seen, atol=1e-12)
    assert np.linalg.norm(left) < np.linalg.norm(seen)


@pytest.mark.parametrize("n", [7, 10, STEPS])
@pytest.mark.parametrize(("i", "j"), [(3, 5), (4, 5), (0, 5), (0, 0)])
@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_a_jump_is_what_the_scheduler_does(solver: str, i: int, j: int, n: int) -> None:
    """The real scheduler from the recorded state at j to n, the clean latents as recorded."""
    trajectories = made_trajectories(solver)
    ending = solver_states(trajectories, range(STEPS))
    started = solver_states(trajectories, [*range(j + 1)])
    found = jumped(trajectories, started[j], i, j, n)
    wanted = found - ending[n]
    if solver == "unipc" and n < STEPS:  # what the model sees there, before it is corrected
        wanted = wanted + SEEN * (
            jumped(trajectories, started[j], i, j, n, True) - trajectories.latents[n]
        )
    assert np.allclose(Segments(trajectories, "jump").errors(i, j)[n - j - 1], wanted, atol=3e-6)


def solver_states(trajectories: Trajectories, visit) -> list[np.ndarray]:
    """What the recorded run goes on from at every visited level, and where it ends."""
    scheduler = build_scheduler(trajectories.solver, STEPS, 5.0)
    scheduler.sigmas = torch.tensor([*trajectories.levels.sigma], dtype=torch.float32)
    x, found = torch.from_numpy(trajectories.latents[0]), []
    for k in visit:
        v = torch.from_numpy(trajectories.predictions[k])
        x_next = scheduler.step(v, scheduler.timesteps[k], x, return_dict=False)[0]
        found.append((scheduler.last_sample if trajectories.solver == "unipc" else x).numpy())
        x = x_next.double()
    return [*found, x.numpy()]


def jumped(
    trajectories: Trajectories, start: np.ndarray, i: int, j: int, n: int, seen: bool = False
) -> np.ndarray:
    """The scheduler's latent at n: what it goes on from, or what the model sees."""
    levels, latents = trajectories.levels, trajectories.latents
    clean = latents[:-1] - levels.sigma[:-1, None, None] * trajectories.predictions
    scheduler = build_scheduler(trajectories.solver, STEPS, 5.0)
    end = [0.0] if n == STEPS else [levels.sigma[n], 0.0]
    before = [levels.sigma[i]] if i != j else []
    scheduler.sigmas = torch.tensor([*before, levels.sigma[j], *end], dtype=torch.float32)
    scheduler.timesteps = scheduler.timesteps[: len(scheduler.sigmas) - 1]
    scheduler.num_inference_steps = len(scheduler.timesteps)
    x = torch.from_numpy(start)
    for k, step in enumerate(([i] if i != j else []) + [j] + ([n] if n < STEPS else [])):
        if step == j:
            x = torch.from_numpy(start)
            if trajectories.solver == "unipc":
                scheduler.disable_corrector = [k - 1]
        elif trajectories.solver == "unipc":
            scheduler.disable_corrector = []
        m = torch.from_numpy(clean[step])
        v = (x - m) / scheduler.sigmas[k].double()
        reached = scheduler.step(v, scheduler.timesteps[k], x, return_dict=False)[0].double()
        if step == n:
            corrected = trajectories.solver == "unipc" and not seen
            return (scheduler.last_sample if corrected else x).numpy()
        x = reached
    return x.numpy()

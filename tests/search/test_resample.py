"""A profile on another grid: its levels, its trajectories, plans and predicted errors there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyvideo import sigmas as hunyuan_sigmas
from made_profiles import made_profile
from profiling_core.commands.main import main
from profiling_core.errors import ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.regrid import regrid
from profiling_core.profile.profile import Profile
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.resample import grid_like, interpolation, on_grid
from profiling_core.search.search import Budget, PlanSearch
from profiling_core.search.trajectories import trajectories_of
from wan import sigmas as wan_sigmas

WAN, HUNYUAN = "wan2.1-t2v-mini", "hunyuan-video-t2v-mini"
STEPS = 12


@pytest.fixture(scope="module")
def wan() -> Profile:
    return made_profile(WAN, runs=2, steps=STEPS)


@pytest.fixture(scope="module")
def hunyuan() -> Profile:
    return made_profile(HUNYUAN, runs=2, steps=STEPS)


# -- levels


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
@pytest.mark.parametrize(("steps", "shift"), [(20, 5.0), (30, 5.0), (40, 3.0), (7, 16.0)])
def test_levels_are_those_that_wan_samples_at(wan, solver, steps, shift):
    sigmas = grid_like(wan.recorded, steps, shift, solver).sigmas
    assert sigmas == pytest.approx(wan_sigmas.sigmas_fp32(solver, steps, shift), abs=1e-6)


@pytest.mark.parametrize(("steps", "shift"), [(20, 7.0), (30, 7.0), (50, 17.0)])
def test_levels_are_those_that_hunyuan_samples_at(hunyuan, steps, shift):
    sigmas = grid_like(hunyuan.recorded, steps, shift).sigmas
    assert sigmas == pytest.approx(hunyuan_sigmas.sigmas_fp32(steps, shift), abs=1e-6)


def test_a_run_takes_the_plan_as_it_is(hunyuan):
    plan = PlanSearch(on_grid(hunyuan, 8, 3.0)).plan(Budget(speedup=2.0))
    real = hunyuan_sigmas.sigmas_fp32(8, 3.0)
    assert regrid(plan, real, solver="euler", shift=3.0) is plan


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((1, None, None), "1 steps: expected 2 to"),
        ((None, -1.0, None), "shift -1: expected a positive number"),
        ((None, None, "heun"), "solver 'heun' is none of wan2.1's: expected unipc, dpm"),
        ((30, 1e12, None), "leaves no distance between 30 noise levels"),
    ],
)
def test_a_grid_that_the_model_lacks_is_refused(wan, grid, message):
    with pytest.raises(ProfileError, match=message):
        grid_like(wan.recorded, *grid)


def test_levels_that_are_no_shifted_line_are_refused(wan):
    bent = tuple(sigma**1.1 for sigma in wan.recorded.sigmas)
    subject = wan.recorded.model_copy(update={"sigmas": bent})
    with pytest.raises(ProfileError, match="12 noise levels are no line shifted by 5"):
        grid_like(subject, 30)


def test_a_profile_of_levels_that_are_no_shifted_line_is_searched_on_its_own_grid(wan):
    bent = tuple(sigma**1.1 for sigma in wan.recorded.sigmas)
    subject = wan.recorded.model_copy(update={"sigmas": bent})
    profile = Profile(wan.settings, subject, wan.runs, wan.arrays)
    assert on_grid(profile) is profile
    with pytest.raises(ProfileError, match="are no line shifted by 5"):
        on_grid(profile, steps=8)


# -- resampling


def test_its_own_grid_is_the_profile_itself(wan):
    assert on_grid(wan) is wan
    assert on_grid(wan, STEPS, 5.0, "unipc") is wan


def test_interpolation_is_exact_at_recorded_levels_and_for_lines(wan):
    subject = wan.recorded
    assert interpolation(subject, subject.sigmas) == pytest.approx(np.eye(STEPS))
    other = grid_like(subject, 33).sigmas
    matrix = interpolation(subject, other)
    assert matrix.sum(axis=1) == pytest.approx(np.ones(33))
    u = [np.array(s) / (5 - 4 * np.array(s)) for s in (subject.sigmas, other)]
    assert matrix @ u[0] == pytest.approx(u[1])


@pytest.mark.parametrize("grid", [(13, None, None), (40, 3.0, None), (None, None, "dpm++")])
def test_paths_are_the_interpolated_predictions_under_the_other_solver(wan, grid):
    """Against the same computed on vectors instead of products."""
    there, scale = on_grid(wan, *grid), wan.runs[0].guidance
    subject, steps = there.recorded, wan.recorded.steps
    values, axes = np.linalg.eigh(wan.arrays["gram"][0])
    vectors = axes * np.sqrt(np.maximum(values, 0))
    matrix = interpolation(wan.recorded, subject.sigmas)
    cond, uncond = matrix @ vectors[:steps], matrix @ vectors[steps : 2 * steps]
    guided = uncond + scale * (cond - uncond)
    latents = flow_solvers.run(
        subject.solver, Levels(subject.sigmas), vectors[2 * steps], lambda k, _: guided[k]
    )
    expected = np.concatenate([cond, uncond, latents])
    found = there.arrays["gram"][0]
    assert found == pytest.approx(expected @ expected.T, rel=1e-6, abs=1e-6 * found.max())
    assert trajectories_of(there).steps == subject.steps  # they follow the solver


def test_predictions_that_are_cubic_in_time_are_resampled_exactly():
    """A profile of such predictions on 20 steps becomes the one of 30."""
    made = made_profile(HUNYUAN, runs=1, steps=20)

    def recorded(steps: int) -> np.ndarray:
        sigma = np.array(grid_like(made.recorded, steps).sigmas)
        u = sigma / (7 - 6 * sigma)
        rng = np.random.default_rng(0)
        noise, terms = rng.normal(size=8), rng.normal(size=(4, 8))
        v = sum(np.multiply.outer(u**power, term) for power, term in enumerate(terms))
        x = flow_solvers.run("euler", Levels(sigma), noise, lambda k, _: v[k])
        rows = np.concatenate([v, x])
        return rows @ rows.T

    made.arrays["gram"] = recorded(20)[None]
    assert on_grid(made, 30).arrays["gram"][0] == pytest.approx(recorded(30), abs=1e-6)


def test_sensitivity_stays_with_the_levels_where_it_was_measured(hunyuan):
    profile = made_profile(HUNYUAN, runs=2, steps=20)
    measured = {1: 8.0, 8: 4.0, 15: 1.0}
    profile.arrays["sensitivity"][:, list(measured)] = list(measured.values())
    there = on_grid(profile, 40).arrays["sensitivity"]
    steps = np.flatnonzero(np.isfinite(there[0]))
    assert list(steps) == [2, 16, 30]  # twice as many steps: the same levels
    assert there[:, steps] == pytest.approx(np.array([[8.0, 4.0, 1.0]] * 2), rel=1e-3)
    assert not np.isfinite(on_grid(hunyuan, 40).arrays["sensitivity"]).any()


def test_block_deltas_come_along(hunyuan):
    there = on_grid(hunyuan, 7)
    for name, count in hunyuan.recorded.model.block_lists.items():
        gram = there.arrays[f"delta_gram.{name}"]
        assert gram.shape == (1, count * 7, count * 7)
        assert np.linalg.eigvalsh(gram[0]).min() > -1e-5 * np.trace(gram[0])
    assert max(there.recorded.attention_steps) < 7


# -- plans


def test_a_plan_for_another_grid_says_where_it_comes_from(wan):
    plan = PlanSearch(on_grid(wan, 8)).plan(Budget(speedup=2.0))
    assert plan.steps == 8 and plan.expected.speedup_flops == 2.0
    assert plan.provenance.source.endswith("2 runs, resampled from 12 unipc steps, shift 5")
    assert plan.provenance.profile_sha256 == wan.sha256()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, wan) -> Path:
    path = tmp_path_factory.mktemp("files") / "wan.profile"
    wan.save(path)
    return path


def command(profile: Path, out: Path, *more: str) -> int:
    return main(["plan", "--profile", str(profile), "-o", str(out), *more])


def test_the_command_searches_for_another_grid(recorded, tmp_path):
    more = ("--for-steps", "8", "--for-shift", "3", "--for-solver", "dpm++")
    assert command(recorded, tmp_path / "a.json", "--speedup", "2", *more) == 0
    plan = CachePlan.load(tmp_path / "a.json")
    assert (plan.steps, plan.shift, plan.solver) == (8, 3.0, "dpm++")
    assert plan.expected.speedup_flops == 2.0
    real = wan_sigmas.sigmas_fp32("dpm++", 8, 3.0)
    assert regrid(plan, real, solver="dpm++", shift=3.0) is plan


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--speedup", "2", "--for-steps", "1"), "1 steps: expected 2 to"),
        (("--method", "paper", "--for-steps", "12"), "--for-steps belongs to --method search"),
    ],
)
def test_what_cannot_be_had_is_one_line(recorded, tmp_path, capsys, more, message):
    assert command(recorded, tmp_path / "a.json", *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "a.json").exists()


def test_levels_of_two_models_are_resampled_from_levels_of_their_own_model(wan):
    boundary = sum(wan.recorded.sigmas[4:6]) / 2
    subject = wan.recorded.model_copy(update={"boundary": boundary})
    both = Profile(wan.settings, subject, wan.runs, wan.arrays)
    for steps in (STEPS, 9, 20):
        grid = grid_like(subject, steps)
        rows = interpolation(subject, grid.sigmas)
        first = sum(sigma >= boundary for sigma in grid.sigmas)
        assert not rows[:first, 5:].any() and not rows[first:, :5].any()
        np.testing.assert_allclose(rows.sum(axis=1), 1.0)
        search = PlanSearch(on_grid(both, steps))
        assert search.trajectories.change == first
        assert first in search.plan(Budget(speedup=2.0)).prediction.compute_steps["cond"]

"""profile_pipeline: full runs of diffusers' pipelines as profiles, and plans that follow."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from naive_walk import naive
from profiling_core import CachePlan, cache_pipeline, profile_pipeline
from profiling_core.commands.main import main
from profiling_core.commands.report import write_report
from profiling_core.errors import PlanError, ProfileError
from profiling_core.loops.cached_loop import LoopModels
from profiling_core.profile.profile import Profile, Settings
from profiling_core.profile.summary import summary_lines
from profiling_core.search.search import Budget, PlanSearch
from profiling_core.search.trajectories import integrate, trajectories_of
from tiny_pipelines import STEPS, build

FLOWS = ("wan", "wan_i2v", "hunyuan", "hunyuan_cfg", "hunyuan_i2v", "ltx", "mochi", "hunyuan15")
SEARCHED = (*FLOWS, "cogvideox", "wan22")
pytestmark = pytest.mark.filterwarnings("ignore:CPU Autocast", "ignore:In CPU autocast")


def recorded(tiny, runs: int = 1, **options) -> Profile:
    options = {"settings": Settings(attention_every=0)} | options
    return profile_pipeline(tiny.pipe, [tiny.arguments] * runs, STEPS, **options)


@pytest.mark.parametrize("name", SEARCHED)
def test_the_recorded_run_follows_its_solver_and_a_searched_plan_runs(name: str) -> None:
    tiny = build(name)
    full = tiny.latents()
    profile = recorded(tiny)
    trajectories = trajectories_of(profile)  # refuses latents that are not what the solver makes
    final = integrate(trajectories, trajectories.predictions)[-1]
    assert np.linalg.norm(final - trajectories.latents[-1]) < 1e-3
    plan = PlanSearch(profile).plan(Budget(speedup=2.0))
    with cache_pipeline(tiny.pipe, plan) as cache:
        cached = tiny.latents()
    assert cache.stats.block_runs_full >= 2 * cache.stats.block_runs
    assert 0 < float((cached - full).norm() / full.norm()) < 1
    assert torch.equal(tiny.latents(), full)


@pytest.mark.parametrize("name", ["wan", "ltx", "mochi", "cogvideox", "wan22"])
def test_predicted_and_measured_errors_are_of_one_size(name: str) -> None:
    """With a model whose prediction hardly depends on the latent they are nearly the same."""
    tiny = build(name)
    full = tiny.latents()
    search = PlanSearch(recorded(tiny))
    skip = search.skips[-1]
    plan = search.plan_of(search.point_of(skip, 5), Budget(speedup=2.0))
    with cache_pipeline(tiny.pipe, plan):
        measured = float((tiny.latents() - full).norm() / full.norm())
    assert plan.expected.predicted_error / 5 < measured < plan.expected.predicted_error * 5


def test_runs_are_added_to_the_file_and_reported(tmp_path: Path) -> None:
    tiny, path = build("wan"), tmp_path / "wan.profile"
    first = recorded(tiny, path=path)
    both = recorded(tiny, path=path, seed=1, settings=None)
    assert (len(first.runs), len(both.runs)) == (1, 2)
    assert Profile.load(path).sha256() == both.sha256()
    assert [run.seed for run in both.runs] == [0, 1]
    plan = PlanSearch(both).plan(Budget(speedup=2.0))
    page = write_report(both, tmp_path / "page.html", plans=[plan])
    assert "wan2.1-6x24" in page.read_text()


def test_attention_is_recorded_where_it_can_be_seen() -> None:
    tiny = build("wan")
    profile = recorded(tiny, settings=Settings(attention_every=4))
    assert profile.has_attention and np.isfinite(profile.arrays["attention_share"]).all()
    usual = profile_pipeline(build("cogvideox").pipe, [build("cogvideox").arguments], 4)
    assert not usual.has_attention  # its blocks call torch's attention directly


def test_profiles_of_other_solvers_are_recorded_and_not_searched() -> None:
    tiny = build("cogvideox")
    tiny.pipe.scheduler = CogVideoXDPMScheduler.from_config(tiny.pipe.scheduler.config)
    profile = recorded(tiny)
    assert profile.recorded.solver == "CogVideoXDPM"
    with pytest.raises(ProfileError, match="solver 'CogVideoXDPM' is not one of"):
        PlanSearch(profile)


def test_a_failed_run_leaves_the_pipeline_and_no_file(tmp_path: Path) -> None:
    tiny, path = build("wan"), tmp_path / "wan.profile"
    tiny.latents()
    kind, held = type(tiny.pipe), set(vars(tiny.pipe.scheduler))

    def stop(pipe, step, t, kwargs):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        recorded(tiny, path=path, callback_on_step_end=stop)
    assert type(tiny.pipe) is kind and not path.exists()
    assert set(vars(tiny.pipe.scheduler)) == held
    model = tiny.pipe.transformer
    assert not any(module._forward_hooks for module in (model, *model.blocks))


def test_what_cannot_be_recorded_is_said() -> None:
    tiny = build("wan")
    with pytest.raises(ProfileError, match="no prompts"):
        profile_pipeline(tiny.pipe, [], STEPS)
    with pytest.raises(ProfileError, match="runs are not repeated"):
        recorded(tiny, settings=Settings(sensitivity=(3,)))
    three = LoopModels((tiny.pipe.transformer,) * 3, shares=lambda scheduler: (4, 3, 3))
    with pytest.raises(ProfileError, match="takes turns between 3 models: a profile is of two"):
        three.used(tiny.pipe.scheduler, None)


@pytest.mark.parametrize("skip", ["hold", "linear", "jump", "fitted"])
def test_two_transformers_make_one_profile_whose_plans_compute_the_change(
    tmp_path: Path, skip: str
) -> None:
    tiny, path, out = build("wan22"), tmp_path / "wan22.profile", tmp_path / "plan.json"
    profile = recorded(tiny, runs=4, path=path)
    timesteps = tiny.pipe.scheduler.timesteps
    change = int((timesteps >= 700).sum())
    assert 0 < change < STEPS and profile.recorded.change == change
    assert profile.recorded.boundary == 0.7 and Profile.load(path).sha256() == profile.sha256()
    assert f"another model from step {change} on" in "\n".join(summary_lines(profile))
    command = ["plan", "--profile", str(path), "-o", str(out), "--modes", skip, "--quiet"]
    assert main([*command, "--speedup", str(STEPS / 4)]) == 0
    plan = CachePlan.load(out)
    computed = plan.prediction.compute_steps["cond"]
    assert change in computed and len(computed) == 4 and 0 < plan.expected.predicted_error < 1
    assert PlanSearch(profile).predicted(plan) == pytest.approx(plan.expected.predicted_error)
    models = (tiny.pipe.transformer, tiny.pipe.transformer_2)
    with cache_pipeline(tiny.pipe, plan) as cache:
        found = tiny.latents()
    assert cache.plan.sites == plan.sites  # nothing had to be computed beside it
    if skip in ("jump", "fitted"):
        assert cache.stats.model_calls == 2 * len(computed)
        assert bool(cache.plan.solver_weights) is (skip == "fitted")
        return
    with naive(plan, models[0], {}, 2), naive(plan, models[1], {}, 2, change):
        assert torch.equal(tiny.latents(), found)
    other = ["--speedup", "2", "--for-steps", "16", "--overwrite"]
    assert main([*command, *other]) == 0
    with cache_pipeline(tiny.pipe, out) as cache:
        tiny.latents(num_inference_steps=16)
    assert cache.plan.sites == CachePlan.load(out).sites and not cache.plan.notes


def test_a_speed_up_that_two_models_do_not_allow_is_refused() -> None:
    search = PlanSearch(recorded(build("wan22")))
    with pytest.raises(PlanError, match="by two models, which compute their first step, allow 5x"):
        search.plan(Budget(speedup=6.0))
    fast = search.plan(Budget(speedup=5.0), "fast").prediction.compute_steps["cond"]
    assert fast == (0, search.trajectories.change)
    assert max(point.speedup for point in search.frontier()) <= 5 and search.frontier()
    assert all(search.trajectories.change in point.steps for point in search.frontier())

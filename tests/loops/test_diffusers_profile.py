"""profile_pipeline: full runs of diffusers' pipelines as profiles, and plans that follow."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from profiling_core import cache_pipeline, profile_pipeline
from profiling_core.commands.report import write_report
from profiling_core.errors import ProfileError
from profiling_core.profile.profile import Profile, Settings
from profiling_core.search.search import Budget, PlanSearch
from profiling_core.search.trajectories import integrate, trajectories_of
from tiny_pipelines import STEPS, build

FLOWS = ("wan", "wan_i2v", "hunyuan", "hunyuan_cfg", "hunyuan_i2v", "ltx", "mochi", "hunyuan15")
SEARCHED = (*FLOWS, "cogvideox")
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


@pytest.mark.parametrize("name", ["wan", "ltx", "mochi", "cogvideox"])
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
    with pytest.raises(ProfileError, match="changes between 2 models"):
        recorded(build("wan22"))

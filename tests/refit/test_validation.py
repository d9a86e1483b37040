"""Candidates of a search, ranked by real runs of a made model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from made_profiles import made_profile
from profiling_core.commands.plan import request_of
from profiling_core.errors import PlanError, ProfileError
from profiling_core.plan import CachePlan
from profiling_core.profile.profile import Profile
from profiling_core.refit.refit import validate
from profiling_core.search.search import Budget, PlanSearch

HUNYUAN = "hunyuan-video-t2v-mini"


class MadeModel:
    """Its latents depend on the prompt's length; a plan adds an error, known by its first step."""

    shape = (16, 9, 16, 16)

    def __init__(self) -> None:
        self.runs: list[tuple[str, int, str | None]] = []

    def inputs(self, prompt: str, seed: int) -> tuple[str, int]:
        return prompt, seed

    def denoise(self, inputs: tuple[str, int], plan: CachePlan | None = None) -> torch.Tensor:
        prompt, seed = inputs
        self.runs.append((prompt, seed, plan and plan.name))
        latent = torch.full(self.shape, float(len(prompt)))
        if plan is not None:
            latent = latent * (1 + {"near": 0.01, "far": 0.2}[plan.name])
        return latent


@pytest.fixture(scope="module")
def search() -> PlanSearch:
    return PlanSearch(made_profile(model=HUNYUAN, runs=2, steps=20))


def test_the_plan_with_the_least_measured_error_comes_first(search: PlanSearch) -> None:
    budget = Budget(speedup=2.0)
    plans = [search.plan(budget, name) for name in ("far", "near")]
    model, lines = MadeModel(), []
    near, far = validate(search.profile, plans, model, lines.append)
    assert (near.plan.name, far.plan.name) == ("near", "far")
    assert np.allclose(near.errors, 0.01) and far.error == pytest.approx(0.2)
    runs = search.profile.runs
    wanted = [(run.prompt, run.seed, name) for run in runs for name in (None, "far", "near")]
    assert model.runs == wanted
    assert lines == [f"run {n} of 2: {run.prompt}" for n, run in enumerate(runs, start=1)]


def test_candidates_differ_and_the_best_predicted_is_among_them(search: PlanSearch) -> None:
    budget = Budget(speedup=2.0)
    points = search.candidates(budget, 5)
    assert 2 <= len(points) <= 5
    assert len({(point.skip, point.steps) for point in points}) == len(points)
    assert points[0].error == min(point.error for point in points)
    assert points[0].error <= search.point(budget).error
    assert {len(point.steps) for point in points} == {10}
    plan = search.plan_of(points[-1], budget, "last", validated=5, measured_error=0.25)
    assert plan.provenance.settings["measured_error"] == 0.25
    assert plan.prediction.compute_steps["cond"] == points[-1].steps


def with_run(profile: Profile, **changed: object) -> Profile:
    runs = (profile.runs[0].model_copy(update=changed), *profile.runs[1:])
    return replace(profile, runs=runs)


def test_another_size_of_clip_is_refused(search: PlanSearch) -> None:
    model = MadeModel()
    model.shape = (16, 5, 16, 16)
    with pytest.raises(ProfileError, match=r"latents are \(16, 9, 16, 16\), this model makes"):
        validate(search.profile, [search.plan(Budget(speedup=2.0), "near")], model, str)


@pytest.mark.parametrize(
    ("name", "tree", "model", "solver"),
    [(HUNYUAN, "hunyuan", "HYVideo-mini", None), ("wan2.1-t2v-mini", "wan", "t2v-mini", "unipc")],
)
def test_the_tree_is_asked_for_what_was_recorded(name, tree, model, solver) -> None:
    found, asked = request_of(made_profile(model=name, runs=2), "ckpts", None)
    assert (found, asked.model, asked.solver, asked.ckpt_dir) == (tree, model, solver, "ckpts")
    assert (asked.size, asked.frame_num, asked.steps) == ("128*128", 33, 50)
    assert asked.guidance == 5.0


def test_runs_of_several_guidance_scales_are_refused() -> None:
    with pytest.raises(ProfileError, match=r"several guidance scales: \[3\.0, 5\.0\]"):
        request_of(with_run(made_profile(runs=2), guidance=3.0), None, None)


def test_a_model_of_no_tree_is_refused() -> None:
    profile = made_profile(runs=1)
    model = profile.subject.model.model_copy(update={"family": "flux"})
    other = replace(profile, subject=profile.subject.model_copy(update={"model": model}))
    with pytest.raises(PlanError, match="'flux' is no tree of this project"):
        request_of(other, None, None)

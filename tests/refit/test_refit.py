"""Weights fitted along cached runs: here of a small made flow whose full runs are known."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from made_profiles import made_profile
from profiling_core.commands.main import main
from profiling_core.commands.plan import request_of
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.errors import PlanError, ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.importers import from_steps
from profiling_core.plan.regrid import regrid
from profiling_core.plan.site_schedule import corrections, forecasts
from profiling_core.profile.profile import Profile, Subject
from profiling_core.refit.refit import (
    Form,
    forms,
    one_pass,
    refit,
    rollouts_of,
    steps_of,
    with_facts,
)
from profiling_core.refit.rollout import Rollout, Weights
from profiling_core.search.search import Budget, PlanSearch, Point
from profiling_core.trees.tree_model import ModelRequest

HUNYUAN, WAN = "hunyuan-video-t2v-mini", "wan2.1-t2v-mini"
GUIDANCE, SPREAD = 5.0, 0.5


def plan_of(subject: Subject, sites: Sequence[dict] = ()) -> CachePlan:
    """A plan on the grid of a profile; by default it computes everything."""
    provenance = {"made_by": "tests", "source": "tests"}
    return CachePlan.build(name="made", **subject.plan_fields, sites=sites, provenance=provenance)


class Flow(torch.nn.Module):
    """The exact velocity from noise to a mixture of normal distributions, SPREAD each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, count in (("double_blocks", 4), ("single_blocks", 10), ("blocks", 12)):
            setattr(self, name, torch.nn.ModuleList(torch.nn.Identity() for _ in range(count)))
        self.hidden_size = self.dim = width
        self.calls = 0

    def forward(self, x: torch.Tensor, sigma: float, means: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x, clean = x.double(), 1 - sigma
        variance = (clean * SPREAD) ** 2 + sigma**2
        off = x - clean * means
        near = torch.softmax(-off.square().sum(dim=1) / (2 * variance), dim=0)
        data = near @ (means + clean * SPREAD**2 / variance * off)
        return ((x - data) / sigma).float()


class MadeModel:
    """A tree's model with Euler's loop; a prompt is a mixture, with two branches one is guided."""

    def __init__(self, profile: Profile) -> None:
        self.subject = profile.recorded
        self.model = Flow(self.subject.model.width)

    def inputs(self, prompt: str, seed: int) -> tuple[torch.Tensor, ...]:
        rng = torch.Generator().manual_seed(len(prompt) * 100 + seed)
        size = int(np.prod(self.subject.latent))
        means = [torch.randn(4, size, generator=rng, dtype=torch.float64) / 2 for _ in range(2)]
        return *means, torch.randn(size, generator=rng)

    def denoise(self, inputs, plan: CachePlan | None = None, *, recorder=None) -> torch.Tensor:
        *means, latent = inputs
        levels, branches = (*self.subject.sigmas, 0.0), self.subject.branches
        watch = recorder or DeltaCache(plan or plan_of(self.subject))
        with watch.attached(self.model), torch.no_grad():
            for step in range(self.subject.steps):
                predictions = []
                for branch, own in zip(branches, means, strict=False):
                    watch.begin(step, branch)
                    predictions.append(self.model(latent, levels[step], own))
                flow = predictions[0]
                if len(predictions) == 2:
                    flow = predictions[1] + GUIDANCE * (predictions[0] - predictions[1])
                latent = latent + (levels[step + 1] - levels[step]) * flow
        return latent.reshape(self.subject.latent)


def small(model: str = HUNYUAN, runs: int = 3) -> Profile:
    """A made profile of a small latent, its solver Euler."""
    profile = made_profile(model=model, runs=runs, steps=16)
    update = {"latent": (2, 1, 4, 4), "solver": "euler"}
    return replace(profile, subject=profile.subject.model_copy(update=update))


COMPUTED = (0, 1, 3, 6, 7, 10, 13)


def form_of(profile: Profile, anchors: int, computed: tuple[int, ...] = COMPUTED) -> Form:
    steps = profile.recorded.steps
    sites = from_steps(steps, computed, profile.recorded.branches, "linear")
    return Form(plan_of(profile.recorded, sites), anchors, f"{anchors} anchors")


def rollouts(profile: Profile, *forms: Form) -> list[Rollout]:
    return rollouts_of(profile, MadeModel(profile), steps_of(forms), nothing)


def nothing(_: str) -> None:
    pass


@pytest.mark.parametrize("anchors", [2, 3])
def test_a_refit_is_better_than_the_line_and_measured_as_it_runs(anchors: int) -> None:
    profile = small()
    form = form_of(profile, anchors)
    own = rollouts(profile, form)
    best, start = refit(own, form.plan, [form], nothing)
    assert (best.words, start.plan) == (f"{anchors} anchors", form.plan)
    assert best.error < 0.7 * start.error
    assert best.plan.prediction.skip == "weights"
    assert max(map(len, best.plan.prediction.weights["cond"].values())) == anchors
    for rollout, error in zip(own, best.errors, strict=True):
        latent = rollout.model.denoise(rollout.inputs, best.plan).flatten()
        far = float((latent - rollout.final).norm() / rollout.final.norm())
        assert far == pytest.approx(error, rel=1e-3)


def test_the_model_runs_once_at_a_compute_step() -> None:
    profile = small(runs=2)
    form = form_of(profile, 3)
    own = rollouts(profile, form)
    model = own[0].model.model
    model.calls = 0
    one_pass(own, form)
    assert model.calls == 2 * len(COMPUTED)


def test_one_prompt_lands_on_the_wanted_latents_as_near_as_its_anchors_reach() -> None:
    """The missing part of the latent at a compute step is at right angles to the anchors."""
    profile = small(runs=1)
    form = form_of(profile, 2)
    (rollout,) = rollouts(profile, form)
    site = one_pass([rollout], form).plan
    weights = Weights(forecasts(site, site.prediction, "cond"), corrections(site, "cond"))
    missing = rollout.wanted[10] - rollout.run(weights, until=10)
    for anchor in (6, 7):
        row = rollout.prediction(anchor)
        cosine = float(row @ missing.double() / (row.norm() * missing.double().norm()))
        assert abs(cosine) < 0.05


def test_two_branches_have_the_same_weights_and_are_guided() -> None:
    profile = small(WAN)
    form = form_of(profile, 3)
    own = rollouts(profile, form)
    best, start = refit(own, form.plan, [form], nothing)
    weights = best.plan.prediction.weights
    assert weights["cond"] == weights["uncond"]
    assert best.error < 0.7 * start.error


def test_a_start_that_is_better_stays() -> None:
    profile = small()
    good, bad = form_of(profile, 3, tuple(range(15))), form_of(profile, 2, (0, 8))
    best, _ = refit(rollouts(profile, good, bad), good.plan, [bad], nothing)
    assert best.plan is good.plan


@pytest.fixture(scope="module")
def search() -> PlanSearch:
    return PlanSearch(made_profile(model=HUNYUAN, runs=2, steps=20))


def test_forms_have_as_many_steps_as_the_budget_and_are_distinct(search: PlanSearch) -> None:
    budget = Budget(speedup=2.0)
    found = forms(search, search.point(budget), budget)
    seen = {(form.anchors, form.plan.prediction.compute_steps["cond"]) for form in found}
    assert len(seen) == len(found) >= 2
    assert {len(steps) for _, steps in seen} == {10}
    assert [form.anchors for form in found] == sorted((f.anchors for f in found), reverse=True)
    first = found[0].plan.prediction.compute_steps["cond"]
    assert first == search.point_of("corrected", 10).steps


def test_bytes_limit_the_anchors(search: PlanSearch) -> None:
    one = 16 * 9 * 16 * 16 * 4
    point = search.point(Budget(speedup=2.0))
    found = forms(search, point, Budget(speedup=2.0, max_bytes=2 * one))
    assert {form.anchors for form in found} == {2}
    with pytest.raises(PlanError, match="weights need 2 predictions a branch, more than 100 bytes"):
        forms(search, point, Budget(speedup=2.0, max_bytes=100))


def test_nothing_skipped_has_no_weights(search: PlanSearch) -> None:
    point = Point("hold", tuple(range(20)), 1.0, 0.0)
    with pytest.raises(PlanError, match="computes every step, there are no weights to fit"):
        forms(search, point, Budget(speedup=1.0))


def test_facts_go_into_the_provenance_and_the_error_stays(search: PlanSearch) -> None:
    plan = with_facts(search.plan(Budget(speedup=2.0)), "mine", refit="3 anchors", refit_passes=2)
    assert plan.name == "mine"
    assert plan.provenance.settings["refit_passes"] == 2
    assert plan.provenance.settings["speedup"] == 2.0
    assert (
        plan.expected.predicted_error == search.plan(Budget(speedup=2.0)).expected.predicted_error
    )


def with_run(profile: Profile, **changed: object) -> Profile:
    runs = (profile.runs[0].model_copy(update=changed), *profile.runs[1:])
    return replace(profile, runs=runs)


def test_a_run_without_a_seed_cannot_be_repeated() -> None:
    profile = small(runs=1)
    with pytest.raises(ProfileError, match="run 1 of the profile has no seed"):
        rollouts(with_run(profile, seed=None), form_of(profile, 2))


def test_another_size_of_clip_is_refused() -> None:
    profile = small(runs=1)
    other = profile.recorded.model_copy(update={"latent": (2, 1, 2, 4)})
    model = MadeModel(replace(profile, subject=other))
    with pytest.raises(ProfileError, match=r"latents are \(2, 1, 4, 4\), this model makes"):
        rollouts_of(profile, model, (), nothing)


@pytest.mark.parametrize(
    ("name", "tree", "model", "solver"),
    [(HUNYUAN, "hunyuan", "HYVideo-mini", None), (WAN, "wan", "t2v-mini", "unipc")],
)
def test_the_tree_is_asked_for_what_was_recorded(name, tree, model, solver) -> None:
    found, asked = request_of(made_profile(model=name, runs=2), "ckpts", None)
    assert (found, asked.model, asked.solver, asked.ckpt_dir) == (tree, model, solver, "ckpts")
    assert (asked.size, asked.frame_num, asked.steps) == ("128*128", 33, 50)
    assert asked.guidance == 5.0


def test_runs_of_several_guidance_scales_are_refused() -> None:
    with pytest.raises(ProfileError, match=r"several guidance scales: \[3\.0, 5\.0\]"):
        request_of(with_run(made_profile(runs=2), guidance=3.0), None, None)


@pytest.mark.parametrize("kind", ["i2v", "flf2v"])
def test_a_profile_of_pictures_is_not_refitted(kind: str) -> None:
    with pytest.raises(PlanError, match=f"keeps no picture, which wan2.1-{kind}-14B needs"):
        request_of(made_profile(model=f"wan2.1-{kind}-14B", runs=1), "ckpts", None)


def test_a_model_of_no_tree_is_refused() -> None:
    profile = made_profile(runs=1)
    model = profile.subject.model.model_copy(update={"family": "flux"})
    other = replace(profile, subject=profile.subject.model_copy(update={"model": model}))
    with pytest.raises(PlanError, match="'flux' is no tree of this project"):
        request_of(other, None, None)


def test_what_is_not_finite_is_refused() -> None:
    profile = small(runs=1)
    form = form_of(profile, 2)
    own = rollouts(profile, form)
    own[0].inputs[0].fill_(float("nan"))
    with pytest.raises(ProfileError, match="prediction of step 0, cond, is not finite"):
        one_pass(own, form)


def test_a_number_of_passes_that_is_none_is_one_line(tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.profile"
    made_profile(runs=2, steps=20).save(path)
    command = ["plan", "--profile", str(path), "-o", str(tmp_path / "a.json"), "--speedup", "2"]
    assert main([*command, "--refit", "0"]) == 2
    assert "--refit: found 0, expected at least 1" in capsys.readouterr().err


def test_the_command_measures_before_and_after_and_says_so_in_the_plan(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    profile, out = small(), tmp_path / "a.json"
    profile.save(tmp_path / "a.profile")

    class Loaded(MadeModel):
        def __init__(self, request: ModelRequest, prompt: str) -> None:
            super().__init__(profile)
            assert (request.model, request.steps, prompt) == ("HYVideo-mini", 16, "prompt 0 of 0")

        loaded = staticmethod(nullcontext)

    monkeypatch.setattr("profiling_core.commands.plan.tree_class", lambda tree: Loaded)
    command = ["plan", "--profile", str(tmp_path / "a.profile"), "-o", str(out), "--speedup", "2"]
    assert main([*command, "--refit", "3", "--name", "mine"]) == 0
    printed, plan = capsys.readouterr(), CachePlan.load(out)
    settings = plan.provenance.settings
    assert plan.name == "mine" and settings["refit_passes"] == 3
    assert settings["measured_error"] <= settings["measured_error_before"]
    assert printed.err.count("full run ") == 3 and printed.err.count("pass ") == 3
    before = printed.out.index("measured  worst run  plan")
    assert f"{settings['measured_error']:.4f}" in printed.out[before:]
    assert "as searched" in printed.out and "predicted before the refit" in printed.out


# -- corrected weights in the plan's file


def with_given(given: dict, solver: str = "euler", skip: str = "linear") -> dict:
    """A document of a plan with `given` weights on one branch."""
    document = form_of(small(), 2).plan.model_dump(mode="json", exclude_none=True)
    site = {**document["sites"][0], "skip": skip, "given": {"cond": given}}
    if skip == "weights":
        site["weights"] = {"cond": {str(s): [1.0] for s in range(16) if s not in COMPUTED}}
    return {**document, "solver": solver, "sites": [site], "expected": None}


def test_given_weights_are_read_with_the_steps_they_belong_to() -> None:
    plan = CachePlan.from_dict(with_given({"3": [0.5, 0.25, 0.25], "6": [2, -1]}, skip="weights"))
    found = {3: ((3, 0.5), (1, 0.25), (0, 0.25)), 6: ((6, 2.0), (3, -1.0))}
    assert corrections(plan, "cond") == found
    assert corrections(CachePlan.loads(plan.dumps()), "cond") == found


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (with_given({"3": [1.0]}), "given: goes with skip 'weights'"),
        (with_given({"3": [1.0]}, "unipc", "weights"), "this plan's solver is unipc"),
        (with_given({"2": [1.0]}, skip="weights"), "'2' is no compute step"),
        (with_given({"1": [1, 2, 3]}, skip="weights"), "3 weights, expected 1 to 2"),
        (with_given({"9" * 9: []}, skip="weights"), "is no compute step"),
    ],
)
def test_given_weights_that_do_not_fit_are_refused(document: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        CachePlan.from_dict(document)


def test_given_weights_stay_with_their_solver() -> None:
    plan = CachePlan.from_dict(with_given({"3": [0.5, 0.5]}, skip="weights"))
    assert regrid(plan, plan.sigmas, solver="euler", shift=plan.shift) is plan
    with pytest.raises(PlanError, match="made for Euler's steps, this plan's solver is dpm"):
        regrid(plan, plan.sigmas, solver="dpm++", shift=plan.shift)

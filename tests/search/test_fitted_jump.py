"""Fitted jumps: exact where nothing is missed, cross-fitted, and as the scheduler steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from made_profiles import made_profile
from profiling_core.errors import PlanError
from profiling_core.plan.cost import bytes_held, speedup_flops
from profiling_core.plan.regrid import regrid
from profiling_core.search import flow_solvers
from profiling_core.search.fitted_jump import FittedJumps
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.resample import on_grid
from profiling_core.search.search import Budget, PlanSearch
from profiling_core.search.segments import SEEN, Segments
from profiling_core.search.trajectories import Trajectories
from wan.scheduler import build_scheduler
from wan.sigmas import sigmas_fp32

STEPS, RUNS, WAN = 12, 6, "wan2.1-t2v-mini"


def made_trajectories(turn: float = 0.1, likeness: float = 1.0) -> Trajectories:
    """Predictions that turn alike in all runs, and what the solver makes of them."""
    rng = np.random.default_rng(3)
    wave = np.cumsum(np.sin(np.arange(STEPS) / 2)[:, None, None] * rng.normal(size=(RUNS, 7)), 0)
    noise = np.cumsum(rng.normal(size=(STEPS, RUNS, 7)), 0)
    predictions = rng.normal(size=(RUNS, 7)) + turn * (likeness * wave + (1 - likeness) * noise)
    levels = Levels(sigmas_fp32("unipc", STEPS, 5.0))
    start = rng.normal(size=(RUNS, 7))
    latents = flow_solvers.run("unipc", levels, start, lambda k, _: predictions[k])
    return Trajectories("unipc", levels, predictions, latents)


def test_a_constant_prediction_stays_exact() -> None:
    jumps = FittedJumps(made_trajectories(turn=0.0), "fitted")
    assert max(np.abs(jumps.errors(i, j)).max() for i, j in ((0, 0), (0, 3), (2, 5))) < 1e-9


def test_runs_that_bend_alike_leave_less_than_plain_jumps_and_noise_does_no_harm() -> None:
    for likeness, at_most in ((1.0, 0.8), (0.0, 1.05)):
        trajectories = made_trajectories(likeness=likeness)
        plain, ours = Segments(trajectories, "jump"), FittedJumps(trajectories, "fitted")
        norms = [np.linalg.norm(kind.table.errors, axis=-1) + 1e-9 for kind in (ours, plain)]
        assert np.exp(np.log(norms[0] / norms[1]).mean()) < at_most


@pytest.mark.parametrize(("i", "j", "n"), [(2, 4, 7), (0, 0, 3), (3, 6, STEPS)])
def test_an_error_in_the_table_has_weights_of_the_other_runs(i: int, j: int, n: int) -> None:
    """Run 2 dropped, weights fitted on the rest, and the weighted scheduler run on run 2."""
    whole, r = made_trajectories(), 2
    others = [run for run in range(RUNS) if run != r]
    rest = replace(
        whole, predictions=whole.predictions[:, others], latents=whole.latents[:, others]
    )
    computed = sorted({0, i, j, *([n] if n < STEPS else [])})
    if n == STEPS:  # the steps before j keep the solver's order
        computed = sorted({0, i, j})
    weights = FittedJumps(rest, "fitted").step_weights(computed)
    sees, seen, leaves, left = FittedJumps(whole, "fitted")._missed(i, j)
    c, d, _ = weights.get(n, (0.0, 0.0, 0.0))
    p, at = weights[j][2], n - j - 1
    wanted = seen[at, r] + sum(p * basis[at, r] for basis in sees)
    if n < STEPS:
        kept = left[at, r] + sum(w * b[at, r] for w, b in zip((c, d), leaves, strict=False))
        wanted = kept + SEEN * wanted
    assert np.allclose(FittedJumps(whole, "fitted").errors(i, j)[at, r], wanted, atol=1e-12)


def test_the_weighted_scheduler_is_a_naive_loop() -> None:
    """Clean latents, the solver's factors and the three weights, summed by hand, step by step."""
    trajectories = made_trajectories()
    computed = (0, 1, 2, 4, 7, 9, 11)
    weights = FittedJumps(trajectories, "fitted").step_weights(computed)
    weights = {step: tuple(30 * w for w in own) for step, own in weights.items()}  # to be seen
    levels = Levels([trajectories.levels.sigmas[step] for step in computed])
    start, given = trajectories.latents[0], [trajectories.predictions[s] for s in computed]
    sums = list(weights.values())
    x = came = start
    clean: list[np.ndarray] = []
    for k, (c, d, p) in enumerate(sums):
        clean.append(x - levels.sigma[k] * given[k])
        change = clean[k - 1] - clean[k - 2] if k > 1 else 0.0
        if k == 1:
            keep, new = flow_solvers.first_order(levels, 0, 1)
            x = keep * came + new * (clean[0] + clean[1]) / 2 + c * (clean[1] - clean[0])
        elif k:
            keep, new, old, there = flow_solvers.corrector(levels, k - 2, k - 1, k)
            x = keep * came + new * clean[k - 1] + old * clean[k - 2] + there * clean[k]
            x = x + c * (clean[k] - clean[k - 1]) + d * change
        came = x
        if k in (0, len(sums) - 1):
            keep, new = flow_solvers.first_order(levels, k, k + 1)
            x = keep * x + new * clean[k]
        else:
            keep, new, old = flow_solvers.second_order(levels, k - 1, k, k + 1)
            x = keep * x + new * clean[k] + old * clean[k - 1]
        x = x + (p * (clean[k] - clean[k - 1]) if k else 0.0)
    ends = []
    for own in (sums, ()):
        scheduler = build_scheduler("unipc", STEPS, 5.0, visit=computed, weights=own)
        latent = torch.from_numpy(start).float()
        for t, v in zip(scheduler.timesteps, given, strict=True):
            latent = scheduler.step(torch.from_numpy(v).float(), t, latent, return_dict=False)[0]
        ends.append(latent.numpy())
    assert np.allclose(ends[0], x, atol=2e-5) and np.abs(ends[0] - ends[1]).max() > 1e-3


def test_a_searched_plan_carries_the_weights_of_its_compute_steps_and_holds_nothing() -> None:
    search = PlanSearch(made_profile(model=WAN, runs=5, steps=20), ("fitted",))
    plan = search.plan(Budget(speedup=2.0))
    assert plan.jumps and speedup_flops(plan) == 2.0
    assert len(plan.solver_weights) == 10 and plan.solver_weights[0] == (0.0, 0.0, 0.0)
    assert plan.predicted_error == search.predicted(plan)
    sizes = {"tokens": 8, "stream_itemsize": 4, "latent_numel": 9, "prediction_itemsize": 4}
    assert bytes_held(plan, **sizes) == 0


def test_a_fitted_jump_is_left_where_it_did_not_win() -> None:
    search = PlanSearch(made_profile(model=WAN, runs=5, steps=20), ("jump", "fitted"))
    for count, taken in ((10, True), (6, True), (5, False)):
        points = [search.point_of(skip, count) for skip in ("jump", "fitted")]
        assert points[1].error < points[0].error  # as predicted
        assert search.exactly(count) == points[taken]
    assert {point.skip for point in search.frontier((4.0, 5.0))} == {"jump"}
    assert search.exactly(5, ("fitted",)).skip == "fitted"


def test_dpm_has_no_fitted_jumps_and_a_plan_with_them_jumps_there() -> None:
    profile = made_profile(model=WAN, runs=5, steps=20)
    plan = PlanSearch(profile).plan(Budget(speedup=2.0))
    other = on_grid(profile, solver="dpm++")
    search = PlanSearch(other)
    assert search.skips == ("hold", "linear", "jump") and plan.solver_weights
    there = regrid(plan, other.recorded.sigmas, solver="dpm++", shift=plan.shift)
    assert not there.solver_weights and search.predicted(plan) == search.predicted(there)
    with pytest.raises(PlanError, match=r"'fitted' is no reuse mode with dpm\+\+: hold, linear, "):
        PlanSearch(other, ("fitted",))


def test_a_profile_of_few_runs_is_searched_without_fitted_jumps() -> None:
    few = made_profile(model=WAN, runs=3, steps=20)
    assert "fitted" not in PlanSearch(few).skips and "jump" in PlanSearch(few).skips
    with pytest.raises(PlanError, match="'fitted' needs a profile of at least 4 runs, this one"):
        PlanSearch(few, ("fitted",))

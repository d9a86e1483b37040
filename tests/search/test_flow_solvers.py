"""The solvers on NumPy arrays against the schedulers that the trees run, on unit vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

import hyvideo.scheduler
import wan.scheduler
from profiling_core.errors import PlanError
from profiling_core.plan.solvers import SOLVERS
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels

GRIDS = {
    "all": None,
    "first": [0],
    "two": [0, 30],
    "ends": [0, 1, 49],
    "random": sorted({0, *np.random.default_rng(0).choice(50, 20, replace=False).tolist()}),
}


def scheduler_of(solver: str, visit: Sequence[int] | None):
    if solver == "euler":
        return hyvideo.scheduler.build_scheduler(50, 7.0, visit=visit)
    return wan.scheduler.build_scheduler(solver, 50, 5.0, visit=visit)


def on_unit_vectors(scheduler) -> np.ndarray:
    """Factors of the start and of every prediction in every latent: (steps + 1, steps + 1)."""
    steps = len(scheduler.timesteps)
    units = torch.eye(steps + 1, dtype=torch.float64)
    x, seen = units[:1], [units[0]]
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(units[k + 1 : k + 2], t, x, return_dict=False)[0].double()
        seen.append(x[0])
    return torch.stack(seen).numpy()


@pytest.mark.parametrize("visit", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_latent_is_the_schedulers(solver: str, visit: Sequence[int] | None) -> None:
    scheduler = scheduler_of(solver, visit)
    steps = len(scheduler.timesteps)
    units = np.eye(steps + 1)
    found = flow_solvers.run(
        solver, Levels(scheduler.sigmas[:-1].tolist()), units[0], lambda k, _: units[k + 1]
    )
    assert np.abs(found - on_unit_vectors(scheduler)).max() < 2e-6  # the schedulers' fp32


def test_predictions_see_the_latent_that_the_model_would_see() -> None:
    seen = []

    def predict(k: int, x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return x / (k + 1)

    start = np.arange(6.0).reshape(2, 3)
    found = flow_solvers.run("unipc", Levels([0.9, 0.6, 0.3]), start, predict)
    assert found.shape == (4, 2, 3)
    assert np.array_equal(found[:3], seen)


def test_an_unknown_solver_is_named() -> None:
    with pytest.raises(PlanError, match="solver 'heun' is not known here: expected euler, unipc"):
        flow_solvers.run("heun", Levels([1.0]), np.zeros(2), lambda k, x: x)

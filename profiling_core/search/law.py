"""A law of the error on models that were not profiled here, fitted to their public lists.

A profile holds a model's predictions and how it treats an error. For the official models there are
none here, but public searches found compute steps on them (plan/public_lists.json), and steps say
where a stretch of skipped steps hurts. The law that explains them has three parts.

The prediction turns with the noise level sigma, alpha = 1 - sigma being the share of the clean clip
in the latent. At sigma = 1 the share is 0; the first alpha counts as at least half the second.

    (1)  c_s = TURN x integral of alpha^-EARLY sigma^-LATE d sigma, over the levels of step s

The trajectory of the predictions is smooth and forgets where it came from: a Matern process of
order 3/2 over its length tau so far, whose change over a short step is c_s,

    (2)  tau_s - tau_s-1 = c_s / sqrt 3
    (3)  v_s . v_t = NORM^2 (1 + sqrt 3 d) exp(-sqrt 3 d),  d = |tau_s - tau_t|

(3) is a Gram matrix, so that segments goes on as with a profile of one run. The start noise is left
out: a solver's error depends on how predictions change, not on where they start.

An error in the latent at step n is in the final latent larger by

    (4)  S_n = min(alpha_n^-GROWTH, LARGEST)

and the errors of a plan's stretches (i, j, n) add up as lengths, never as vectors that cancel:

    (5)  E = (sum over stretches of (S_n |d(i, j, n)|)^POWER)^(1 / POWER)

with the largest stretch alone where POWER is infinite.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.segments import held_lengths
from profiling_core.search.step_search import SENSITIVITY_EXPONENT
from profiling_core.search.trajectories import Trajectories

FILE = "worlds.json"
STEEPEST = 16.0  # of powers, where a shortest path stands for the smallest largest stretch
NORM = 2**0.5  # of a prediction, noise minus clip, over that of a clip with unit variance
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(6)  # of the integral in (1), on -1 .. 1


@dataclass(frozen=True)
class Law:
    """The parameters of (1), (4) and (5)."""

    early: float
    late: float
    turn: float
    growth: float
    largest: float
    power: float

    def changes(self, levels: Levels) -> np.ndarray:
        """c of (1) for steps 1 .. S-1, (S - 1,)."""
        sigma = levels.sigma[:-1].copy()
        sigma[0] = min(sigma[0], 1 - levels.alpha[1] / 2)
        above, below = sigma[:-1, None], sigma[1:, None]
        at = (above + below + (above - below) * POINTS) / 2
        rate = (1 - at) ** -self.early * at**-self.late
        return self.turn * (rate * WEIGHTS * (above - below) / 2).sum(axis=1)

    def sensitivity(self, levels: Levels) -> np.ndarray:
        """S of (4), (S + 1,)."""
        with np.errstate(divide="ignore"):  # alpha_0 may be 0, and no stretch ends there
            return np.minimum(levels.alpha**-self.growth, self.largest)

    def trajectory(self, levels: Levels, solver: str) -> Trajectories:
        """One run whose predictions have the products of (3)."""
        return trajectory_of(gram(self.changes(levels)), levels, solver)

    def held(self, levels: Levels, solver: str) -> np.ndarray:
        """S_n |d(j, n)| of every held stretch, (S, S + 1); infinite where n is not after j."""
        lengths = held_lengths(self.trajectory(levels, solver))[..., 0]
        return lengths * self.sensitivity(levels)


class LawSearch:
    """Compute steps by a law's held stretches, for any reuse mode.

    Lists that were held say nothing of how a jump or a forecast errs: on the miniatures, steps by
    the held stretches of a fitted law are better for both than steps by its own jumps and forecasts
    (docs/research/law.md). exponent: of S, as in (6) of step_search.
    """

    def __init__(
        self, law: Law, levels: Levels, solver: str, exponent: float = SENSITIVITY_EXPONENT
    ) -> None:
        self.power = law.power
        self._errors = held_lengths(law.trajectory(levels, solver))[..., 0]
        self._errors *= law.sensitivity(levels) ** exponent

    def best(self, count: int) -> tuple[int, ...]:
        """The `count` compute steps of the least error; step 0 is one of them."""
        costs = (self._errors / self._errors[0, -1]) ** min(self.power, STEEPEST)
        least, came_from = np.full(costs.shape[1], np.inf), []
        least[0] = 0.0
        for _ in range(count):
            sums = least[:-1, None] + costs
            came_from.append(sums.argmin(axis=0))
            least = sums.min(axis=0)
        steps = [len(costs)]
        for layer in reversed(came_from):
            steps.append(int(layer[steps[-1]]))
        return tuple(reversed(steps[1:]))

    def errors(self, lists: np.ndarray) -> np.ndarray:
        """E of (5) of many lists (N, K), in the law's own unit: it compares lists, no more."""
        ends = np.pad(lists[:, 1:], ((0, 0), (0, 1)), constant_values=len(self._errors))
        return np.linalg.norm(self._errors[lists, ends], ord=self.power, axis=-1)


@cache
def worlds() -> dict[str, Law]:
    """The fitted laws that explain the public lists about equally well; the first is the best."""
    file = resources.files("profiling_core.search") / FILE
    document = json.loads(file.read_text(encoding="utf-8"))
    return {
        name: Law(**{key: float(value) for key, value in fields.items()})
        for name, fields in document["worlds"].items()
    }


def gram(change: np.ndarray) -> np.ndarray:
    """Products of the predictions by (2) and (3), for c (S - 1,): (S, S)."""
    tau = np.append(0.0, np.cumsum(change)) / np.sqrt(3)
    distance = np.sqrt(3) * np.abs(tau[:, None] - tau)
    return NORM**2 * (1 + distance) * np.exp(-distance)


def trajectory_of(products: np.ndarray, levels: Levels, solver: str) -> Trajectories:
    """One run whose predictions have these products, and what the solver makes of them."""
    rounding = 1e-12 * np.trace(products) / len(products) * np.eye(len(products))
    v = np.linalg.cholesky(products + rounding)[:, None]
    latents = flow_solvers.run(solver, levels, np.zeros_like(v[0]), lambda step, _: v[step])
    return Trajectories(solver, levels, v, latents)

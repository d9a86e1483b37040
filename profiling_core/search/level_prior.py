"""Plans from published figures: compute steps for models that were not profiled here.

For the official models MagCache's calibration is published (published_ratios.json): for every step
the ratio of the norms of two consecutive residuals, where a residual r is what all blocks together
add to the tokens,

    (1)  gamma_s = |r_s| / |r_s-1|

A Gram matrix holds more in two ways. The ratio has no direction: a residual that turns without
growing has the ratio 1. And it is no ratio of predictions: the head normalises the stream before it
projects, and the product of the ratios, up to 3.6 on HunyuanVideo, is not the prediction's norm.
The rest is assumed. The assumptions were chosen and checked on the miniatures, where both the
ratios and the Gram matrices are known (docs/research/presets.md):

The residual turns with the noise level, by an angle in proportion to the logarithm of the share
alpha = 1 - sigma of the clean clip in the latent. At sigma = 1 the share is 0; the first alpha
counts as at least half the second.

    (2)  theta_s = TURN ln(alpha_s / alpha_s-1)

With a ratio and an angle, the law of cosines gives the relative change of the residual, and the
prediction is taken to change as much, at a norm NORM that does not change:

    (3)  c_s^2 = 1 + gamma_s^2 - 2 gamma_s cos theta_s

The trajectory of the predictions is taken to be smooth and to forget where it came from: a Matern
process of order 3/2 over its length tau so far, whose change over a short step is c_s,

    (4)  tau_s - tau_s-1 = c_s / sqrt 3
    (5)  v_s . v_t = NORM^2 (1 + sqrt 3 d) exp(-sqrt 3 d),  d = |tau_s - tau_t|

(5) is a Gram matrix, so that segments and step_search go on as with a profile of one run. The start
noise is left out: a solver's error depends on how predictions change, not on where they start.
Errors come out too small, since real predictions also jitter from step to step: by SCALE.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

import numpy as np

from profiling_core.errors import PlanError
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.segments import Segments
from profiling_core.search.sensitivity import default_law
from profiling_core.search.step_search import StepSearch
from profiling_core.search.trajectories import Trajectories

LABEL = "from published figures, profile your model for a better one"
FILE = "published_ratios.json"
TURN = 0.5  # values from 0.25 to 1 hardly differ on the miniatures
SCALE = 4.4  # of predicted errors: as the miniatures' profiles predict such plans, 1.6 to 24
NORM = 2**0.5  # of a prediction, noise minus clip, over that of a clip with unit variance


def step_search(products: np.ndarray, levels: Levels, solver: str, skip: str) -> StepSearch:
    """The search on one run whose predictions have these products, with the default law."""
    table = Segments(trajectory_of(products, levels, solver), skip).table
    return StepSearch(table, default_law(levels.sigma)[:, None])


def changes(levels: Levels, ratios: np.ndarray, turn: float = TURN) -> np.ndarray:
    """c of (3) for gamma_1 .. gamma_S-1, (S - 1,); turn: TURN of (2), 0 takes the ratios alone."""
    if len(ratios) != len(levels) - 1:
        raise PlanError(
            f"{len(ratios)} magnitude ratios for {len(levels)} noise levels: expected "
            f"{len(levels) - 1}, one for every step but the first"
        )
    alpha = levels.alpha[:-1].copy()
    alpha[0] = max(alpha[0], alpha[1] / 2)
    angle = turn * np.diff(np.log(alpha))
    return np.sqrt(1 + ratios**2 - 2 * ratios * np.cos(angle))


def gram(change: np.ndarray) -> np.ndarray:
    """Products of the predictions by (4) and (5), for c (S - 1,): (S, S)."""
    tau = np.append(0.0, np.cumsum(change)) / np.sqrt(3)
    distance = np.sqrt(3) * np.abs(tau[:, None] - tau)
    return NORM**2 * (1 + distance) * np.exp(-distance)


def trajectory_of(products: np.ndarray, levels: Levels, solver: str) -> Trajectories:
    """One run whose predictions have these products, and what the solver makes of them."""
    rounding = 1e-12 * np.trace(products) / len(products) * np.eye(len(products))
    v = np.linalg.cholesky(products + rounding)[:, None]
    latents = flow_solvers.run(solver, levels, np.zeros_like(v[0]), lambda step, _: v[step])
    return Trajectories(solver, levels, v, latents)


@cache
def published_ratios(model: str) -> np.ndarray:
    """gamma_1 .. gamma_S-1 of an official model, the mean of its branches; PlanError lists them."""
    document = json.loads(
        (resources.files("profiling_core.search") / FILE).read_text(encoding="utf-8")
    )
    models = {name: entry for name, entry in document.items() if isinstance(entry, dict)}
    if model not in models:
        raise PlanError(f"no published magnitude ratios of {model}: there are {', '.join(models)}")
    entry = models[model]
    branches = [values for name, values in entry.items() if name != "steps"]
    return np.mean(branches, axis=0)[1:]

"""Sensitivity: how much of an error in the latent before a step is left in the final latent.

A profile holds it for the steps of `--sensitivity`. Elsewhere a default law stands in,

    S(sigma) = FACTOR (sigma / (1 - sigma))^POWER, at most LARGEST

the least squares fit in logarithms to the geometric means of both miniatures' profiles, which lie
a factor of 1.7 below and above it on average. By it early errors count more than late ones; how
much more differs between models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiling_core.profile.profile import Profile
from profiling_core.search.trajectories import Trajectories

DEFAULT = "default law"
FACTOR, POWER, LARGEST = 0.86, 0.634, 6.5


@dataclass(frozen=True)
class Sensitivity:
    """S_n of every run for n = 0 .. S, (S + 1, R), and where it comes from."""

    values: np.ndarray
    source: str


def sensitivity_of(profile: Profile, trajectories: Trajectories) -> Sensitivity:
    """Every run's own, interpolated in the logarithm between its measured steps.

    Steps before the first and after the last measured one have that one's value. At the end, n = S,
    it is 1, since nothing follows that could change an error.
    """
    measured = profile.arrays["sensitivity"].astype(np.float64)
    steps = np.flatnonzero(np.isfinite(measured).all(axis=0))
    if not steps.size:
        law = default_law(trajectories.levels.sigma)
        return Sensitivity(np.repeat(law[:, None], trajectories.runs, axis=1), DEFAULT)
    logs = [np.interp(np.arange(trajectories.steps), steps, np.log(run[steps])) for run in measured]
    values = np.append(np.exp(np.stack(logs, axis=1)), np.ones((1, trajectories.runs)), axis=0)
    return Sensitivity(values, f"measured at {steps.size} steps")


def default_law(sigma: np.ndarray) -> np.ndarray:
    """S(sigma) for sigma falling to 0, (S + 1,); 1 at the end."""
    with np.errstate(divide="ignore"):
        law = np.minimum(FACTOR * (sigma / (1 - sigma)) ** POWER, LARGEST)
    law[-1] = 1.0
    return law

"""Sensitivity: how much of an error in the latent before a step is left in the final latent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiling_core.paths import Paths
from profiling_core.profile import Profile


@dataclass(frozen=True)
class Sensitivity:
    """S_n for n = 0 .. S, (S + 1,), and where it comes from."""

    values: np.ndarray
    source: str


def sensitivity_of(profile: Profile, paths: Paths) -> Sensitivity:
    """The profile's own, between its measured steps straight in its logarithm over the steps.

    Step 0 is taken like the first measured one; at the end an error is what it is, 1.
    """
    measured = profile.arrays["sensitivity"].astype(np.float64)
    steps = np.flatnonzero(np.isfinite(measured).any(axis=0))
    if not steps.size:
        return Sensitivity(default_law(paths.levels.sigma), "default law")
    logs = np.nanmean(np.log(measured[:, steps]), axis=0)
    known = np.append(steps, paths.steps)
    values = np.exp(np.interp(np.arange(paths.steps + 1), known, np.append(logs, 0.0)))
    return Sensitivity(values, f"measured at {steps.size} steps")


def default_law(sigma: np.ndarray) -> np.ndarray:
    return np.ones_like(sigma)

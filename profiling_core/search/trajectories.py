"""Trajectories: a profile's runs as coordinates, on which any plan is computed without the model.

The Gram matrix of a run's predictions and latents fixes them up to a rotation: with G = L L^T the
rows of L have the same lengths, distances and angles as the recorded tensors. A solver, a forecast
and an error are weighted sums of those, so they are computed on rows of L, a hundred numbers each,
and their norms are the true ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiling_core.errors import ProfileError
from profiling_core.plan.solvers import SOLVERS
from profiling_core.profile.profile import Profile
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels

SMALLEST = 1e-15  # of the largest eigenvalue: below it is rounding
MISFIT = 0.02  # relative distance of the integrated final latent from the recorded one


@dataclass(frozen=True)
class Trajectories:
    """R recorded runs of S steps in D coordinates; lengths are relative to the final latent."""

    solver: str
    levels: Levels
    predictions: np.ndarray  # as the solver gets them, guided: (S, R, D)
    latents: np.ndarray  # before every step and the final one, (S + 1, R, D)
    change: int | None = None  # the first step of another model

    @property
    def steps(self) -> int:
        return len(self.levels)

    @property
    def runs(self) -> int:
        return self.latents.shape[1]


def trajectories_of(profile: Profile) -> Trajectories:
    """ProfileError when the solver is not known, guidance is missing for two branches, or the
    recorded latents are not what this solver makes of the recorded predictions.
    """
    subject = profile.recorded
    if subject.solver not in SOLVERS:
        known = ", ".join(SOLVERS)
        raise ProfileError(f"the profile's solver {subject.solver!r} is not one of {known}")
    scales, steps = guidance_scales(profile), subject.steps
    pairs = zip(profile.arrays["gram"], scales, strict=True)
    rows = [_coordinates(_guided(gram, scale, steps, subject.branches)) for gram, scale in pairs]
    width = max(run.shape[1] for run in rows)
    whole = np.stack([np.pad(run, ((0, 0), (0, width - run.shape[1]))) for run in rows], axis=1)
    whole /= np.linalg.norm(whole[-1], axis=-1)[None, :, None]
    levels = Levels(subject.sigmas)
    found = Trajectories(subject.solver, levels, whole[:steps], whole[steps:], subject.change)
    _check_solver(found)
    return found


def integrate(trajectories: Trajectories, predictions: np.ndarray) -> np.ndarray:
    """The solver's latents (S + 1, R, D) on all levels, given predictions (S, R, D)."""
    start = trajectories.latents[0]
    return flow_solvers.run(
        trajectories.solver, trajectories.levels, start, lambda step, _: predictions[step]
    )


def _guided(gram: np.ndarray, scale: float, steps: int, branches: tuple[str, ...]) -> np.ndarray:
    """Products of the guided predictions uncond + scale (cond - uncond), then of the latents."""
    if len(branches) == 1:
        return gram
    sums = np.zeros((len(gram) - steps, len(gram)))
    for step in range(steps):
        for branch, weight in (("cond", scale), ("uncond", 1 - scale)):
            sums[step, branches.index(branch) * steps + step] = weight
    sums[steps:, 2 * steps :] = np.eye(len(gram) - 2 * steps)
    return sums @ gram @ sums.T


def _coordinates(gram: np.ndarray) -> np.ndarray:
    """Rows (V, D) whose products are those of `gram`, the largest axes first."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    kept = values > SMALLEST * values[-1]
    return (vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1]


def guidance_scales(profile: Profile) -> np.ndarray:
    """The guidance scale of every run, (R,); 1 where there is none to apply."""
    given = [run.guidance for run in profile.runs]
    if len(profile.recorded.branches) > 1 and None in given:
        raise ProfileError(
            f"run {given.index(None) + 1} of the profile has two branches and no guidance scale: "
            "record it again with finish(..., guidance=...)"
        )
    return np.array([1.0 if scale is None else scale for scale in given])


def _check_solver(trajectories: Trajectories) -> None:
    final = integrate(trajectories, trajectories.predictions)[-1]
    misses = np.linalg.norm(final - trajectories.latents[-1], axis=-1)
    if misses.max() > MISFIT:
        raise ProfileError(
            f"run {int(misses.argmax()) + 1} of the profile does not follow {trajectories.solver}: "
            f"its final latent is {misses.max():.1%} off; was it recorded by another loop?"
        )

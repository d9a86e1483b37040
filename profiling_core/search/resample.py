"""Resampling: a profile as it would be on another step count, shift or solver.

A recorded run has its predictions v at the noise levels sigma_s that it visited. The levels of
another grid lie between them:

    (1)  v'_k = sum over s of M[k, s] v_s              interpolation along the trajectory
    (2)  x'_k = keep_k x_0 + sum over s of W[k, s] v'_s    the other solver, from the same noise

A flow solver is linear in the noise and in the predictions, so both are one matrix A, and the
products of the other grid's predictions and latents are A G A^T with the recorded Gram matrix G.
The result is a profile like any other: plans are searched and errors predicted on it as usual.

M is the cubic through the nearest four recorded levels in the coordinate in which the grid is even:
the level before its shift, u = sigma / (shift - (shift - 1) sigma). A monotone interpolation would
depend on the choice of axes, which is arbitrary here.

This leaves out that on another grid the solver comes to other latents and the model's predictions
change with them. `benchmarks/search/transfer.py` measures that error.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from profiling_core.errors import ProfileError
from profiling_core.plan.model_specs import first_levels
from profiling_core.plan.schema import MOST_STEPS
from profiling_core.profile.profile import Profile, Subject
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.trajectories import guidance_scales

AROUND = 4  # recorded levels that a prediction is interpolated from
LAST = 1e-3  # where diffusers' multistep solvers end their line, the last level of training
CLOSE = 1e-4  # of the levels of a shifted line: rounding


@dataclass(frozen=True)
class SigmaGrid:
    """Noise levels that a solver visits, falling, without the 0 at the end."""

    solver: str
    shift: float
    sigmas: tuple[float, ...]

    def __str__(self) -> str:
        return f"{len(self.sigmas)} {self.solver} steps, shift {self.shift:g}"


@dataclass(frozen=True)
class Resampled(Profile):
    """A profile on a grid that it was not recorded on; `source` is the recorded one."""

    source: Profile = field(kw_only=True)

    @property
    def origin(self) -> str:
        return f"{self.source.origin}, resampled from {recorded_grid(self.source)}"

    def sha256(self) -> str:
        return self.source.sha256()  # plans name the recorded profile


def on_grid(
    profile: Profile,
    steps: int | None = None,
    shift: float | None = None,
    solver: str | None = None,
) -> Profile:
    """The profile on another grid; None keeps what was recorded.

    Returns the profile itself for its own grid. Arrays: gram, delta_gram, sensitivity (at the
    levels nearest to the measured ones), and of every block its seconds, FLOPs and R_attn.
    ProfileError for a grid that the model's solver does not have, or a profile whose levels are no
    shifted line.
    """
    if steps is None and shift is None and solver is None:
        return profile  # of a foreign loop, whose levels may be no shifted line
    return moved_to(profile, grid_like(profile.recorded, steps, shift, solver))


def moved_to(profile: Profile, grid: SigmaGrid) -> Profile:
    """The profile on a grid that its family need not have: as another family's model would run."""
    if grid == recorded_grid(profile):
        return profile
    own, near = profile.recorded, _nearest(profile.recorded, grid)
    subject = own.model_copy(
        update={
            "steps": len(grid.sigmas),
            "sigmas": grid.sigmas,
            "solver": grid.solver,
            "shift": grid.shift,
            "attention_steps": tuple(near[step] for step in own.attention_steps),
            "map_steps": (),
        }
    )
    weights = interpolation(own, grid.sigmas)
    arrays = {
        "gram": _grams(profile, grid, weights),
        "sensitivity": _sensitivity(profile, grid),
    }
    for name, array in profile.arrays.items():
        if name.startswith("delta_gram."):
            arrays[name] = _delta_gram(array, weights)
        elif name.startswith("block_") or name in ("attention_share", "attention_chance"):
            arrays[name] = array
    return Resampled(profile.settings, subject, profile.runs, arrays, source=profile)


def recorded_grid(profile: Profile) -> SigmaGrid:
    subject = profile.recorded
    return SigmaGrid(subject.solver, subject.shift, subject.sigmas)


def grid_like(
    subject: Subject,
    steps: int | None = None,
    shift: float | None = None,
    solver: str | None = None,
) -> SigmaGrid:
    """The noise levels of the model's own solver for other settings; ProfileError as `on_grid`."""
    steps = subject.steps if steps is None else steps
    solver = subject.solver if solver is None else solver
    shift = subject.shift if shift is None else float(shift)
    if not 2 <= steps <= MOST_STEPS:
        raise ProfileError(f"{steps} steps: expected 2 to {MOST_STEPS}")
    if not 0 < shift < float("inf"):
        raise ProfileError(f"shift {shift:g}: expected a positive number, for example 5.0")
    first, end = _first_level(subject, solver), 0.0
    own = _shifted_line(_first_level(subject, subject.solver), subject.steps, subject.shift)
    if not _close(own, subject) and solver == subject.solver:  # of diffusers?
        first, end = float(_unshifted(np.array(subject.sigmas[0]), subject.shift)), LAST
        own = _shifted_line(first, subject.steps, subject.shift, end)
    if not _close(own, subject):
        raise ProfileError(
            f"the profile's {subject.steps} noise levels are no line shifted by {subject.shift:g}: "
            "record a profile on the other grid"
        )
    if (steps, shift, solver) == (subject.steps, subject.shift, subject.solver):
        return SigmaGrid(solver, shift, subject.sigmas)
    sigmas = _shifted_line(first, steps, shift, end).astype(np.float32)
    if not (np.diff(sigmas) < 0).all():
        raise ProfileError(f"shift {shift:g} leaves no distance between {steps} noise levels")
    return SigmaGrid(solver, shift, tuple(float(sigma) for sigma in sigmas))


def interpolation(subject: Subject, sigmas: tuple[float, ...]) -> np.ndarray:
    """M of (1), (len(sigmas), S): rows sum to 1 and have at most AROUND entries.

    Where two models take turns, every level is between levels of its own model.
    """
    there, here = (_unshifted(np.array(s), subject.shift) for s in (sigmas, subject.sigmas))
    if subject.boundary is None or subject.change is None:
        return _between(there, here)
    matrix, own = np.zeros((len(there), len(here))), subject.change
    cut = sum(sigma >= subject.boundary for sigma in sigmas)
    for rows, columns in ((slice(cut), slice(own)), (slice(cut, None), slice(own, None))):
        matrix[rows, columns] = _between(there[rows], here[columns])
    return matrix


def _between(there: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Lagrange's weights of the recorded places `here` at the places `there`."""
    count = min(AROUND, len(here))
    first = np.searchsorted(-here, -there) - count // 2
    first = np.clip(first, 0, len(here) - count)
    matrix = np.zeros((len(there), len(here)))
    for row, (level, start) in enumerate(zip(there, first, strict=True)):
        knots = here[start : start + count]
        for number, knot in enumerate(knots):
            others = np.delete(knots, number)
            matrix[row, start + number] = np.prod((level - others) / (knot - others))
    return matrix


def _first_level(subject: Subject, solver: str) -> float:
    """Where the solver's grid starts before the shift."""
    known = first_levels(subject.model.family)
    if solver in known:
        return known[solver]
    if solver == subject.solver:
        return float(_unshifted(np.array(subject.sigmas[0]), subject.shift))
    names = ", ".join(dict.fromkeys((subject.solver, *known)))
    raise ProfileError(f"solver {solver!r} is none of {subject.model.family}'s: expected {names}")


def _close(levels: np.ndarray, subject: Subject) -> bool:
    return np.allclose(levels, subject.sigmas, rtol=CLOSE, atol=CLOSE / subject.steps)


def _shifted_line(first: float, steps: int, shift: float, end: float = 0.0) -> np.ndarray:
    line = np.linspace(first, end, steps + 1)[:-1]
    return shift * line / (1 + (shift - 1) * line)


def _unshifted(sigma: np.ndarray, shift: float) -> np.ndarray:
    return sigma / (shift - (shift - 1) * sigma)


def _nearest(subject: Subject, grid: SigmaGrid) -> list[int]:
    """For every recorded step the grid's step with the nearest level."""
    distance = np.abs(np.subtract.outer(subject.sigmas, grid.sigmas))
    return [int(step) for step in distance.argmin(axis=1)]


def _grams(profile: Profile, grid: SigmaGrid, weights: np.ndarray) -> np.ndarray:
    """A G A^T of every run, (R, V', V')."""
    scales = guidance_scales(profile)
    maps = {scale: _vectors(profile.recorded, grid, weights, scale) for scale in set(scales)}
    pairs = zip(profile.arrays["gram"], scales, strict=True)
    return np.stack([maps[scale] @ gram @ maps[scale].T for gram, scale in pairs])


def _vectors(subject: Subject, grid: SigmaGrid, weights: np.ndarray, scale: float) -> np.ndarray:
    """A: the other grid's predictions and latents (V') in terms of the recorded ones (V)."""
    branches, (there, here) = len(subject.branches), weights.shape
    matrix = np.zeros((branches * there + there + 1, branches * here + here + 1))
    guided = np.zeros((there, branches * there))
    for number in range(branches):
        rows = slice(number * there, (number + 1) * there)
        matrix[rows, number * here : (number + 1) * here] = weights
        cond = subject.branches[number] == "cond"
        guided[:, rows] = np.eye(there) * (1 if branches == 1 else scale if cond else 1 - scale)
    levels = Levels(grid.sigmas)
    keep = flow_solvers.run(grid.solver, levels, np.ones(()), lambda k, _: np.zeros(()))
    response = flow_solvers.response(grid.solver, levels)  # keep and W of (2)
    matrix[branches * there :] = response @ guided @ matrix[: branches * there]
    matrix[branches * there :, branches * here] += keep  # of the noise, the first latent
    return matrix


def _delta_gram(array: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Products of block deltas, interpolated like the predictions: (C, B S', B S')."""
    there, here = weights.shape
    count, blocks = len(array), array.shape[1] // here
    split = array.reshape(count, blocks, here, blocks, here)
    moved = np.einsum("ks,casbt,lt->cakbl", weights, split, weights, optimize=True)
    return moved.reshape(count, blocks * there, blocks * there)


def _sensitivity(profile: Profile, grid: SigmaGrid) -> np.ndarray:
    """(R, S'): interpolated in the logarithm over u, at the levels nearest to measured ones."""
    subject, measured = profile.recorded, profile.arrays["sensitivity"].astype(np.float64)
    found = np.full((len(measured), len(grid.sigmas)), np.nan)
    steps = np.flatnonzero(np.isfinite(measured).all(axis=0))
    if steps.size:
        here, there = (
            -_unshifted(np.array(s), subject.shift) for s in (subject.sigmas, grid.sigmas)
        )
        nearest = sorted({_nearest(subject, grid)[step] for step in steps})
        for run, values in enumerate(measured):
            logs = np.interp(there[nearest], here[steps], np.log(values[steps]))
            found[run, nearest] = np.exp(logs)
    return found

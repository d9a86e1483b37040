"""Fitted jumps: weights of UniPC's step over skipped levels, from Gram matrices alone.

A jump from j to n, i being the compute step before j, is changed by differences of the clean
latents m, so that it stays exact where the prediction is constant:

    (1)  x_n = the jump's + p (m_j - m_i)                             what the model sees
    (2)  y_n = the jump's + c (m_n - m_j) + d (m_j - m_i)             what goes on

p, and c and d, are least squares over the runs of what the plain jump misses of the recorded
latents. Every run counts by its own share of it; a ridge keeps the weights small, and so does a
factor between 0 and 1, the best one for runs that are left out of the fit in turn.

Weights that were fitted on a run flatter it. So the table of segments holds cross-fitted errors:
those of every run with the weights that all other runs give.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from profiling_core.search.segments import SEEN, Segments

LEAST_RUNS = 4  # of a profile: two are left out, and two fit
RIDGE = 1e-2  # of the mean square of the differences
ROUNDING = 1e-6  # of the final latent: what is missing below it counts no more
StepWeights = tuple[float, float, float]  # c and d on arrival at a compute step, p on leaving it


class FittedJumps(Segments):
    """Errors of fitted jumps, and the weights of a plan's."""

    def errors(self, i: int, j: int) -> np.ndarray:
        sees, seen, leaves, left = self._missed(i, j)
        found = seen + _mended(sees, seen)
        found[:-1] = (left + _mended(leaves, left) + SEEN * found)[:-1]
        return found

    def step_weights(self, computed: Sequence[int]) -> dict[int, StepWeights]:
        """The weights of every compute step, fitted on all runs."""
        found = {step: [0.0, 0.0, 0.0] for step in computed}
        ends = [*computed[1:], self.trajectories.steps]
        for i, j, n in zip((computed[0], *computed), computed, ends, strict=False):
            sees, seen, leaves, left = (part[..., [n - j - 1], :, :] for part in self._missed(i, j))
            if i != j:
                found[j][2] = float(fitted(sees, seen)[0, 0])
            if n in found:
                weights = fitted(leaves, left)[0].tolist()
                found[n][: len(weights)] = weights
        return {step: (c, d, p) for step, (c, d, p) in found.items()}

    def _missed(self, i: int, j: int) -> tuple[np.ndarray, ...]:
        """For all n after j: the differences of (1) (K, N, R, D) and what the model's latent misses
        (N, R, D); the same of (2) and of the latent that goes on. K is 0 or 1, and one more in (2).
        """
        went_on, clean = self.recorded
        later = np.append(clean[j + 1 :], clean[-1:], axis=0)  # at the end there is none
        known = [np.broadcast_to(clean[j] - clean[i], later.shape)] if i != j else []
        left = self.jump_misses("unipc", i, j, went_on)
        seen = self.jump_misses("dpm++", i, j, self.trajectories.latents)  # UniPC's predictor
        sees = np.array(known).reshape(-1, *later.shape)
        return sees, seen, np.array([later - clean[j], *known]), left


def fitted(basis: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Weights (N, K) of `basis` (K, N, R, D) that mend `missed` (N, R, D), from all runs."""
    runs = list(range(missed.shape[1]))
    found, sums = _fits(basis, missed, [runs, *([q for q in runs if q != r] for r in runs)])
    return found[:, 0] * _factor(found[:, 1:], runs, sums)[:, None]


def _mended(basis: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """What the weights of all other runs change in every run: (N, R, D)."""
    changed, runs = np.zeros_like(missed), list(range(missed.shape[1]))
    if not len(basis):
        return changed
    left_out: list[tuple[int, ...]] = [(r,) for r in runs]
    left_out += combinations(runs, 2)
    sets = [[q for q in runs if q not in out] for out in left_out]
    found, sums = _fits(basis, missed, sets)
    for r in runs:
        others = [q for q in runs if q != r]
        without = found[:, [left_out.index(tuple(sorted((r, q)))) for q in others]]
        weights = found[:, r] * _factor(without, others, sums)[:, None]
        changed[:, r] = np.einsum("na,and->nd", weights, basis[:, :, r])
    return changed


def _fits(basis: np.ndarray, missed: np.ndarray, sets: list[list[int]]) -> tuple:
    """The weights of every set of runs (N, sets, K), and every run's products with `basis`."""
    size = (missed**2).sum(-1) + ROUNDING**2
    products = np.einsum("anrd,bnrd->nrab", basis, basis) / size[..., None, None]
    targets = -np.einsum("anrd,nrd->nra", basis, missed) / size[..., None]
    within = np.array([[float(run in runs) for run in range(missed.shape[1])] for runs in sets])
    shape = (len(missed), len(sets), len(basis), len(basis))
    summed = (within @ products.reshape(*size.shape, -1)).reshape(shape)
    ridge = RIDGE * np.trace(summed, axis1=2, axis2=3) / len(basis) + np.finfo(float).tiny
    summed = summed + ridge[..., None, None] * np.eye(len(basis))
    wanted = within @ targets
    return np.linalg.solve(summed, wanted[..., None])[..., 0], (products, targets)


def _factor(without: np.ndarray, runs: list[int], sums: tuple) -> np.ndarray:
    """The share of the weights that serves `runs` best, each with those fitted without it: (N,)."""
    products, targets = (part[:, runs] for part in sums)
    gain = np.einsum("nra,nra->n", without, targets)
    cost = np.einsum("nra,nrab,nrb->n", without, products, without)
    return np.clip(gain / np.maximum(cost, np.finfo(float).tiny), 0, 1)

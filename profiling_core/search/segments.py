"""Segments: the error that every stretch between two compute steps leaves, for each reuse mode.

A segment (i, j, n) skips the steps between the compute steps j and n; i is the compute step before
j. Its error d(i, j, n) is a vector: the difference of the latent at n from the recorded run's when
everything up to j was as recorded. On Trajectories it is known for all 20,000 segments of 50 steps
at once, before any plan is chosen.

Forecast (hold, linear). The solver goes through all levels and is given f_s for v_s:

    (1)  d = sum over s in j+1 .. n-1 of W[n, s] (f_s - v_s)

where W[n, s] is the factor of prediction s in the latent at n (flow_solvers.response). For Euler it
is sigma_s+1 - sigma_s, so (1) is the summed step x forecast error: the vectors are added before the
norm is taken, since errors within a segment line up.

    (2)  hold     f_s = v_j
    (3)  linear   f_s = v_j + (lambda_s - lambda_j) / (lambda_j - lambda_i) (v_j - v_i)

with lambda = ln((1 - sigma) / sigma), log-SNR. At sigma = 1 it is minus infinity, and a line from
there is flat: it holds its newer end.

Forecast and correction (corrected), for Euler. Once v_n is known, the line in lambda from v_j to
v_n replaces the forecasts (3) of the stretch, summed over the same small steps of sigma. The
difference is added to the prediction that the solver is given at n, so no solver has to know of it
(site_schedule.corrections):

         line_s = v_n + (lambda_s - lambda_n) / (lambda_n - lambda_j) (v_n - v_j)
    (5)  e = (1) with the forecasts (3)                              what the model sees at n
         d = sum over s of (sigma_s+1 - sigma_s) (line_s - v_s)      what is left once corrected

Jump. The solver itself goes from j to n. With the recorded latent y_j that it goes on from, and
the clean latents m of the recorded run, in the notation of flow_solvers:

    (6)  e = solver's latent at n from (y_j, m_j, m_i), as the model sees it - x_n
         d = the same, for UniPC corrected by m_n, - y_n

Where the model sees another latent than the one that goes on (corrected, and UniPC's jump), e
disturbs its prediction. A share of e stands for that: the table holds d + SEEN e.

Where another model takes over at a step, it computes that step: segments over it have the error
OVER. It reuses nothing of the first one: i before it counts as j, and no stretch before it is
corrected. A solver that jumps goes on from both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.trajectories import Trajectories

SEEN = 0.5  # a choice between none and all
OVER = 1e3  # of a segment that no plan may have: far above the final latent's norm


@dataclass(frozen=True)
class Table:
    """Errors of N segments.

    row_of: the row of (i, j, n), -1 where the order is wrong, (S, S, S + 1); i is j for the first
    step, which has none before it, n is S at the end. ends: n of every row; errors: (N, R, D) fp32.
    """

    row_of: np.ndarray
    ends: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class Segments:
    """Errors of the segments of some trajectories in one reuse mode."""

    trajectories: Trajectories
    skip: str

    @cached_property
    def table(self) -> Table:
        """The errors of all segments."""
        steps, count = self.trajectories.steps, 0
        row_of = np.full((steps, steps, steps + 1), -1)
        found, ends = [], []
        for i, j in _pairs(steps):
            found.append(self._of_two_models(i, j).astype(np.float32))
            ends.append(np.arange(j + 1, steps + 1))
            row_of[i, j, j + 1 :] = count + np.arange(steps - j)
            count += steps - j
        return Table(row_of, np.concatenate(ends), np.concatenate(found))

    def _of_two_models(self, i: int, j: int) -> np.ndarray:
        """`errors`, with the change to another model where there is one."""
        change = self.trajectories.change
        if change is None:
            return self.errors(i, j)
        forecasts = self.skip in ("hold", "linear", "corrected")
        found = self.errors(j if forecasts and i < change <= j else i, j)
        if j < change:
            if self.skip == "corrected":
                found[change - j - 1] = self._forecasts(i, j)[change - j - 1]
            found[change - j :] += OVER
        return found

    def errors(self, i: int, j: int) -> np.ndarray:
        """What the table holds of (i, j, n) for all n after j: (S - j, R, D), for one model."""
        if self.skip == "jump":
            return self._jumps(i, j)
        return self._corrected(i, j) if self.skip == "corrected" else self._forecasts(i, j)

    def _forecasts(self, i: int, j: int) -> np.ndarray:
        v, log_snr = self.trajectories.predictions, self.trajectories.levels.log_snr
        later = np.arange(j + 1, len(v))
        if self.skip == "hold" or i == j:
            forecast = np.broadcast_to(v[j], (later.size, *v[j].shape))
        else:
            slope = (log_snr[later] - log_snr[j]) / (log_snr[j] - log_snr[i])
            forecast = v[j] + slope[:, None, None] * (v[j] - v[i])
        error = forecast - v[j + 1 :]
        # row n: steps j+1 .. n-1 have been forecast when the latent at n is made
        factors = np.tril(self._response[j + 1 :, j + 1 :], -1)
        return (factors @ error.reshape(later.size, v[j].size)).reshape(-1, *v[j].shape)

    def _corrected(self, i: int, j: int) -> np.ndarray:
        v, levels = self.trajectories.predictions, self.trajectories.levels
        seen, n = self._forecasts(i, j), np.arange(j + 1, len(v))
        steps, log_snr = np.diff(levels.sigma)[n], levels.log_snr
        share = steps * log_snr[n]
        # sums over the steps before n: of the steps, and of the steps times the line's slope
        width = np.cumsum(steps) - steps
        slope = (np.cumsum(share) - share - width * log_snr[n]) / (log_snr[n] - log_snr[j])
        moved = steps[:, None, None] * v[n]
        line = width[:, None, None] * v[n] + slope[:, None, None] * (v[n] - v[j])
        left = line - (np.cumsum(moved, axis=0) - moved)
        # the end has no prediction to correct by
        return np.concatenate([left + SEEN * seen[:-1], seen[-1:]])

    @cached_property
    def _response(self) -> np.ndarray:
        """W of (1): (S + 1, S)."""
        return flow_solvers.response(self.trajectories.solver, self.trajectories.levels)

    def _jumps(self, i: int, j: int) -> np.ndarray:
        solver, (went_on, _) = self.trajectories.solver, self.recorded
        left = self.jump_misses(solver, i, j, went_on)
        if solver == "unipc":  # its predictor is that of DPM++
            left[:-1] += SEEN * self.jump_misses("dpm++", i, j, self.trajectories.latents)[:-1]
        return left

    def jump_misses(self, solver: str, i: int, j: int, wanted: np.ndarray) -> np.ndarray:
        """The solver's latents of (6) at all n after j, less the wanted ones: (S - j, R, D)."""
        went_on, clean = self.recorded
        levels = self.trajectories.levels
        steps = len(levels)
        found = [jump(solver, levels, i, j, steps)]
        if j + 1 < steps:
            found.insert(0, jump(solver, levels, i, j, np.arange(j + 1, steps)))
        factors = [np.concatenate(f) for f in zip(*found, strict=True)]
        latents = [went_on[j], clean[j], clean[i], np.append(clean[j + 1 :], clean[-1:], axis=0)]
        # the last one is the clean latent at n itself; at the end there is none, its factor is 0
        terms = zip(factors, latents, strict=True)
        return sum(f[:, None, None] * x for f, x in terms) - wanted[j + 1 :]

    @cached_property
    def recorded(self) -> tuple[np.ndarray, np.ndarray]:
        """The latents that the recorded run went on from (S + 1, R, D), and its clean ones."""
        runs, levels = self.trajectories, self.trajectories.levels
        clean = runs.latents[:-1] - levels.sigma[:-1, None, None] * runs.predictions
        went_on = runs.latents.copy()
        if runs.solver == "unipc":
            for k in range(1, runs.steps):
                i = max(k - 2, 0)
                keep, new, old, there = jump("unipc", levels, i, k - 1, np.array([k]))
                moved = keep * went_on[k - 1] + new * clean[k - 1] + old * clean[i]
                went_on[k] = moved + there * clean[k]
        return went_on, clean


def held_lengths(trajectories: Trajectories) -> np.ndarray:
    """|d| of every held stretch (j, n), which knows no i: (S, S + 1, R), infinite without n > j."""
    segments, steps = Segments(trajectories, "hold"), trajectories.steps
    found = np.full((steps, steps + 1, trajectories.runs), np.inf)
    for j in range(steps):
        found[j, j + 1 :] = np.linalg.norm(segments.errors(j, j), axis=-1)
    return found


def jump(solver: str, levels: Levels, i: int, j: int, n: int | np.ndarray) -> list[np.ndarray]:
    """Factors (N,) of y_j, m_j, m_i and m_n in the solver's latent at n, (6); i is j at the start.

    n: levels before the end, or the end alone.
    """
    count, at_end = np.size(n), np.ndim(n) == 0 and n == len(levels)
    nothing = np.zeros(count)
    if i == j or at_end:
        keep, new = (np.broadcast_to(f, count) for f in flow_solvers.first_order(levels, j, n))
        if solver == "unipc" and not at_end:  # the corrector of first order, (C1)
            return [keep, new / 2, nothing, new / 2]
        return [keep, new, nothing, nothing]
    if solver == "unipc":
        return [np.asarray(factor) for factor in flow_solvers.corrector(levels, i, j, n)]
    second = flow_solvers.second_order(levels, i, j, n)
    return [*(np.asarray(factor) for factor in second), nothing]


def _pairs(steps: int) -> Iterator[tuple[int, int]]:
    """(i, j) with i before j, and (0, 0): step 0 has none before it."""
    yield 0, 0
    for j in range(1, steps):
        for i in range(j):
            yield i, j

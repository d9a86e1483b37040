"""Which steps to compute: dynamic programming over segments, then exchange of single steps.

The error that a plan leaves in the final latent of run r is predicted as

    (6)  E_r = |sum over its segments (i, j, n) of S_n,r^a d_r(i, j, n)|

with d of `segments` and the sensitivity S_n,r: how much of an error at step n is left at the end
of that run. It is measured along one direction only, so a = SENSITIVITY_EXPONENT is below 1,
between full trust (1) and none (0). Errors of different segments are added as vectors: hold errs in
one direction all the way, a linear forecast alternates.
The objective lies halfway, in decibels, between the mean run and the quantile b = WORST_QUANTILE (1
is the worst run; a lower quantile has worse worst prompts):

    (7)  G = sqrt(exp(mean over r of ln E_r) x the quantile b over r of E_r)

(6) is no sum over segments, so a shortest path cannot find its minimum. It can find good starts,
for every number k of compute steps at once,

    (8)  F_k(j, n) = min over i of F_k-1(i, j) + c(i, j, n),
         c = mean over r of (S_n,r^a |d_r|)^p, to the power 2 / p

where p above 2 stands for the quantile; once with S_n,r^a and once with its root. From each start
single compute steps are moved as long as that lowers G; the best end is taken.

The reported error is not (6) itself. A search finds plans whose distant vectors cancel in (6). In a
run they cancel less, since the model turns an error on its way to the end. So

    (9)  E_r^2 = sum over pairs of segments, ending at n and m, of
                 exp(-((n - m) / (ALIGNED S))^2 / 2)  S_n,r^a d_r(n) . S_m,r^a d_r(m)

which ranks measured errors better (docs/research/prediction.md). The steps are still chosen by
(6): those that minimise (9) were no better in runs. Searched plans err more than (9) predicts,
since the skipped steps lie on a trajectory that has left the recorded one, and by how much depends
on the reuse mode:

    (10) calibrated error = CALIBRATION x E_r

with CALIBRATION the geometric mean of measured over predicted error on held-out prompts. A plan's
error is the quantile QUANTILE of (10) over the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiling_core.search.segments import Table

QUANTILE = 0.8  # over the runs, of the calibrated error
POWER = 4.0
SENSITIVITY_EXPONENT, WORST_QUANTILE = 0.75, 1.0  # docs/research/prediction.md
ALIGNED = 0.2  # of the run
# by reuse mode, on the calibration prompts of both miniatures (docs/research/prediction.md)
CALIBRATION = {
    "hold": 1.5,
    "linear": 1.2,
    "corrected": 0.9,
    "fitted": 1.7,
    "jump": 1.7,
}
STARTS = (1.0, 0.5)  # powers of the weights in (8)
MOST_EXCHANGES = 60


@dataclass(frozen=True)
class Choice:
    """Compute steps and their predicted errors, relative to the final latent's norm."""

    steps: tuple[int, ...]
    errors: np.ndarray  # (10) of every run, (R,)
    score: float  # G of (7)

    @property
    def error(self) -> float:
        """The quantile over the runs."""
        return float(np.quantile(self.errors, QUANTILE))


class StepSearch:
    """Chooses compute steps.

    sensitivity: S_n of every run, (S + 1, R); calibration: of (10).
    """

    def __init__(
        self,
        table: Table,
        sensitivity: np.ndarray,
        calibration: float = 1.0,
    ) -> None:
        self.calibration, self.steps = calibration, len(table.row_of)
        self._rows, self._ends = table.row_of, table.ends
        weights = (sensitivity[table.ends] ** SENSITIVITY_EXPONENT).astype(np.float32)  # (N, R)
        # one more row: no segment at all
        self._weighted = np.pad(table.errors * weights[..., None], ((0, 1), (0, 0), (0, 0)))
        norms = np.linalg.norm(table.errors, axis=-1)
        self._starts = [
            _ShortestPaths(self._rows, (norms * weights**power).astype(np.float64))
            for power in STARTS
        ]

    def best(self, count: int, *more: tuple[int, ...]) -> Choice:
        """The best `count` compute steps that were found; step 0 is one of them.

        more: starts beside those of (8).
        """
        ends = [self._improved(start) for start in {*self.starts(count), *more}]
        return min(ends, key=lambda choice: choice.score)

    def starts(self, count: int) -> list[tuple[int, ...]]:
        """Where the exchanges begin."""
        return sorted({paths.traced(count) for paths in self._starts})

    def evaluate(self, steps: Sequence[int]) -> Choice:
        """(7) and (10) for any compute steps that begin with 0."""
        vectors, ends = self.segments(steps)
        score = float(scores(np.linalg.norm(vectors.sum(axis=0), axis=-1)[None])[0])
        return Choice(tuple(steps), self.calibration * aligned(vectors, ends, self.steps), score)

    def filled(self, steps: tuple[int, ...], count: int) -> Choice:
        """With more compute steps, `count` in all: one at a time, that which leaves least (10)."""
        choice = self.evaluate(steps)
        while len(choice.steps) < count:
            free = set(range(self.steps)) - set(choice.steps)
            more = [self.evaluate(sorted((*choice.steps, step))) for step in sorted(free)]
            choice = min(more, key=lambda found: found.error)
        return choice

    def segments(self, steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of (6), (K, R, D), and where their segments end, (K,)."""
        j = np.array(steps)
        i, n = np.append(j[:1], j[:-1]), np.append(j[1:], self.steps)
        rows = self._rows[i, j, n]
        return self._weighted[rows], self._ends[rows]

    def _improved(self, start: tuple[int, ...]) -> Choice:
        choice = self.evaluate(start)
        for _ in range(MOST_EXCHANGES):
            moved = self._exchanged(choice)
            if moved is None or moved.score >= choice.score * (1 - 1e-6):
                break
            choice = moved
        return choice

    def _exchanged(self, choice: Choice) -> Choice | None:
        """The best of all plans in which one compute step has moved."""
        free = np.array(sorted(set(range(1, self.steps)) - set(choice.steps)))
        if len(choice.steps) == 1 or not free.size:
            return None
        found, moves = [], []
        for here in choice.steps[1:]:
            left = tuple(step for step in choice.steps if step != here)
            totals = self.segments(left)[0].sum(axis=0) + self._added(left, free)
            found.append(scores(np.linalg.norm(totals, axis=-1)))
            moves.append(left)
        row, column = divmod(int(np.argmin(found)), free.size)
        return self.evaluate(sorted((*moves[row], int(free[column]))))

    def _added(self, steps: tuple[int, ...], free: np.ndarray) -> np.ndarray:
        """What one more compute step changes in the sum of (6), for every free step: (F, R, D)."""
        padded = np.array([0, *steps, self.steps, self.steps])
        place = np.searchsorted(steps, free)  # p is the last step before b, q the first after it
        before, p, q, after = (padded[place + shift] for shift in (-1, 0, 1, 2))
        row, b = self._row, free
        new = row(before, p, b), row(p, b, q), row(b, q, after)
        old = row(before, p, q), row(p, q, after)
        return sum(self._weighted[r] for r in new) - sum(self._weighted[r] for r in old)

    def _row(self, i: np.ndarray, j: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Rows of segments; the empty row where j is the end already."""
        ended = j == self.steps
        return np.where(ended, len(self._weighted) - 1, self._rows[i, np.where(ended, 0, j), n])


def aligned(vectors: np.ndarray, ends: np.ndarray, steps: int) -> np.ndarray:
    """E_r of (9), (R,), of vectors (K, R, D) that act at the steps `ends` (K,) of a run."""
    apart = (ends - ends[:, None]) / (ALIGNED * steps)
    products = np.einsum("ard,brd,ab->r", vectors, vectors, np.exp(-(apart**2) / 2), optimize=True)
    return np.sqrt(np.maximum(products, 0.0))


def scores(errors: np.ndarray, quantile: float = WORST_QUANTILE) -> np.ndarray:
    """G of (7) of many plans: (N, R) to (N,)."""
    logs = np.log(np.maximum(errors, 1e-12))
    return np.exp((logs.mean(axis=1) + np.quantile(logs, quantile, axis=1)) / 2)


class _ShortestPaths:
    """(8): the least sums for every number of compute steps; norms: (N, R)."""

    def __init__(self, row_of: np.ndarray, norms: np.ndarray) -> None:
        self.steps = len(row_of)
        means = (norms**POWER).mean(axis=-1) ** (2 / POWER)
        costs = np.where(row_of >= 0, means[row_of], np.inf)
        least = np.full((self.steps, self.steps + 1), np.inf)
        least[0, 1:] = costs[0, 0, 1:]
        self._least, self._from = [least], [np.zeros(least.shape, dtype=np.int64)]
        costs[np.arange(self.steps), np.arange(self.steps)] = np.inf  # only the first has no i
        for _ in range(1, self.steps):
            sums = least[:, : self.steps, None] + costs
            self._from.append(sums.argmin(axis=0))
            least = np.take_along_axis(sums, self._from[-1][None], axis=0)[0]
            self._least.append(least)

    def traced(self, count: int) -> tuple[int, ...]:
        """The steps of the least F that ends with the run."""
        n, j = self.steps, int(self._least[count - 1][:, self.steps].argmin())
        found = [j]
        for k in range(count - 1, 0, -1):
            n, j = j, int(self._from[k][j, n])
            found.append(j)
        return tuple(reversed(found))

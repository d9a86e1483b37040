"""Which steps to compute: dynamic programming over segments, then exchange of single steps.

The error that a plan leaves in the final latent of run r is predicted as

    (6)  E_r^2 = sum over its segments (i, j, n) of (S_n |d_r(i, j, n)|)^2

with d of `segments` and S_n, the sensitivity: how much of an error at step n is left at the end.
A plan's predicted error is a high quantile of E_r over the runs, so that the worst prompts count.

    (7)  F_k(j, n) = min over i of F_k-1(i, j) + c(i, j, n),  c = mean over runs of (S_n |d_r|)^p,
                                                              to the power 2 / p

finds, for every number k of compute steps at once, the steps with the least sum of c. The power p
above 2 stands for the quantile, which is no sum over segments; the exchanges that follow minimise
the quantile itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

QUANTILE = 0.8
POWER = 4.0
MOST_EXCHANGES = 60


@dataclass(frozen=True)
class Choice:
    """Compute steps and what they are predicted to leave, relative to the final latent's norm."""

    steps: tuple[int, ...]
    errors: np.ndarray  # (6) of every run, (R,)

    @property
    def error(self) -> float:
        return float(np.quantile(self.errors, QUANTILE))


class StepSearch:
    """Searches compute steps on the segments' norms (S, S, S + 1, R).

    sensitivity: S_n for n = 0 .. S, (S + 1,).
    """

    def __init__(self, norms: np.ndarray, sensitivity: np.ndarray) -> None:
        self.steps = len(norms)
        self.squares = (norms * sensitivity[:, None]) ** 2
        with np.errstate(over="ignore"):
            costs = (self.squares ** (POWER / 2)).mean(axis=-1) ** (2 / POWER)
        self._tables(costs)

    def best(self, count: int) -> Choice:
        """The best `count` compute steps that were found; step 0 is one of them."""
        choice = self.evaluate(self.traced(count))
        for _ in range(MOST_EXCHANGES):
            better = self._exchanged(choice)
            if better is None:
                break
            choice = better
        return choice

    def evaluate(self, steps: tuple[int, ...]) -> Choice:
        """(6) for any compute steps that begin with 0."""
        return Choice(tuple(steps), self._errors(np.array([steps]))[0])

    def _tables(self, costs: np.ndarray) -> None:
        """(7): F_k(j, n) of all k, and the i that it came from."""
        steps = self.steps
        least = np.full((steps, steps + 1), np.inf)
        least[0, 1:] = costs[0, 0, 1:]
        self._least, self._from = [least], [np.zeros((steps, steps + 1), dtype=np.int64)]
        for i in range(steps):
            costs[i, i] = np.inf  # only the first step has none before it
        for _ in range(1, steps):
            sums = least[:, :steps, None] + costs
            self._from.append(sums.argmin(axis=0))
            least = np.take_along_axis(sums, self._from[-1][None], axis=0)[0]
            self._least.append(least)

    def traced(self, count: int) -> tuple[int, ...]:
        """The steps of the least F of (7) that ends with the run."""
        n, j = self.steps, int(self._least[count - 1][:, self.steps].argmin())
        found = [j]
        for k in range(count - 1, 0, -1):
            n, j = j, int(self._from[k][j, n])
            found.append(j)
        return tuple(reversed(found))

    def _exchanged(self, choice: Choice) -> Choice | None:
        """The best of all plans in which one compute step has moved; None when none is better."""
        free = sorted(set(range(1, self.steps)) - set(choice.steps))
        moved = [
            sorted({*choice.steps, there} - {here}) for here in choice.steps[1:] for there in free
        ]
        if not moved:
            return None
        errors = self._errors(np.array(moved))
        levels = np.quantile(errors, QUANTILE, axis=1)
        best = int(levels.argmin())
        if levels[best] >= choice.error * (1 - 1e-9):
            return None
        return Choice(tuple(moved[best]), errors[best])

    def _errors(self, plans: np.ndarray) -> np.ndarray:
        """(6) of many plans with equally many steps: (N, K) to (N, R)."""
        ends = np.full((len(plans), 1), self.steps)
        before = np.concatenate([plans[:, :1], plans[:, :-1]], axis=1)
        after = np.concatenate([plans[:, 1:], ends], axis=1)
        return np.sqrt(self.squares[before, plans, after].sum(axis=1))

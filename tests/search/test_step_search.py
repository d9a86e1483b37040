from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from profiling_core.search.segments import Table
from profiling_core.search.step_search import (
    ALIGNED,
    POWER,
    SENSITIVITY_EXPONENT,
    STARTS,
    WORST_QUANTILE,
    StepSearch,
    scores,
)

STEPS, RUNS, WIDTH = 8, 3, 4


def made_table(seed: int = 0, lone: float = 0.0) -> Table:
    """Errors that grow with the length of the skip; `lone` makes one run hard at its own step."""
    rng = np.random.default_rng(seed)
    row_of = np.full((STEPS, STEPS, STEPS + 1), -1)
    ends, errors = [], []
    for j in range(STEPS):
        for i in range(j) if j else (0,):
            for n in range(j + 1, STEPS + 1):
                row_of[i, j, n] = len(ends)
                ends.append(n)
                error = (n - j - 1) ** 2 * rng.normal(size=(RUNS, WIDTH))
                error[0] += lone * (j < 5 < n)
                errors.append(error)
    return Table(row_of, np.array(ends), np.array(errors, dtype=np.float32))


def sensitivity(first: float = 3.0) -> np.ndarray:
    """Falling, and another for every run."""
    return np.linspace(first, 1, STEPS + 1)[:, None] * np.array([1.0, 2.0, 0.5])


def plans(count: int) -> list[tuple[int, ...]]:
    return [(0, *rest) for rest in combinations(range(1, STEPS), count - 1)]


def segments(plan: tuple[int, ...]) -> list[tuple[int, int, int]]:
    before, after = (plan[0], *plan[:-1]), (*plan[1:], STEPS)
    return list(zip(before, plan, after, strict=True))


def vectors(table: Table, weight: np.ndarray, plan: tuple[int, ...]) -> list[np.ndarray]:
    return [
        table.errors[table.row_of[s]] * weight[s[2]][:, None] ** SENSITIVITY_EXPONENT
        for s in segments(plan)
    ]


def by_hand(table: Table, weight: np.ndarray, plan: tuple[int, ...]) -> np.ndarray:
    return np.linalg.norm(np.sum(vectors(table, weight, plan), axis=0), axis=-1)


def test_a_plans_score_is_of_the_sum_of_its_segments_vectors() -> None:
    table, weight = made_table(), sensitivity()
    search = StepSearch(table, weight)
    for plan in plans(4)[::5]:
        expected = scores(by_hand(table, weight, plan)[None])[0]
        assert search.evaluate(plan).score == pytest.approx(expected, rel=1e-5)


def test_what_is_told_lets_far_segments_cancel_less() -> None:
    """(9), pair by pair."""
    table, weight = made_table(), sensitivity()
    search = StepSearch(table, weight)
    for plan in plans(4)[::5]:
        ends = [end for _, _, end in segments(plan)]
        own = list(zip(ends, vectors(table, weight, plan), strict=True))
        squares = sum(
            np.exp(-(((n - m) / (ALIGNED * STEPS)) ** 2) / 2) * (one * other).sum(axis=-1)
            for n, one in own
            for m, other in own
        )
        assert np.allclose(search.evaluate(plan).errors, np.sqrt(squares), rtol=1e-5)


def test_a_score_lies_between_the_mean_run_and_a_bad_one() -> None:
    errors = np.array([[1.0, 1.0, 1.0, 1.0, 16.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    mean, bad = 16 ** (1 / 5), 16**0.2  # the 80th percentile is a fifth of the way from 1 to 16
    for quantile, worst in ((1.0, 16.0), (0.8, bad)):
        found = scores(errors, quantile)
        assert found[1] == pytest.approx(2.0)
        assert found[0] == pytest.approx(np.sqrt(mean * worst))
    assert scores(errors)[0] == scores(errors, WORST_QUANTILE)[0]


@pytest.mark.parametrize("count", range(1, STEPS + 1))
def test_starts_have_the_least_sum_of_all_plans(count: int) -> None:
    table, weight = made_table(1), sensitivity()
    norms = np.linalg.norm(table.errors, axis=-1)

    def cost(plan: tuple[int, ...], power: float) -> float:
        weighted = [
            norms[table.row_of[s]] * weight[s[2]] ** (SENSITIVITY_EXPONENT * power)
            for s in segments(plan)
        ]
        return sum(np.mean(w.astype(float) ** POWER) ** (2 / POWER) for w in weighted)

    starts = StepSearch(table, weight).starts(count)
    assert all(len(start) == count and start[0] == 0 for start in starts)
    for power in STARTS:
        least = min(cost(plan, power) for plan in plans(count))
        assert min(cost(start, power) for start in starts) == pytest.approx(least)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_no_single_exchange_lowers_the_score_of_what_is_found(count: int) -> None:
    table, weight = made_table(2, lone=30.0), sensitivity()
    search = StepSearch(table, weight)
    found = search.best(count)
    expected = scores(by_hand(table, weight, found.steps)[None])[0]
    assert found.score == pytest.approx(expected, rel=1e-5)
    assert all(found.score <= search.evaluate(s).score + 1e-9 for s in search.starts(count))
    for plan in plans(count):
        if len(set(plan) & set(found.steps)) == count - 1:
            assert scores(by_hand(table, weight, plan)[None])[0] >= found.score * (1 - 1e-5)


def test_a_step_is_added_where_it_leaves_the_least_error() -> None:
    search = StepSearch(made_table(), sensitivity())
    start = search.best(3).steps
    more = [search.evaluate(sorted((*start, b))) for b in range(STEPS) if b not in start]
    assert search.filled(start, 4).steps == min(more, key=lambda choice: choice.error).steps
    assert (
        set(start) < set(search.filled(start, 6).steps) and search.filled(start, 3).steps == start
    )


def test_every_step_computed_has_no_error() -> None:
    found = StepSearch(made_table(), sensitivity()).best(STEPS)
    assert found.steps == tuple(range(STEPS)) and found.error < 1e-6

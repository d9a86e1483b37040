from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from profiling_core.step_search import POWER, QUANTILE, StepSearch

STEPS, RUNS = 8, 3


def made_norms(seed: int = 0, lone: float = 0.0) -> np.ndarray:
    """Norms that grow with the length of the skip; `lone` makes one run hard at its own step."""
    rng = np.random.default_rng(seed)
    norms = np.full((STEPS, STEPS, STEPS + 1, RUNS), np.inf)
    for j in range(STEPS):
        for i in range(j) if j else (0,):
            for n in range(j + 1, STEPS + 1):
                hard = np.array([lone * (j < 5 < n), 0, 0])
                norms[i, j, n] = (n - j - 1) ** 2 * rng.uniform(0.5, 1.5, RUNS) + hard
    return norms


def plans(count: int) -> list[tuple[int, ...]]:
    return [(0, *rest) for rest in combinations(range(1, STEPS), count - 1)]


def by_hand(norms: np.ndarray, weight: np.ndarray, plan: tuple[int, ...]) -> np.ndarray:
    total = np.zeros(RUNS)
    for number, j in enumerate(plan):
        i = plan[number - 1] if number else j
        n = plan[number + 1] if number + 1 < len(plan) else STEPS
        total += (norms[i, j, n] * weight[n]) ** 2
    return np.sqrt(total)


def test_a_plans_error_is_the_root_of_its_segments_squares() -> None:
    norms, weight = made_norms(), np.linspace(3, 1, STEPS + 1)
    search = StepSearch(norms, weight)
    for plan in plans(4)[::5]:
        assert np.allclose(search.evaluate(plan).errors, by_hand(norms, weight, plan))


@pytest.mark.parametrize("count", range(1, STEPS + 1))
def test_tables_find_the_least_sum_of_all_plans(count: int) -> None:
    norms, weight = made_norms(1), np.linspace(3, 1, STEPS + 1)

    def cost(plan: tuple[int, ...]) -> float:
        parts = []
        for number, j in enumerate(plan):
            i = plan[number - 1] if number else j
            n = plan[number + 1] if number + 1 < len(plan) else STEPS
            parts.append(np.mean((norms[i, j, n] * weight[n]) ** POWER) ** (2 / POWER))
        return sum(parts)

    traced = StepSearch(norms, weight).traced(count)
    assert len(traced) == count and traced[0] == 0
    assert cost(traced) == pytest.approx(min(map(cost, plans(count))))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_exchanges_find_the_least_quantile(count: int) -> None:
    norms, weight = made_norms(2, lone=30.0), np.ones(STEPS + 1)
    search = StepSearch(norms, weight)
    best = min(np.quantile(by_hand(norms, weight, plan), QUANTILE) for plan in plans(count))
    found = search.best(count)
    assert found.error == pytest.approx(best)
    assert found.error <= search.evaluate(search.traced(count)).error


def test_every_step_computed_has_no_error() -> None:
    found = StepSearch(made_norms(), np.ones(STEPS + 1)).best(STEPS)
    assert found.steps == tuple(range(STEPS)) and found.error == 0

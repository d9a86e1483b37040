"""Halving: candidates are run on more and more prompts, and the worse ones stop early.

All candidates run on the first prompts, the better half goes on with more prompts, and so on; the
last FINALISTS run on all. Every round costs about as much as the one before. The first candidate,
the search's own choice, goes through all rounds, so that how many runs it takes is known before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from profiling_core.search.step_search import scores

FINALISTS = 4
MARGIN = 0.5  # dB by which another candidate has to be better than the first

Errors = dict[str, list[float]]  # by candidate, of the prompts that it ran on


def rounds(candidates: int, prompts: int) -> list[tuple[int, int]]:
    """Of every round: how many candidates run, and on how many prompts they have run at its end."""
    counts = [candidates]
    while counts[-1] > FINALISTS:
        counts.append(max(ceil(counts[-1] / 2), FINALISTS))
    shares = np.cumsum([1 / count for count in counts])
    ends = [max(1, round(prompts * share / shares[-1])) for share in shares.tolist()]
    return list(zip(counts, ends, strict=True))


def cost(candidates: int, prompts: int) -> int:
    """Cached runs of a tuning."""
    found, before = 0, 0
    for count, end in rounds(candidates, prompts):
        found, before = found + count * (end - before), end
    return found


def halved(names: Sequence[str], prompts: int, error: Callable[[str, int], float]) -> Errors:
    """The errors of all candidates, best first; error(name, n) is that of a run on prompt n.

    The first name goes through all rounds.
    """
    errors: Errors = {name: [] for name in names}
    first, alive = names[0], list(names)
    for count, end in rounds(len(names), prompts):
        alive = alive[:count]
        for n in range(len(errors[first]), end):
            for name in alive:
                errors[name].append(error(name, n))
        alive = [first, *sorted(alive[1:], key=lambda name: score(errors[name]))]
    return dict(sorted(errors.items(), key=lambda item: (-len(item[1]), score(item[1]))))


def score(errors: Sequence[float]) -> float:
    """(7) of step_search on measured errors."""
    return float(scores(np.array([errors]))[0])


def winner(errors: Errors, first: str) -> str:
    """The best of those that ran on all prompts; `first`, unless it is better by MARGIN."""
    best = next(iter(errors))
    return best if score(errors[best]) * 10 ** (MARGIN / 20) < score(errors[first]) else first

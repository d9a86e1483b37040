"""How well a law explains the public lists of the real models.

Every source has its own question, which the table of held stretches answers (Law.held: row j,
column n, when steps j+1 to n-1 are skipped):

lemica   which steps does a lexicographic minimax path over the table take, no stretch above
         LONGEST? Mean distance in steps from the published list of that length.
golden   do predicted errors rank a study's lists as the study does (CLASSES)? Spearman, ties
         averaged. Lists off the budget are left out.
flux     how many of all 1,370,754 lists have less predicted error than the published best 64?
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import combinations

import numpy as np

from benchmarks.lib.ranks import spearman
from profiling_core.plan.importers import public_document
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.law import Law

LONGEST = 7  # steps from one compute step to the next in LeMiCa's lists: none is longer
CLASSES = (
    ("meancache", "budcache"),
    ("seacache", "teacache", "sencache", "dicache"),
    ("uniform", "shared-uniform", "bend-dp"),
    ("random-1", "random-2"),
)
COUNTS = (21, 13, 9)  # computed steps of the study's lists
I2V = {"i2v 480p": 3.0, "i2v 720p": 5.0}  # shifts: LeMiCa gives the same lists for both sizes
FREE, FIRST, LAST = range(3, 49), 2, 49  # steps of a FLUX list that are free, and its ends
Lists = Mapping[str, Sequence[int]]
Figures = dict[str, float | tuple[int, ...]]


def judged(law: Law, i2v: bool = True) -> Figures:
    """Figures by cell: `lemica 14B 25`, `golden hunyuan 21`, `flux median`, and so on.

    i2v is never fitted, since its shift is not published, and can be left out.
    """
    lemica, golden = (public_document()[source] for source in ("lemica", "golden-path"))
    t2v, hunyuan = held(law, "wan2.1-t2v-1.3B"), held(law, "hunyuan-video-t2v-720p")
    found = displacements(t2v, {name: lemica[f"wan2.1-t2v-{name}"] for name in ("14B", "1.3B")})
    for name, shift in I2V.items() if i2v else ():
        found |= displacements(held(law, "wan2.1-i2v-14B", shift), {name: lemica["wan2.1-i2v-14B"]})
    for model, table in (("hunyuan-video-t2v-720p", hunyuan), ("wan2.1-t2v-1.3B", t2v)):
        name = "wan" if table is t2v else "hunyuan"
        for count in COUNTS:
            lists = of_length(golden[model], count)
            found[f"golden {name} {count}"] = correlation(table, lists, law.power)
    return found | flux(held(law, "flux.1-dev"), law.power)


def held(law: Law, model: str, shift: float | None = None) -> np.ndarray:
    """The law's table of held stretches on a model's grid, or on the same with another shift."""
    return law.held(*grid_of(model, shift))


def grid_of(model: str, shift: float | None = None, steps: int | None = None) -> tuple[Levels, str]:
    """Levels and solver that the lists of a model are for, or with another shift or step count."""
    grid = public_document()["grids"][model]
    level = np.linspace(grid["first_level"], 0, (steps or grid["steps"]) + 1)[:-1]
    shift = shift or grid["shift"]
    return Levels(shift * level / (1 + (shift - 1) * level)), grid["solver"]


def displacements(table: np.ndarray, named: Mapping[str, Lists]) -> Figures:
    """Mean distance of a step between the table's minimax path and each list of its length."""
    lists = {(name, len(steps)): steps for name, of in named.items() for steps in of.values()}
    paths = minimax(table, {count for _, count in lists})
    return {
        f"lemica {name} {count}": float(np.abs(np.subtract(paths[count], steps)).mean())
        for (name, count), steps in lists.items()
    }


def minimax(table: np.ndarray, counts: Collection[int]) -> dict[int, list[int]]:
    """The lexicographic minimax path from step 0 to the last one, for every number of steps.

    The better one of two paths has the smaller largest stretch; of equal ones, the smaller second
    largest, and so on. A stretch counts 32 to the power of its rank: whole numbers without limit,
    so that no number of smaller stretches (there are under 32) outweighs one larger.
    """
    last = len(table) - 1
    edges = [(j, n) for j in range(last) for n in range(j + 1, min(j + LONGEST, last) + 1)]
    ranks = np.unique([table[edge] for edge in edges], return_inverse=True)[1]
    into: list[list[tuple[int, int]]] = [[] for _ in range(last + 1)]
    for (j, n), rank in zip(edges, ranks.tolist(), strict=True):
        into[n].append((j, 0 if n == j + 1 else 1 << (5 * rank)))
    least, layers, paths = {0: 0}, [], {}
    for count in range(2, max(counts) + 1):
        ways = {n: [(least[j] + c, j) for j, c in into[n] if j in least] for n in range(last + 1)}
        best = {n: min(found) for n, found in ways.items() if found}
        least = {n: cost for n, (cost, _) in best.items()}
        layers.append({n: j for n, (_, j) in best.items()})
        if count in counts:
            path = [last]
            for layer in reversed(layers):
                path.append(layer[path[-1]])
            paths[count] = path[::-1]
    return paths


def of_length(lists: Lists, count: int) -> dict[str, Sequence[int]]:
    """The lists named after `count` steps, as `budcache-21`, by what their names say before it."""
    return {
        name.removesuffix(f"-{count}"): steps
        for name, steps in lists.items()
        if name.endswith(f"-{count}")
    }


def correlation(table: np.ndarray, lists: Lists, power: float) -> float:
    """Spearman's of predicted errors and classes, for lists of one length."""
    steps = np.array(list(lists.values()))
    ends = np.pad(steps[:, 1:], ((0, 0), (0, 1)), constant_values=len(table))
    return by_class(np.linalg.norm(table[steps, ends], ord=power, axis=-1), lists)


def by_class(errors: np.ndarray, lists: Collection[str]) -> float:
    """Spearman's of the errors of named lists and their classes."""
    kinds = [next(n for n, names in enumerate(CLASSES) if name in names) for name in lists]
    return spearman(errors, np.array(kinds))


def flux(table: np.ndarray, power: float) -> Figures:
    """Where the best 64 lie, in % of all lists: their median, the worst; then the law's own list.

    A list falls into two halves at its third free step, and their errors add up: lists are counted
    by sorting one half and looking the other one up.
    """
    best = np.array(public_document()["flux"]["flux.1-dev"])
    largest, add = np.isinf(power), np.maximum.reduce if np.isinf(power) else np.add.reduce
    costs = table if largest else np.where(np.isfinite(table), table, 0.0) ** power

    def error(lists: np.ndarray) -> np.ndarray:
        return add([costs[lists[:, k], lists[:, k + 1]] for k in range(lists.shape[1] - 1)])

    scores = error(np.pad(best, ((0, 0), (1, 1)), constant_values=(FIRST, LAST)))
    limits, below, least, own = np.array([np.median(scores), scores.max()]), np.zeros(2), np.inf, ()
    for firsts, seconds in _halves():
        head, tail = error(firsts), np.sort(error(seconds))
        if largest:
            below += [(head < limit).sum() * (tail < limit).sum() for limit in limits]
        else:
            below += [np.searchsorted(tail, limit - head).sum() for limit in limits]
        here = add([head.min(), tail[0]])
        if here < least:
            least, half = here, seconds[error(seconds).argmin()]
            own = tuple(int(step) for step in (*firsts[head.argmin(), 1:], *half[1:3]))
    median, worst = 100 * below / sum(len(a) * len(b) for a, b in _halves())
    return {
        "flux median": float(median),
        "flux worst": float(worst),
        "flux from best": float(np.abs(best - own).mean()),
        "flux own list": own,
    }


@cache
def _halves() -> list[tuple[np.ndarray, np.ndarray]]:
    """FIRST and three free steps, and the third of these to LAST, for every third free step."""
    return [
        (
            np.array([(FIRST, *pair, third) for pair in combinations(range(FREE[0], third), 2)]),
            np.array([(third, *pair, LAST) for pair in combinations(range(third + 1, LAST), 2)]),
        )
        for third in FREE[2:-2]
    ]

"""Do the miniatures rank as the full-size models do? Published order beside the rows' own.

Published rows differ in speed-up. So each stands beside the mean PSNR that the same policy has on a
miniature at the same speed-up: on a straight line, over ln of the speed-up, between the points that
were measured. Beside it, every policy is taken at the budget of 1.9x, whatever speed-up was
published. Rank correlations are Spearman's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import log
from statistics import fmean

import numpy as np

from benchmarks.compare.policies import CLASS_OF
from benchmarks.compare.table import Group, grouped
from benchmarks.lib.ranks import spearman
from benchmarks.lib.rows import TREES, Row, markdown

ABOUT = 1.9  # the budget at which all policies are compared as well
MODELS = {"hunyuan": "HunyuanVideo", "wan": "Wan2.1"}
SEACACHE, TAYLORSEER, PLAIN = "diffusers SeaCache", "diffusers TaylorSeer", "fewer steps"
# (table, tree) -> (policy, wall-clock speed-up, PSNR in dB against the full run). A table is one
# protocol; tables differ in size, prompts and clock.
PUBLISHED: dict[tuple[str, str], tuple[tuple[str, float, float], ...]] = {
    ("SeaCache's", "hunyuan"): (  # CVPR 2026, 944 prompts of VBench
        (SEACACHE, 2.01, 32.39),
        (TAYLORSEER, 1.88, 24.14),
        ("TeaCache", 1.85, 23.40),
        (PLAIN, 1.95, 19.97),
    ),
    ("MagCache's", "hunyuan"): (("MagCache", 2.25, 34.51), ("TeaCache", 2.26, 23.38)),  # 540p
    ("EasyCache's", "hunyuan"): (("EasyCache", 2.21, 32.66), ("TeaCache", 1.67, 23.85)),
    ("ScalingCache's", "hunyuan"): (  # its repository
        ("EasyCache", 2.2, 29.20),
        (TAYLORSEER, 2.8, 26.57),
        (PLAIN, 2.0, 17.57),
    ),
    ("DiCache's", "hunyuan"): (("DiCache", 2.34, 32.79),),  # ICLR 2026
    ("BAG's", "wan"): (  # 1.3B, arXiv 2608.09231, 65 frames, UniPC, 100 prompts
        (SEACACHE, 2.00, 30.72),
        ("MagCache", 1.91, 26.96),
        ("TeaCache", 1.98, 23.79),
    ),
    ("RA-CFGCache's", "wan"): (  # 1.3B, arXiv 2609.36433, 100 prompts
        ("DiCache", 2.61, 24.90),
        ("TeaCache", 2.44, 23.08),
        ("MagCache", 2.54, 22.16),
        (TAYLORSEER, 2.13, 16.96),
        (PLAIN, 1.93, 15.87),
    ),
}


SAME, AT_BUDGET = "same speed-up", f"{ABOUT}x"  # how a published row is set beside ours


@dataclass(frozen=True)
class Pair:
    """A published PSNR and the miniatures' by (tree, SAME or AT_BUDGET), where there are any."""

    model: str
    table: str
    policy: str
    speedup: float
    published: float
    ours: dict[tuple[str, str], float]


def validity(rows: Sequence[Row]) -> str:
    """Markdown: published rows beside ours, their rank correlations, the classes of lists."""
    pairs = paired(grouped([row for row in rows if row["budget"] is not None]))
    parts = ["### Ranks, published and here", _beside(pairs), _correlations(pairs), _classes(rows)]
    return "\n\n".join(parts) + "\n"


def paired(groups: Sequence[Group]) -> list[Pair]:
    """Every published figure with the miniatures' own."""
    points: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        points.setdefault((group.tree, group.policy), []).append(group)
    found = []
    for (table, model), published in PUBLISHED.items():
        for policy, speedup, psnr in published:
            ours: dict[tuple[str, str], float] = {}
            for tree in TREES:
                known = sorted(points.get((tree, policy), []), key=lambda group: group.speedup)
                x = [log(group.speedup) for group in known]
                y = [group.mean("psnr_frames") for group in known]
                if known and x[0] <= log(speedup) <= x[-1]:
                    ours[tree, SAME] = float(np.interp(log(speedup), x, y))
                if ABOUT in (budgets := [group.budget for group in known]):
                    ours[tree, AT_BUDGET] = y[budgets.index(ABOUT)]
            found.append(Pair(MODELS[model], table, policy, speedup, psnr, ours))
    return found


def correlation(pairs: Sequence[Pair], tree: str, how: str) -> str:
    """Spearman's between the published and the miniature's PSNR, and of how many pairs."""
    known = [pair for pair in pairs if (tree, how) in pair.ours]
    published = [pair.published for pair in known]
    return ranked(published, [pair.ours[tree, how] for pair in known])


def alike(pairs: Sequence[Pair], tree: str, how: str) -> str:
    """Of two rows of one table: how often is the better one better here, too?"""
    known = [pair for pair in pairs if (tree, how) in pair.ours]
    same = [
        (one.published > other.published) == (one.ours[tree, how] > other.ours[tree, how])
        for one, other in combinations(known, 2)
        if (one.model, one.table) == (other.model, other.table)
    ]
    return f"{sum(same)} of {len(same)}"


def ranked(one: Sequence[float], other: Sequence[float]) -> str:
    """A rank correlation in words; fewer than three pairs, or all alike, have none."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return "-"
    return f"{spearman(np.array(one), np.array(other)):+.2f} (n = {len(one)})"


def classed(rows: Sequence[Row], tree: str) -> dict[str, float]:
    """Mean PSNR of the Golden Path's lists of 21 steps, over the prompts that all of them have."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for row in rows:
        if row["tree"] == tree and row["policy"] in CLASS_OF:
            of_list = found.setdefault(row["policy"], {})
            of_list[row["prompt"], row["seed"]] = row["psnr_frames"]
    common = set.intersection(*map(set, found.values())) if found else set()
    names = [name for name in CLASS_OF if name in found and common]
    return {name: fmean(found[name][prompt] for prompt in common) for name in names}


def _beside(pairs: Sequence[Pair]) -> str:
    header = ["published for", "policy", "speed-up", "published, dB"]
    header += [f"{MODELS[tree]} miniature, dB" for tree in TREES]
    lines = []
    for pair in pairs:
        ours = (pair.ours.get((tree, SAME)) for tree in TREES)
        of = [f"{pair.model}, {pair.table}", pair.policy, f"{pair.speedup:.2f}x"]
        lines.append([*of, *map(_decibels, (pair.published, *ours))])
    return markdown(header, lines)


def _correlations(pairs: Sequence[Pair]) -> str:
    """Of every published table of one protocol, and of all rows of a model."""
    ways = list(product(TREES, (SAME, AT_BUDGET)))
    header = [
        "rank correlation with",
        *(f"{MODELS[tree]} miniature, {how}" for tree, how in ways),
    ]
    sets: dict[str, list[Pair]] = {}
    for pair in pairs:
        sets.setdefault(f"{pair.model}, {pair.table}", []).append(pair)
    sets = {name: own for name, own in sets.items() if len(own) > 2}
    for pair in pairs:
        sets.setdefault(f"{pair.model}, all rows", []).append(pair)
    lines = [[name, *(correlation(own, *way) for way in ways)] for name, own in sets.items()]
    lines.append(["pairs within a table in the same order", *(alike(pairs, *way) for way in ways)])
    return markdown(header, lines)


def _classes(rows: Sequence[Row]) -> str:
    """The Golden Path's classes beside the lists' PSNR on the miniatures."""
    found = {tree: classed(rows, tree) for tree in TREES}
    lines = [
        [name, str(rank), *(_decibels(found[tree].get(name)) for tree in TREES)]
        for name, rank in CLASS_OF.items()
    ]
    own = (ranked([-CLASS_OF[n] for n in of], list(of.values())) for of in found.values())
    lines.append(["rank correlation", "", *own])
    header = ["list, held", "class on the full-size models"]
    return markdown([*header, *(f"{MODELS[tree]} miniature, dB" for tree in TREES)], lines)


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

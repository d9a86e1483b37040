"""Tables of the comparison, from its rows alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log, sqrt
from statistics import fmean, mode, stdev

from benchmarks.compare.policies import ALL, GROUP_OF, GROUPS, OURS
from benchmarks.lib.rows import Row, markdown, spread
from profiling_core.plan.describe import format_bytes

OTHERS = ("peers", "packages", "lists")  # groups whose best is marked
OFF = 0.03  # a speed-up further off than this is said in a summary
# one line for the lists of a method, each of which has its own speed
LINES = {name: f"{name.split('-')[0]} lists" for name in GROUPS["lists"]}
SUMMED = (
    OURS,
    *GROUPS["fewer"],
    *GROUPS["uniform"],
    *GROUPS["peers"],
    *GROUPS["packages"],
    *dict.fromkeys(LINES.values()),
    "paper background stepwise",
)
HEADER = (
    "policy",
    "speed-up",
    "PSNR, dB (worst)",
    "ours minus it, dB",
    "pooled",
    "SSIM",
    "latent error",
    "motion",
    "flicker",
    "extra memory",
    "n",
)


@dataclass(frozen=True)
class Group:
    """All prompts of one tree, policy and budget (the budget that its own speed is nearest to)."""

    tree: str
    policy: str
    budget: float
    rows: tuple[Row, ...]

    @cached_property
    def psnr(self) -> dict[tuple[str, int], float]:
        """By prompt and seed."""
        return {(row["prompt"], row["seed"]): row["psnr_frames"] for row in self.rows}

    @property
    def speedup(self) -> float:
        """Full over spent block FLOPs of all prompts together."""
        return 1 / fmean(1 / row["speedup"] for row in self.rows)

    def mean(self, name: str) -> float:
        return fmean(row[name] for row in self.rows)


@dataclass(frozen=True)
class Difference:
    """Difference in PSNR on the same prompts: mean, standard error of the mean, prompts."""

    mean: float
    error: float
    count: int


def latest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the newest settings of every tree, policy and budget, each prompt once.

    rows: oldest first. Weights are settings: those of the tree's newest row. Policies that are
    gone are left out.
    """
    rows = [row for row in rows if row["policy"] in GROUP_OF]
    weights = {row["tree"]: row["weights"] for row in rows}
    rows = [row for row in rows if row["weights"] == weights[row["tree"]]]
    settings = {_place(row): _settings(row) for row in rows}
    kept = {
        (*_place(row), row["prompt"], row["seed"]): row
        for row in rows
        if _settings(row) == settings[_place(row)]
    }
    return list(kept.values())


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Groups in the order of trees, budgets and policies."""
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None})
    found: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        budget = row["budget"]
        if budget is None:
            speed = row["speedup"]
            budget = min(budgets or [speed], key=lambda each: abs(log(each / speed)))
        found.setdefault((row["tree"], budget, row["policy"]), []).append(row)
    trees = list(dict.fromkeys(row["tree"] for row in rows))
    order = sorted(found, key=lambda key: (trees.index(key[0]), key[1], ALL.index(key[2])))
    return [Group(tree, policy, b, tuple(found[tree, b, policy])) for tree, b, policy in order]


def difference(ours: Group, other: Group) -> Difference | None:
    """PSNR of ours minus the other's, prompt by prompt; None where no prompt is in both."""
    common = [key for key in ours.psnr if key in other.psnr]
    if not common:
        return None
    values = [ours.psnr[key] - other.psnr[key] for key in common]
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else float("nan")
    return Difference(fmean(values), error, len(values))


def best_other(groups: Sequence[Group]) -> str | None:
    """The policy of other authors with the highest mean PSNR; `release` and the paper's are not."""
    others = [group for group in groups if GROUP_OF[group.policy] in OTHERS]
    return max(others, key=lambda group: group.mean("psnr_frames")).policy if others else None


def tables(rows: Sequence[Row]) -> str:
    """One Markdown table per tree and budget."""
    sections: dict[tuple[str, float], list[Group]] = {}
    for group in grouped(rows):
        sections.setdefault((group.tree, group.budget), []).append(group)
    parts = [_section(*place, groups) for place, groups in sections.items()]
    return "\n".join([*parts, LEGEND])


def summary(rows: Sequence[Row]) -> str:
    """One Markdown table per tree: policies down, budgets across, PSNR mean (worst prompt).

    The paper's published blocks and pattern, our search, and one line for the public lists of a
    method, each at the budget that its own speed is nearest to.
    """
    found: dict[str, dict[str, dict[float, list[Group]]]] = {}
    for group in grouped(rows):
        line = LINES.get(group.policy, group.policy)
        if line in SUMMED:
            lines = found.setdefault(group.tree, {})
            lines.setdefault(line, {}).setdefault(group.budget, []).append(group)
    parts = [_summed(tree, lines) for tree, lines in found.items()]
    return "\n".join(parts)


def _summed(tree: str, found: dict[str, dict[float, list[Group]]]) -> str:
    budgets = sorted({budget for cells in found.values() for budget in cells})
    groups = [group for cells in found.values() for cell in cells.values() for group in cell]
    most = mode(len(group.rows) for group in groups)
    best = {b: max(_mean(group) for group in groups if group.budget == b) for b in budgets}
    header = ["policy", *(f"{budget:g}x" for budget in budgets)]
    lines = []
    for line in sorted(found, key=SUMMED.index):
        cells = (
            "; ".join(_summed_cell(group, most, best[b]) for group in found[line].get(b, []))
            for b in budgets
        )
        name = f"**{line}**, ours" if line == OURS else line
        lines.append([name, *(cell or "-" for cell in cells)])
    return f"### {tree}, {most} prompts\n\n{markdown(header, lines)}\n"


def _mean(group: Group) -> float:
    return group.mean("psnr_frames")


def _summed_cell(group: Group, most: int, best: float) -> str:
    """Mean (worst); the real speed-up and the number of prompts where they are others."""
    mean = _mean(group)
    text = f"{mean:.1f} ({min(group.psnr.values()):.1f})"
    text = f"**{text}**" if mean == best else text
    if abs(group.speedup / group.budget - 1) > OFF:
        text += f" at {group.speedup:.2f}x"
    return text if len(group.rows) == most else f"{text}, n = {len(group.rows)}"


def _section(tree: str, budget: float, groups: Sequence[Group]) -> str:
    ours = next((group for group in groups if group.policy == OURS), None)
    best = best_other(groups)
    lines = [_cells(group, ours, group.policy == best) for group in groups]
    return f"### {tree}, {budget:g}x\n\n{markdown(HEADER, lines)}\n"


def _cells(group: Group, ours: Group | None, best: bool) -> list[str]:
    psnr = list(group.psnr.values())
    name = f"**{group.policy}** (best peer)" if best else group.policy
    return [
        name + (", own speed" if group.rows[0]["budget"] is None else ""),
        f"{group.speedup:.2f}x",
        spread(psnr, "± "),
        _difference_cell(ours, group),
        f"{group.mean('psnr_pooled'):.1f}",
        f"{group.mean('ssim'):.4f}",
        f"{group.mean('latent_error'):.4f}",
        f"{group.mean('motion'):.3f}",
        f"{group.mean('flicker'):.3f}",
        format_bytes(max(row["bytes_held"] for row in group.rows)),
        str(len(group.rows)),
    ]


def _difference_cell(ours: Group | None, group: Group) -> str:
    found = difference(ours, group) if ours and group.policy != OURS else None
    if found is None:
        return ""
    if found.count == 1:
        return f"{found.mean:+.1f}"
    return f"{found.mean:+.1f} ± {found.error:.1f}"


def _place(row: Row) -> tuple[str, str, float | None]:
    return row["tree"], row["policy"], row["budget"]


def _settings(row: Row) -> str:
    return json.dumps(row["settings"], sort_keys=True)


LEGEND = f"""\
Speed-up: full over spent FLOPs of the blocks, both guidance branches. PSNR: mean over frames
against the full run of the same prompt and noise; mean ± standard deviation over prompts (worst
prompt). Ours is `{OURS}`; the difference is taken prompt by prompt, mean ± standard error. Latent
error: relative L2. Motion, flicker: ratios to the full run. Extra memory: the most kept between two
model calls. n: prompts. The rows also hold seconds, which say nothing where other work came and
went beside the run: `benchmarks.search.prediction` and `benchmarks.speed.demo` time side by side.
"""

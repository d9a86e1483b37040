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

OTHERS = ("peers", "packages")  # groups whose best is marked
OFF = 0.03  # a speed-up further off than this is said in a summary
SUMMED = (
    *GROUPS["ours"][:3],
    *GROUPS["fewer"],
    *GROUPS["uniform"],
    *GROUPS["peers"],
    *GROUPS["packages"],
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

    rows: oldest first. Weights are settings: those of the tree's newest row. Policies that are no
    more have rows, and none here.
    """
    weights = {row["tree"]: row["weights"] for row in rows}
    rows = [r for r in rows if r["weights"] == weights[r["tree"]] and r["policy"] in ALL]
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

    The paper's published blocks and pattern, and ours those that choose the reuse mode
    themselves; policies with a speed of their own are left to `tables`.
    """
    found: dict[str, dict[str, dict[float, Group]]] = {}
    for group in grouped([row for row in rows if row["budget"] is not None]):
        if group.policy in SUMMED:
            found.setdefault(group.tree, {}).setdefault(group.policy, {})[group.budget] = group
    parts = [_summed(tree, policies) for tree, policies in found.items()]
    return "\n".join(parts)


def _summed(tree: str, policies: dict[str, dict[float, Group]]) -> str:
    budgets = sorted({budget for groups in policies.values() for budget in groups})
    most = mode(len(group.rows) for groups in policies.values() for group in groups.values())
    header = ["policy", *(f"{budget:g}x" for budget in budgets)]
    lines = []
    best = {b: max(_mean(groups, b) for groups in policies.values()) for b in budgets}
    for policy in sorted(policies, key=SUMMED.index):
        groups = policies[policy]
        cells = [_summed_cell(groups.get(b), b, most, best[b]) for b in budgets]
        lines.append([f"**{policy}**, ours" if GROUP_OF[policy] == "ours" else policy, *cells])
    return f"### {tree}, {most} prompts\n\n{markdown(header, lines)}\n"


def _mean(groups: dict[float, Group], budget: float) -> float:
    return groups[budget].mean("psnr_frames") if budget in groups else float("-inf")


def _summed_cell(group: Group | None, budget: float, most: int, best: float) -> str:
    """Mean (worst); the real speed-up and the number of prompts where they are others."""
    if group is None:
        return "-"
    mean = group.mean("psnr_frames")
    text = f"{mean:.1f} ({min(group.psnr.values()):.1f})"
    text = f"**{text}**" if mean == best else text
    if abs(group.speedup / budget - 1) > OFF:
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

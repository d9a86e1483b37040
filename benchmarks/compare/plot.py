"""Figures of the comparison: PSNR against the real speed-up, one panel per tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare.policies import GROUPS, OURS
from benchmarks.compare.table import LINES, Group, Row, grouped
from benchmarks.lib.rows import TITLES, save_figure
from profiling_core.search.paper_method import PATTERNS

BEST_PAPER = "paper background stepwise"  # the published one stands for its ablations
MAIN = (
    OURS,
    *GROUPS["fewer"],
    BEST_PAPER,
    "release",
    *GROUPS["peers"],
    "cache-dit DBCache",
    "diffusers SeaCache",
    "diffusers TaylorSeer",
)
# the second figure: a row of panels each, with ours and fewer steps to compare
REST = {
    "the paper's blocks and patterns": (*GROUPS["paper"],),
    "packages": (*GROUPS["packages"],),
    "public lists": (*GROUPS["lists"],),
    "ours, and uniform reuse": (*GROUPS["ours"][1:], *GROUPS["uniform"]),
}
OWN_COLOUR, PLAIN_COLOUR = "#b3202c", "#111111"
# apart from ours and from each other; none is red or black
COLOURS = (
    *("#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#8a9a00", "#0b5394", "#004d40"),
)
STYLES = ("-", "--", ":", "-.")


def draw(rows: Sequence[Row], out: Path) -> list[Path]:
    """compare (MAIN, at most a dozen lines a panel) and compare_all as .png and .svg; paths."""
    groups = grouped(rows)
    found = [_figure({"": [g for g in groups if g.policy in MAIN]}, groups, out / "compare")]
    rest = {
        title: [g for g in groups if g.policy in (OURS, "fewer steps", *names)]
        for title, names in REST.items()
        if any(g.policy in names for g in groups)
    }
    if rest:
        found.append(_figure(rest, groups, out / "compare_all"))
    return [path for paths in found for path in paths]


def _figure(panels: dict[str, list[Group]], groups: Sequence[Group], stem: Path) -> list[Path]:
    """One row per entry of panels, one column per tree; both axes of a tree are the same."""
    from matplotlib.figure import Figure

    trees = list(dict.fromkeys(group.tree for group in groups))
    size = (8.2 * len(trees), 5.6 * len(panels))
    figure = Figure(figsize=size, layout="tight")
    axes = figure.subplots(len(panels), len(trees), squeeze=False)
    for line, (title, chosen) in zip(axes, panels.items(), strict=True):
        for axis, tree in zip(line, trees, strict=True):
            _panel(axis, [group for group in chosen if group.tree == tree])
            axis.set_title(f"{TITLES[tree]}{f': {title}' if title else ''}", loc="left")
    return save_figure(figure, stem)


def _panel(axis: Any, groups: Sequence[Group]) -> None:
    """Lines of mean PSNR with the worst prompt as a thin mark below."""
    lines: dict[str, list[Group]] = {}
    for group in groups:
        lines.setdefault(LINES.get(group.policy, group.policy), []).append(group)
    for number, (policy, points) in enumerate(lines.items()):
        x = [point.speedup for point in points]
        y = [point.mean("psnr_frames") for point in points]
        worst = [min(point.psnr.values()) for point in points]
        style = _style(policy, number)
        axis.plot(x, y, marker="o", markersize=4, label=policy, **style)
        axis.plot(x, worst, marker="_", markersize=9, linestyle="", color=style["color"], alpha=0.6)
    axis.set_xlabel("speed-up by block FLOPs")
    axis.set_ylabel("PSNR against the full run, dB (– worst prompt)")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _style(policy: str, number: int) -> dict[str, Any]:
    if policy == OURS:
        return {"color": OWN_COLOUR, "linewidth": 2.6, "zorder": 5}
    if policy in GROUPS["fewer"]:
        dash = STYLES[GROUPS["fewer"].index(policy)]
        return {"color": PLAIN_COLOUR, "linewidth": 1.6, "linestyle": dash}
    if policy in GROUPS["paper"]:  # blocks by colour, patterns by dashes
        blocks, pattern = divmod(GROUPS["paper"].index(policy), len(PATTERNS))
        return {"color": COLOURS[blocks], "linewidth": 1.3, "linestyle": STYLES[pattern]}
    return {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.3}

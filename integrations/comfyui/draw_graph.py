"""Draws a workflow in ComfyUI's API format: python draw_graph.py WORKFLOW.json PICTURE.png"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

WIDE, HIGH, OURS = 0.86, 0.72, "ProfilingDiT"


def draw(workflow: Path, picture: Path) -> None:
    graph = json.loads(workflow.read_text(encoding="utf-8"))
    links = {
        name: [(key, value[0]) for key, value in node["inputs"].items() if isinstance(value, list)]
        for name, node in graph.items()
    }

    def column(name: str) -> int:
        return 1 + max((column(source) for _, source in links[name]), default=-1)

    columns = {name: column(name) for name in graph}
    places, used = {}, [0] * (max(columns.values()) + 1)
    for name, x in columns.items():
        places[name] = (x, -used[x])
        used[x] += 1
    figure = Figure(figsize=(1.75 * len(used), 3.6))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.1, len(used) - 0.1), ylim=(0.4 - max(used), 0.6))
    axes.axis("off")
    for name, node in graph.items():
        x, y = places[name]
        for _, source in links[name]:
            a, b = places[source]
            bow = f"arc3,rad={-0.25 if b == y and x - a > 1 else 0}"  # over the nodes between
            ends = ((a + WIDE, b), (x, y))
            link = FancyArrowPatch(*ends, connectionstyle=bow, arrowstyle="-", color="0.6")
            axes.add_patch(link)
        colour = "#f2b134" if node["class_type"].startswith(OURS) else "0.93"
        corner = (x, y - HIGH / 2)
        axes.add_patch(Rectangle(corner, WIDE, HIGH, facecolor=colour, edgecolor="0.5", zorder=2))
        values = [f"{k}: {v}" for k, v in node["inputs"].items() if not isinstance(v, list)]
        shown = [value[:26] for value in values if not value.endswith(": ")][:3]
        text = "\n".join([node["class_type"], *shown])
        axes.text(x + 0.03, y, text, fontsize=6.5, va="center", zorder=3)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))

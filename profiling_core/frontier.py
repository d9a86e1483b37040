"""The frontier of a search, error against speed-up, as a table and as a plot."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from profiling_core.plan import PlanError
from profiling_core.report.write import write_whole
from profiling_core.search import Point

FORMATS = (".svg", ".png")
LOOKS = {  # told apart by colour, dash and mark
    "hold": ("#7a7a7a", ":", "o"),
    "linear": ("#1f6fb4", "--", "s"),
    "weights": ("#c2571a", "-.", "^"),
    "corrected": ("#7b3fa0", "-", "v"),
    "jump": ("#1b7a4b", "-", "D"),
}


def frontier_lines(points: list[Point], chosen: Point | None = None) -> list[str]:
    """Predicted error of every way to skip, a row per speed-up; '<' marks the chosen one."""
    skips = list(dict.fromkeys(point.skip for point in points))
    rows: dict[float, dict[str, Point]] = {}
    for point in points:
        rows.setdefault(point.speedup, {})[point.skip] = point
    lines = ["speed-up  computed  " + "".join(f"{skip:>10}" for skip in skips)]
    for speedup, row in sorted(rows.items()):
        cells = "".join(_cell(row[skip], chosen) for skip in skips)
        count = len(next(iter(row.values())).steps)
        lines.append(f"{f'{speedup:.2f}x':<8}  {count:>8}  {cells}")
    return [*lines, "predicted relative error of the final latent, 80th percentile of the runs"]


def _cell(point: Point, chosen: Point | None) -> str:
    return f"{f'{point.error:.4f}' + ('<' if point == chosen else ' '):>10}"


def save_frontier(points: list[Point], path: Path, chosen: Point | None = None) -> None:
    """Write the plot, SVG or PNG by the file's name, whole or not at all."""
    buffer = BytesIO()
    _drawing(points, chosen).savefig(buffer, format=path.suffix[1:], dpi=150)
    write_whole(path, buffer.getvalue())


def check_frontier(path: Path) -> None:
    """PlanError for a name that says no format, or a folder that is not there."""
    if path.suffix not in FORMATS:
        raise PlanError(f"--frontier {path}: expected a name that ends with {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise PlanError(f"--frontier {path}: no folder {path.parent}, make it first")


def _drawing(points: list[Point], chosen: Point | None) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for skip in dict.fromkeys(point.skip for point in points):
        own = sorted((p for p in points if p.skip == skip), key=lambda p: p.speedup)
        colour, dash, mark = LOOKS[skip]
        x, y = [p.speedup for p in own], [p.error for p in own]
        axes.plot(x, y, color=colour, linestyle=dash, marker=mark, markersize=4, label=skip)
    if chosen is not None:
        place = {"xy": (chosen.speedup, chosen.error), "xytext": (8, -14)}
        axes.annotate("chosen", **place, textcoords="offset points")
        axes.plot(chosen.speedup, chosen.error, "o", markersize=11, fillstyle="none", color="black")
    axes.set_yscale("log")
    axes.set_xlabel("ideal speed-up, block FLOPs of the full run over those spent")
    axes.set_ylabel("predicted relative error of the final latent")
    axes.grid(which="both", color="#dddddd", linewidth=0.6)
    axes.legend(frameon=False)
    return figure

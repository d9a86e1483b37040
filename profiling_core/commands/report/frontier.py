"""The frontier of a search, error against speed-up, as a table and as a plot."""

from __future__ import annotations

from pathlib import Path

from profiling_core.commands.report.drawing import check_packages, files_of
from profiling_core.commands.report.figures import Points, Scatter
from profiling_core.errors import PlanError
from profiling_core.files import write_whole
from profiling_core.search.search import Point

FORMATS = (".svg", ".png")


def frontier_lines(points: list[Point], chosen: Point | None = None) -> list[str]:
    """Predicted error of every reuse mode, a row per speed-up; '<' marks the chosen one."""
    skips = list(dict.fromkeys(point.skip for point in points))
    rows: dict[float, dict[str, Point]] = {}
    for point in points:
        rows.setdefault(point.speedup, {})[point.skip] = point
    lines = ["speed-up  computed  " + "".join(f"{skip:>10}" for skip in skips)]
    for speedup, row in sorted(rows.items()):
        cells = "".join(_cell(row.get(skip), chosen) for skip in skips).rstrip()
        count = len(next(iter(row.values())).steps)
        lines.append(f"{f'{speedup:.2f}x':<8}  {count:>8}  {cells}")
    return [*lines, "predicted relative error of the final latent, 80th percentile of the runs"]


def _cell(point: Point | None, chosen: Point | None) -> str:
    if point is None:  # a faster one is better
        return f"{'- ':>10}"
    return f"{f'{point.error:.4f}' + ('<' if point == chosen else ' '):>10}"


def save_frontier(points: list[Point], path: Path, chosen: Point | None = None) -> None:
    """Write the plot, SVG or PNG by the file's name, whole or not at all."""
    ((_, content),) = files_of(frontier_figure(points, chosen), path.suffix[1:])
    write_whole(path, content)


def check_frontier(path: Path) -> None:
    """PlanError for an unknown format or a missing package."""
    if path.suffix not in FORMATS:
        raise PlanError(f"--frontier {path}: expected a name that ends with {' or '.join(FORMATS)}")
    check_packages()


def frontier_figure(points: list[Point], chosen: Point | None) -> Scatter:
    """A line a reuse mode, and a ring around the chosen point."""
    sets = []
    for skip in dict.fromkeys(point.skip for point in points):
        own = sorted((p for p in points if p.skip == skip), key=lambda p: p.speedup)
        sets.append(Points(skip, tuple(p.speedup for p in own), tuple(p.error for p in own)))
    return Scatter(
        "frontier",
        "Predicted error against speed-up",
        "ideal speed-up, block FLOPs of the full run over those spent",
        "predicted relative error of the final latent",
        tuple(sets),
        log_y=True,
        ring=None if chosen is None else (chosen.speedup, chosen.error),
    )

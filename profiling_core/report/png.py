"""The figures of the report drawn by matplotlib, without a display and without global state."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch

from profiling_core.report.figures import (
    NOT_MEASURED,
    STATES,
    Absent,
    AttentionMaps,
    Axis,
    Curves,
    Figure,
    HeatMap,
    Layer,
    Panel,
    PlanPicture,
    View,
)
from profiling_core.report.palette import CURVES, HEAT, MAPS, PLAN

DPI = 150
WIDE = 8.0  # inches
HEAT_COLOURS = LinearSegmentedColormap.from_list("heat", HEAT)
MAP_COLOURS = LinearSegmentedColormap.from_list("maps", MAPS)
DASHES = ("-", "--")


def drawings(figures: list[Figure]) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of every layer, view or branch of the figures that are not absent."""
    for figure in figures:
        if not isinstance(figure, Absent):
            for part, drawing in DRAW[type(figure)](figure):
                yield _file_name(figure.id, part), _png(drawing)


def _file_name(figure_id: str, part: str) -> str:
    words = "".join(c if c.isalnum() else "-" for c in part.lower()).strip("-")
    return "-".join(filter(None, (figure_id.removeprefix("fig-"), words)))


def _png(drawing: Drawing) -> bytes:
    FigureCanvasAgg(drawing)
    buffer = BytesIO()
    drawing.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _drawing(height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Drawing, Any]:
    drawing = Drawing(figsize=(WIDE, height), layout="constrained")
    return drawing, drawing.subplots(rows, columns, squeeze=False, **more)


def _heat(figure: HeatMap) -> Iterator[tuple[str, Drawing]]:
    several = len(figure.layers) > 1
    for layer in figure.layers:
        rows = len(figure.y.names)
        beside = bool(layer.means)
        drawing, axes = _drawing(
            1.6 + max(rows * 0.12, 2.2), columns=1 + beside, width_ratios=[6, 1] if beside else [1]
        )
        main = axes[0, 0]
        image = main.imshow(
            layer.values, cmap=HEAT_COLOURS, norm=_norm(layer), aspect="auto", interpolation="none"
        )
        if layer.missing == NOT_MEASURED:
            main.set_facecolor("#e8ecf0")
        _grid_axes(main, figure.x, figure.y)
        main.set_title(figure.title, loc="left")
        drawing.colorbar(image, ax=axes[0].tolist(), label=layer.name, shrink=0.8)
        if beside:
            _row_means(axes[0, 1], layer)
        yield (layer.name if several else ""), drawing


def _norm(layer: Layer) -> Normalize:
    usable = layer.values[np.isfinite(layer.values)]
    if layer.logarithmic and (usable > 0).any():
        return LogNorm(usable[usable > 0].min(), usable.max(), clip=True)
    return Normalize(usable.min(), usable.max())


def _row_means(side: Axes, layer: Layer) -> None:
    """Means of the rows as bars, F filled and B open, with their letters and tau."""
    sides = layer.sides or ("F",) * len(layer.means)
    for row, (mean, letter) in enumerate(zip(layer.means, sides, strict=True)):
        filled = "#5b6670" if letter == "F" else "none"
        side.barh(row, mean, height=0.6, color=filled, edgecolor="#5b6670", linewidth=0.6)
    if layer.sides:
        side.set_yticks(range(len(sides)), sides, fontsize=5)
    else:
        side.set_yticks([])
    if layer.tau is not None:
        side.axvline(layer.tau, color="black", linestyle=":", linewidth=0.9)
        side.set_title(f"τ {layer.tau:.3g}", fontsize=8)
    side.set_ylim(len(sides) - 0.5, -0.5)
    side.set_xlabel("mean", fontsize=8)
    side.tick_params(labelsize=7)


def _grid_axes(axes: Axes, x: Axis, y: Axis) -> None:
    every = max(1, -(-len(x.names) // 12))
    axes.set_xticks(range(0, len(x.names), every), x.names[::every])
    axes.set_xlabel(x.label)
    every = max(1, -(-len(y.names) // 20))
    axes.set_yticks(range(0, len(y.names), every), y.names[::every])
    axes.set_ylabel(" | ".join(name for name, _ in y.groups) or y.label)
    edge = -0.5
    for _, count in y.groups[:-1]:
        edge += count
        axes.axhline(edge, color="white", linewidth=1.5)
    axes.tick_params(labelsize=7)


def _curves(figure: Curves) -> Iterator[tuple[str, Drawing]]:
    for view in figure.views:
        yield view.name, _view(figure.title, view)


def _view(title: str, view: View) -> Drawing:
    drawing, axes = _drawing(0.6 + 2.4 * len(view.panels), rows=len(view.panels))
    axes[0, 0].set_title(title, loc="left")
    for own, panel in zip(axes[:, 0], view.panels, strict=True):
        (_bars if panel.bars else _lines)(own, panel)
        own.set_ylabel(panel.label, fontsize=8)
        own.set_xlabel(" | ".join(name for name, _ in panel.x.groups) or panel.x.label, fontsize=8)
        own.tick_params(labelsize=7)
        if panel.from_zero:
            own.set_ylim(bottom=0)
    return drawing


def _bars(axes: Axes, panel: Panel) -> None:
    places = range(len(panel.x.names))
    for curve in panel.series:
        around = np.abs([curve.middle - curve.low, curve.high - curve.middle])
        axes.bar(places, curve.middle, yerr=around, color=CURVES[0], error_kw={"linewidth": 0.8})
    every = max(1, -(-len(places) // 30))
    axes.set_xticks(places[::every], panel.x.names[::every])


def _lines(axes: Axes, panel: Panel) -> None:
    for n, curve in enumerate(panel.series):
        colour, dash = CURVES[n % 2], DASHES[n % 2]
        axes.fill_between(panel.x.at, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            panel.x.at,
            curve.middle,
            color=colour,
            linestyle=dash,
            marker="o" if panel.points else None,
            label=curve.name,
        )
    axes.grid(axis="y", color="#e8ecf0")
    if len(panel.series) > 1:
        axes.legend(fontsize=8)


def _maps(figure: AttentionMaps) -> Iterator[tuple[str, Drawing]]:
    """The middle frame of the first run, with the outline of the foreground."""
    rows, columns = len(figure.blocks.names), len(figure.steps.names)
    frame = figure.maps.shape[3] // 2
    shown, mask = figure.maps[0, :, :, frame], figure.masks[0, frame]
    values = figure.maps[0][np.isfinite(figure.maps[0])]
    top = float(np.quantile(values, 0.99)) if values.size else 1.0
    drawing, axes = _drawing(1.2 * rows + 0.8, rows, columns)
    for row, name in enumerate(figure.blocks.names):
        for column, step in enumerate(figure.steps.names):
            one = axes[row, column]
            image = one.imshow(shown[row, column], cmap=MAP_COLOURS, vmin=0, vmax=top)
            if (mask >= 0.5).any() and min(mask.shape) > 1:
                one.contour(mask, levels=[0.5], colors="white", linewidths=0.9)
            one.set(xticks=[], yticks=[])
            if row == 0:
                one.set_title(f"step {step}", fontsize=8)
        side = f" ({figure.sides[row]})" if figure.sides[row] else ""
        axes[row, 0].set_ylabel(f"{name}{side}", fontsize=7)
    drawing.suptitle(f"{figure.title}, run 1, frame {frame + 1}", fontsize=11)
    drawing.colorbar(image, ax=axes.ravel().tolist(), label="attention over its mean", shrink=0.5)
    yield "", drawing


def _plan(figure: PlanPicture) -> Iterator[tuple[str, Drawing]]:
    """States in the page's colours; kept steps carry a dot, jumped ones a slash."""
    for branch, rows in figure.branches:
        numbers = np.array([[list(STATES).index(state) for state in row] for row in rows])
        drawing, axes = _drawing(1.6 + max(len(rows) * 0.1, 2.0))
        own = axes[0, 0]
        colours = ListedColormap([PLAN[state] for state in STATES])
        own.imshow(numbers, cmap=colours, vmin=-0.5, vmax=3.5, aspect="auto", interpolation="none")
        for state, mark, colour, size in (("#", "s", "white", 3), (">", "$/$", "#8a6d2f", 14)):
            y, x = np.nonzero(numbers == list(STATES).index(state))
            own.scatter(x, y, marker=mark, s=size, color=colour, linewidths=0.3)
        _grid_axes(own, figure.steps, figure.blocks)
        own.set_title(f"{figure.title}, {branch}", loc="left")
        used = [state for state in STATES if any(state in row for row in rows)]
        patches = [Patch(color=PLAN[state], label=STATES[state]) for state in used]
        drawing.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8)
        yield (branch if len(figure.branches) > 1 else ""), drawing


DRAW = {HeatMap: _heat, Curves: _curves, AttentionMaps: _maps, PlanPicture: _plan}

"""All figures, drawn by matplotlib: as SVG for a page, light or dark, and as files.

No display and no global state; equal figures give equal bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from profiling_core.commands.report.figures import (
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
    Scatter,
)
from profiling_core.commands.report.markup import Markup
from profiling_core.commands.report.svg import inline_svg
from profiling_core.errors import PlanError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure as Drawing

PACKAGES = {"matplotlib": "matplotlib", "skimage": "scikit-image"}
INSTALL = 'pip install "profiling-dit[report]"'
DPI = 200  # of PNG files
WIDE = 5.6  # inches, of which an SVG has 72 units each: readable on a phone as well
TEXT, MUTED, LINE, GRID, EMPTY = "#1a1f24", "#5b6670", "#d5dbe1", "#e8ecf0", "#c3cad1"
# two scales that rise evenly in lightness: they survive colour blindness and grey print
HEAT = ("#2a1a55", "#38417f", "#2f6a8c", "#2a917f", "#66b562", "#b9cf4e", "#f7e86a")
MAPS = ("#081d42", "#2f3d62", "#575d6d", "#7d7c76", "#a89d6f", "#d5c160", "#f8e654")
SERIES = ("#1f6fb4", "#c2571a", "#2f7d4f", "#7a4fb0", "#85682b", "#b03a5b")
DASHES, MARKS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v", "P")
PLAN = {"#": "#17406d", "+": "#4f8cc4", ".": "#dbe5ee", ">": "#f3ead8"}
# what the page's style gives another colour in the dark
VARIABLES = {TEXT: "text", MUTED: "muted", LINE: "line", GRID: "grid", EMPTY: "empty"}
VARIABLES |= {colour: f"series-{n}" for n, colour in enumerate(SERIES)}
VARIABLES |= dict(zip(PLAN.values(), ("kept", "computed", "reused", "jumped"), strict=True))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "text.color": TEXT,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": TEXT,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "grid.color": GRID,
    "hatch.color": MUTED,
    "hatch.linewidth": 0.5,
}
Part = tuple[str, "Drawing"]  # what is drawn of a figure, by name


def check_packages(*names: str) -> None:
    """PlanError with the command that installs what figures and image measures need."""
    missing = [PACKAGES[name] for name in names or ("matplotlib",) if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise PlanError(f"{' and '.join(missing)} {verb} not installed: {INSTALL}")


def svgs(figure: Figure) -> list[Markup]:
    """Every layer, view or branch of a figure as an SVG element; none if it is absent."""
    found = []
    for part, content in _saved(figure, "svg", False):
        name = f"{figure.title}: {part}" if part else figure.title
        found.append(inline_svg(content.decode(), _file_name(figure.id, part), name, VARIABLES))
    return found


def files_of(figure: Figure, kind: str = "png") -> list[tuple[str, bytes]]:
    """Name and content of every part of a figure, "png" or "svg", each with its title."""
    return [(_file_name(figure.id, part), made) for part, made in _saved(figure, kind, True)]


def _file_name(figure_id: str, part: str) -> str:
    words = "".join(c if c.isalnum() else "-" for c in part.lower()).strip("-")
    return "-".join(filter(None, (figure_id.removeprefix("fig-"), words)))


def _saved(figure: Figure, kind: str, titled: bool) -> Iterator[tuple[str, bytes]]:
    if isinstance(figure, Absent):
        return
    check_packages()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    date = {"Date": None} if kind == "svg" else {}
    with rc_context({**STYLE, "svg.hashsalt": figure.id}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name may be in any script
        for part, drawing in DRAW[type(figure)](figure):
            FigureCanvasAgg(drawing)
            if titled:
                drawing.suptitle(figure.title, fontsize=11)
            buffer = BytesIO()
            transparent = kind == "svg" and not titled
            drawing.savefig(buffer, format=kind, dpi=DPI, metadata=date, transparent=transparent)
            yield part, buffer.getvalue()


def _drawing(height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Drawing, Any]:
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(WIDE, height), layout="constrained")
    return drawing, drawing.subplots(rows, columns, squeeze=False, **more)


def _scale(name: str, colours: tuple[str, ...]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(name, colours)


def _heat(figure: HeatMap) -> Iterator[Part]:
    from matplotlib.colors import LogNorm

    for layer in figure.layers:
        beside = bool(layer.means)
        height = min(1.4 + max(len(figure.y.names) * 0.1, 1.8), 5.0)
        widths = [6, 1] if beside else [1]
        drawing, axes = _drawing(height, columns=1 + beside, width_ratios=widths)
        main = axes[0, 0]
        image = main.imshow(
            layer.values,
            cmap=_scale("heat", HEAT),
            norm=_norm(layer),
            aspect="auto",
            interpolation="none",
        )
        main.set_facecolor(EMPTY if layer.missing == NOT_MEASURED else "none")
        _grid_axes(main, figure.x, figure.y)
        main.set_title(layer.name, loc="left")
        bar = drawing.colorbar(image, ax=axes[0].tolist(), aspect=30, pad=0.02)
        bar.outline.set_visible(False)
        if isinstance(image.norm, LogNorm):
            _log_ticks(bar.ax)
        if beside:
            _row_means(axes[0, 1], layer)
        yield (layer.name if len(figure.layers) > 1 else ""), drawing


def _norm(layer: Layer) -> Normalize:
    from matplotlib.colors import LogNorm, Normalize

    usable = layer.values[np.isfinite(layer.values)]
    if layer.logarithmic and (usable > 0).any():
        return LogNorm(usable[usable > 0].min(), usable.max(), clip=True)
    return Normalize(usable.min(), usable.max())


def _log_ticks(axes: Axes) -> None:
    """Plain numbers on a logarithmic y axis, at most some eight."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _row_means(side: Axes, layer: Layer) -> None:
    """Means of the rows as bars, F filled and B open, with their letters and tau."""
    sides = layer.sides or ("F",) * len(layer.means)
    filled = [MUTED if letter == "F" else "none" for letter in sides]
    side.barh(range(len(sides)), layer.means, 0.6, color=filled, edgecolor=MUTED, linewidth=0.6)
    lettered = range(len(layer.sides)) if len(layer.sides) <= 30 else ()
    side.set_yticks(lettered, [sides[n] for n in lettered])
    if layer.tau is not None:
        side.axvline(layer.tau, color=TEXT, linestyle=":", linewidth=1)
        side.set_title(f"τ {layer.tau:.3g}")
    side.set_ylim(len(sides) - 0.5, -0.5)
    side.set_xlabel("mean")
    side.locator_params(axis="x", nbins=2)


def _grid_axes(axes: Axes, x: Axis, y: Axis) -> None:
    """Names along both sides; block lists are parted by a line."""
    for names, ticks, most in ((x.names, axes.set_xticks, 10), (y.names, axes.set_yticks, 12)):
        shown = _shown(names, most)
        ticks(shown, [names[n] for n in shown])
    axes.set_xlabel(x.label)
    axes.set_ylabel(", ".join(name for name, _ in reversed(y.groups)) or y.label)  # read upwards
    edge = -0.5
    for _, count in y.groups[:-1]:
        edge += count
        axes.axhline(edge, color="white", linewidth=1.5)


def _shown(names: tuple[str, ...], most: int) -> range:
    """Places to name, evenly spaced: about `most`, from the first multiple of their distance."""
    every = next((n for n in (1, 2, 5, 10, 20) if len(names) <= n * most), len(names))
    return range(
        next((n for n, name in enumerate(names) if int(name) % every == 0), 0), len(names), every
    )


def _curves(figure: Curves) -> Iterator[Part]:
    for view in figure.views:
        drawing, axes = _drawing(0.2 + 2.0 * len(view.panels), rows=len(view.panels))
        for own, panel in zip(axes[:, 0], view.panels, strict=True):
            (_bars if panel.bars else _lines)(own, panel)
            own.set_title(panel.label, loc="left")
            own.set_xlabel(", ".join(name for name, _ in panel.x.groups) or panel.x.label)
            if panel.from_zero:
                own.set_ylim(bottom=0)
        yield view.name, drawing


def _bars(axes: Axes, panel: Panel) -> None:
    places = range(len(panel.x.names))
    for curve in panel.series:
        around = np.abs([curve.middle - curve.low, curve.high - curve.middle])
        error = {"linewidth": 0.8, "ecolor": TEXT}
        axes.bar(places, curve.middle, yerr=around, color=SERIES[0], error_kw=error)
    shown = _shown(panel.x.names, 15)
    axes.set_xticks(shown, [panel.x.names[n] for n in shown])


def _lines(axes: Axes, panel: Panel) -> None:
    places = [int(name) for name in panel.x.names]  # steps, perhaps not all of them
    for n, curve in enumerate(panel.series):
        colour = SERIES[n % len(SERIES)]
        axes.fill_between(places, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            places,
            curve.middle,
            color=colour,
            linestyle=DASHES[n % len(DASHES)],
            marker="o" if panel.points else None,
            label=curve.name,
        )
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if len(panel.series) > 1:
        axes.legend()


def _maps(figure: AttentionMaps) -> Iterator[Part]:
    """Blocks by steps in one image, each with the outline of the foreground."""
    rows, columns, height, width = figure.maps.shape
    gap = max(1, width // 8)
    values = figure.maps[np.isfinite(figure.maps)]
    top = float(np.quantile(values, 0.99)) if values.size else 1.0
    drawing, own = _drawing(min(6.0, 1.0 + 4.0 * rows * (height + gap) / columns / (width + gap)))
    axes = own[0, 0]
    tiles = _tiled(figure.maps, gap)
    image = axes.imshow(tiles, cmap=_scale("maps", MAPS), vmin=0, vmax=top, interpolation="none")
    if (figure.mask >= 0.5).any() and min(figure.mask.shape) > 1:
        outline = _tiled(np.broadcast_to(figure.mask, figure.maps.shape), gap)
        axes.contour(np.ma.masked_invalid(outline), levels=[0.5], colors="white", linewidths=1)
    axes.set_xticks((width + gap) * np.arange(columns) + width / 2 - 0.5, figure.steps.names)
    names = [
        f"{name}, {side}" if side else name
        for name, side in zip(figure.blocks.names, figure.sides, strict=True)
    ]
    axes.set_yticks((height + gap) * np.arange(rows) + height / 2 - 0.5, names)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(figure.steps.label)
    axes.set_title("attention over its mean", loc="left")
    bar = drawing.colorbar(image, ax=axes, aspect=40, pad=0.02)
    bar.outline.set_visible(False)
    yield "", drawing


def _tiled(maps: np.ndarray, gap: int) -> np.ndarray:
    """(rows, columns, h, w) as one image, NaN between the tiles."""
    rows, columns, height, width = maps.shape
    tiles = np.full((rows, height + gap, columns, width + gap), np.nan)
    tiles[:, :height, :, :width] = maps.transpose(0, 2, 1, 3)
    return tiles.reshape(rows * (height + gap), columns * (width + gap))[:-gap, :-gap]


def _plan(figure: PlanPicture) -> Iterator[Part]:
    """One shape a state; steps that the solver jumps are hatched."""
    from matplotlib.patches import Patch

    for branch, rows in figure.branches:
        drawing, own = _drawing(min(1.4 + max(len(rows) * 0.08, 1.7), 5.0))
        axes = own[0, 0]
        used = [state for state in STATES if any(state in row for row in rows)]
        looks: dict[str, dict[str, Any]]
        looks = {s: {"facecolor": PLAN[s], "hatch": "////" if s == ">" else None} for s in used}
        for state in used:
            axes.add_patch(_cells(rows, state, looks[state]))
        axes.set(xlim=(-0.5, len(rows[0]) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        _grid_axes(axes, figure.steps, figure.blocks)
        if len(figure.branches) > 1:
            axes.set_title(f"branch {branch}", loc="left")
        patches = [Patch(label=STATES[s], edgecolor=LINE, **looks[s]) for s in used]
        drawing.legend(handles=patches, loc="outside lower center", ncols=2, columnspacing=4)
        yield (branch if len(figure.branches) > 1 else ""), drawing


def _cells(rows: tuple[str, ...], state: str, look: dict[str, Any]) -> Any:
    """All cells with this state as one shape, equal neighbours above each other merged."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    boxes = []
    for top, bottom in runs_of(rows, lambda a, b: a == b):
        marks = rows[top]
        for left, right in runs_of(marks, lambda a, b: a == b):
            if marks[left] == state:
                corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
                boxes.append(Path(np.array(corners) - 0.5, closed=True))
    return PathPatch(Path.make_compound_path(*boxes), linewidth=0, **look)


def runs_of(items: Any, alike: Callable[[Any, Any], bool]) -> Iterator[tuple[int, int]]:
    """First and one past the last place of every run of neighbours that are alike."""
    first = 0
    for n in range(1, len(items) + 1):
        if n == len(items) or not alike(items[n - 1], items[n]):
            yield first, n
            first = n


def _scatter(figure: Scatter) -> Iterator[Part]:
    """Lines with marks, or clouds of small dots around a large one."""
    drawing, own = _drawing(3.9)
    axes = own[0, 0]
    for n, points in enumerate(figure.sets):
        colour, mark = SERIES[n % len(SERIES)], MARKS[n % len(MARKS)]
        name = "".join(c if c.isprintable() else "?" for c in points.name)
        name = f" {name}" if name.startswith("_") else name  # else no entry in the legend
        if points.middle is None:
            dash = DASHES[n % len(DASHES)]
            axes.plot(points.x, points.y, dash, color=colour, marker=mark, markersize=4, label=name)
            continue
        axes.plot(points.x, points.y, mark, color=colour, markersize=4, alpha=0.45)
        axes.plot(*points.middle, mark, color=colour, markersize=10, label=name)
    if figure.ring is not None:
        look = {"markersize": 12, "fillstyle": "none", "color": TEXT, "label": "chosen"}
        axes.plot(*figure.ring, "o", **look)
    if figure.line_at is not None:
        axes.axvline(figure.line_at, color=MUTED, linestyle=":", label="full run")
    if figure.log_y:
        axes.set_yscale("log")
        _log_ticks(axes)
    axes.set_xlabel(figure.x_label)
    axes.set_title(figure.y_label, loc="left")
    axes.grid(which="both", linewidth=0.6)
    axes.set_axisbelow(True)
    drawing.legend(loc="outside lower center", ncols=2, columnspacing=4)
    yield "", drawing


DRAW: dict[type, Callable[[Any], Iterator[Part]]] = {
    HeatMap: _heat,
    Curves: _curves,
    AttentionMaps: _maps,
    PlanPicture: _plan,
    Scatter: _scatter,
}

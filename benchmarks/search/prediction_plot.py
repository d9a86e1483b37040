"""A figure: measured against predicted errors of many plans of one tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search.prediction_errors import Pair, spearman

TITLES = {"wan": "Wan2.1 miniature", "hunyuan": "HunyuanVideo miniature"}
COLOURS = {
    "hold": "#7f7f7f",
    "linear": "#1f77b4",
    "weights": "#ff7f0e",
    "corrected": "#b3202c",
    "jump": "#2ca02c",
}
MARKERS = {"searched": "o", "exchanged": "^", "hand": "s", "uniform": "x"}


def draw(tree: str, pairs: Sequence[Pair], out: Path) -> list[Path]:
    """prediction_<tree>.png and .svg in `out`; a point is a plan, both errors 80th percentiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    out.mkdir(parents=True, exist_ok=True)
    figure, axis = pyplot.subplots(figsize=(6.6, 5.8))
    for pair in pairs:
        colour, marker = COLOURS[pair.kind.skip], MARKERS[pair.kind.kind]
        axis.scatter(pair.predicted, pair.measured, c=colour, marker=marker, s=36, alpha=0.85)
    _lines(axis, pairs)
    axis.set(xscale="log", yscale="log", ylabel="measured")
    axis.set_xlabel("predicted relative error of the final latent")
    axis.grid(True, which="major", color="#eeeeee")
    predicted, measured = _errors(pairs)
    correlation = f"rank correlation {spearman(predicted, measured):.2f}"
    title = f"{TITLES[tree]}: {len(pairs)} plans, {correlation}"
    axis.set_title(title, loc="left", fontsize=11)
    axis.legend(handles=[*_marks(pairs), *axis.get_lines()], fontsize=8, loc="upper left")
    figure.tight_layout()
    paths = [out / f"prediction_{tree}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return paths


def _errors(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p.predicted for p in pairs]), np.array([p.measured for p in pairs])


def _lines(axis: Any, pairs: Sequence[Pair]) -> None:
    """Where points would lie that do as predicted, and as the median plan does."""
    predicted, measured = _errors(pairs)
    ratio, ends = (
        float(np.median(measured / predicted)),
        np.array([predicted.min(), predicted.max()]),
    )
    axis.plot(ends, ends, color="#bbbbbb", lw=1, label="as predicted")
    axis.plot(ends, ends * ratio, color="#bbbbbb", lw=1, ls="--", label=f"{ratio:.2f} times")


def _marks(pairs: Sequence[Pair]) -> list[Any]:
    """What colours and shapes of points mean."""
    from matplotlib.lines import Line2D

    skips = [skip for skip in COLOURS if any(pair.kind.skip == skip for pair in pairs)]
    marks = [Line2D([], [], color=COLOURS[s], marker="o", ls="", label=s) for s in skips]
    shapes = MARKERS.items()
    return [*marks, *(Line2D([], [], color="#444", marker=m, ls="", label=k) for k, m in shapes)]

"""A figure: measured against predicted errors of many plans, one panel per tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prediction_errors import Pair, spearman

TITLES = {"wan": "Wan2.1 miniature", "hunyuan": "HunyuanVideo miniature"}
COLOURS = {
    "hold": "#7f7f7f",
    "linear": "#1f77b4",
    "weights": "#ff7f0e",
    "corrected": "#b3202c",
    "jump": "#2ca02c",
}
MARKERS = {"searched": "o", "exchanged": "^", "hand": "s", "uniform": "x"}


def draw(pairs: dict[str, Sequence[Pair]], out: Path) -> list[Path]:
    """prediction.png and .svg in `out`; a point is a plan, both errors the 80th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    out.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(1, len(pairs), figsize=(6.2 * len(pairs), 5.6), squeeze=False)
    for axis, (tree, found) in zip(axes[0], pairs.items(), strict=True):
        predicted = np.array([pair.predicted for pair in found])
        measured = np.array([pair.measured for pair in found])
        for pair in found:
            colour, marker = COLOURS[pair.kind.skip], MARKERS[pair.kind.kind]
            axis.scatter(pair.predicted, pair.measured, c=colour, marker=marker, s=34, alpha=0.85)
        ends = np.array([min(predicted.min(), measured.min()), max(predicted.max(), 1e-9)])
        ratio = float(np.median(measured / predicted))
        axis.plot(ends, ends, color="#bbbbbb", lw=1, label="as predicted")
        axis.plot(ends, ends * ratio, color="#bbbbbb", lw=1, ls="--", label=f"{ratio:.2f} times")
        axis.set(xscale="log", yscale="log", xlabel="predicted relative error of the final latent")
        axis.set_ylabel("measured")
        axis.set_title(
            f"{TITLES[tree]}: {len(found)} plans, rank correlation "
            f"{spearman(predicted, measured):.2f}",
            loc="left",
            fontsize=11,
        )
        axis.grid(True, which="major", color="#eeeeee")
        skips = [skip for skip in COLOURS if any(pair.kind.skip == skip for pair in found)]
        marks = [Line2D([], [], color=COLOURS[s], marker="o", ls="", label=s) for s in skips]
        marks += [
            Line2D([], [], color="#444444", marker=m, ls="", label=k) for k, m in MARKERS.items()
        ]
        lines = axis.get_lines()[:2]
        axis.legend(handles=[*marks, *lines], fontsize=8, loc="upper left")
    figure.tight_layout()
    paths = [out / f"prediction.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return paths

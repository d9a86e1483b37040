"""The figures as the JSON that the page's scripts draw from."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from profiling_core.profile import dumps_json
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
)
from profiling_core.report.palette import HEAT, MAPS
from profiling_core.report.videos import Video

DIGITS = 5  # significant ones; the page shows four
LEVELS = 254  # of an attention map, from its smallest to its largest value
MISSING = 255  # the level of what is not finite


def page_json(figures: Sequence[Figure], videos: Sequence[Video]) -> str:
    """JSON for a script element: "<" is escaped, so that no text can close the element."""
    document = {
        "missing": MISSING,
        "levels": LEVELS,
        "palettes": {"heat": HEAT, "maps": MAPS},
        "states": STATES,
        "figures": [_drawn(figure) for figure in figures if not isinstance(figure, Absent)],
        "videos": [
            {"name": v.name, "mime": v.mime, "frames": v.frames, "fps": v.fps} for v in videos
        ],
    }
    return dumps_json(document).replace("<", "\\u003c")


def _drawn(figure: Figure) -> dict[str, Any]:
    return {HeatMap: _heat, Curves: _curves, AttentionMaps: _maps, PlanPicture: _plan}[
        type(figure)
    ](figure)


def _heat(figure: HeatMap) -> dict[str, Any]:
    return {
        "id": figure.id,
        "kind": "heat",
        "label": figure.title,
        "x": _axis(figure.x),
        "y": _axis(figure.y),
        "layers": [_layer(layer) for layer in figure.layers],
    }


def _layer(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "values": rounded(layer.values),
        "log": layer.logarithmic,
        "sides": layer.sides or None,
        "means": rounded(np.array(layer.means)) if layer.means else None,
        "tau": layer.tau,
        "note": layer.note,
        "missing": layer.missing,
        "hatched": layer.missing == NOT_MEASURED,
    }


def _curves(figure: Curves) -> dict[str, Any]:
    views = [
        {"name": view.name, "panels": [_panel(panel) for panel in view.panels]}
        for view in figure.views
    ]
    return {"id": figure.id, "kind": "curves", "label": figure.title, "views": views}


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "label": panel.label,
        "x": _axis(panel.x),
        "bars": panel.bars,
        "zero": panel.from_zero,
        "points": panel.points,
        "series": [
            {
                "name": s.name,
                "middle": rounded(s.middle),
                "low": rounded(s.low),
                "high": rounded(s.high),
            }
            for s in panel.series
        ],
    }


def _maps(figure: AttentionMaps) -> dict[str, Any]:
    low, high, levels = quantised(figure.maps)
    return {
        "id": figure.id,
        "kind": "maps",
        "label": figure.title,
        "steps": _axis(figure.steps),
        "blocks": _axis(figure.blocks),
        "sides": figure.sides,
        "runs": figure.runs,
        "size": figure.maps.shape[3:],
        "low": rounded(low),
        "high": rounded(high),
        "levels": _encoded(levels),
        "masks": _encoded(_bytes(np.clip(np.nan_to_num(figure.masks), 0, 1) * LEVELS)),
    }


def quantised(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smallest and largest of every map, and its values as levels between."""
    finite = np.isfinite(maps)
    axes = (3, 4, 5)
    low = np.where(finite, maps, np.inf).min(axis=axes)
    high = np.where(finite, maps, -np.inf).max(axis=axes)
    empty = ~finite.any(axis=axes)
    low, high = np.where(empty, np.nan, low), np.where(empty, np.nan, high)
    floor = np.where(empty, 0, low)[..., None, None, None]
    span = np.where(empty, 1, high - low)[..., None, None, None]
    scaled = (np.where(finite, maps, floor) - floor) / np.where(span > 0, span, 1)
    return low, high, _bytes(np.where(finite, scaled * LEVELS, MISSING))


def _plan(figure: PlanPicture) -> dict[str, Any]:
    return {
        "id": figure.id,
        "kind": "plan",
        "label": figure.title,
        "x": _axis(figure.steps),
        "y": _axis(figure.blocks),
        "branches": [{"name": name, "rows": rows} for name, rows in figure.branches],
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "label": axis.label,
        "word": axis.word,
        "names": axis.names,
        "full": [axis.full_name(n) for n in range(len(axis.names))],
        "groups": axis.groups,
        "notes": axis.notes,
        "at": axis.at,
    }


def rounded(values: np.ndarray) -> np.ndarray:
    """To `DIGITS` significant digits, which keeps the page small; NaN stays."""
    flat = [float(f"{value:.{DIGITS}g}") for value in np.ravel(values)]
    return np.reshape(flat, np.shape(values))


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.round(values).astype(np.uint8)


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()

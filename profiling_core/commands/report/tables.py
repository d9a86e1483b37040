"""The numbers of a figure as tables, for screen readers and for copying."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np

from profiling_core.commands.report.figures import (
    STATES,
    Absent,
    AttentionMaps,
    Curves,
    Figure,
    HeatMap,
    Panel,
    PlanPicture,
)
from profiling_core.commands.report.markup import Markup, table


def tables_of(figure: Figure) -> list[Markup]:
    """Every layer, panel or branch of the figure as a table of its own; none if it is absent."""
    if isinstance(figure, Absent):
        return []
    return TABLES[type(figure)](figure)


def number(value: float) -> str:
    """Four significant digits; a dash for what was not measured."""
    return f"{value:.4g}" if np.isfinite(value) else "–"


def _heat_tables(figure: HeatMap) -> list[Markup]:
    head = [figure.y.label, *(f"{figure.x.word} {name}" for name in figure.x.names)]
    found = []
    for layer in figure.layers:
        extra = [*(["mean"] if layer.means else []), *(["side"] if layer.sides else [])]
        rows = []
        for n, values in enumerate(layer.values):
            row = [figure.y.full_name(n), *map(number, values)]
            row += [number(layer.means[n])] if layer.means else []
            row += [layer.sides[n] or "–"] if layer.sides else []
            rows.append(row)
        found.append(table(f"{figure.title}: {layer.name}", [*head, *extra], rows))
    return found


def _curve_tables(figure: Curves) -> list[Markup]:
    return [_panel_table(figure.title, panel) for view in figure.views for panel in view.panels]


def _panel_table(title: str, panel: Panel) -> Markup:
    ranged = any(not np.array_equal(s.low, s.high, equal_nan=True) for s in panel.series)
    head = [panel.x.label]
    columns: list[np.ndarray] = []
    for curve in panel.series:
        head += [f"{curve.name}, mean", *(["smallest", "largest"] if ranged else [])]
        columns += [curve.middle, *([curve.low, curve.high] if ranged else [])]
    names = [panel.x.full_name(n) for n in range(len(panel.x.names))]
    rows = [[name, *map(number, values)] for name, *values in zip(names, *columns, strict=True)]
    return table(f"{title}: {panel.label}", head, rows)


def _map_tables(figure: AttentionMaps) -> list[Markup]:
    head = ["block", "side", *(f"{figure.steps.word} {name}" for name in figure.steps.names)]
    rows = [
        [name, side or "–", *map(number, values)]
        for name, side, values in zip(
            figure.blocks.names, figure.sides, figure.foreground, strict=True
        )
    ]
    what = "attention of the foreground tokens over the mean of all tokens, mean over runs"
    return [table(f"{figure.title}: {what}", head, rows)]


def _plan_tables(figure: PlanPicture) -> list[Markup]:
    return [
        table(
            f"{figure.title}, branch {branch}",
            ["block", *STATES.values()],
            [
                [figure.blocks.full_name(n), *(_steps_of(states, state) for state in STATES)]
                for n, states in enumerate(rows)
            ],
        )
        for branch, rows in figure.branches
    ]


def _steps_of(states: str, state: str) -> str:
    """The steps with this state as runs: "0-5, 12"."""
    found = []
    for mark, run in groupby(enumerate(states), key=lambda step: step[1]):
        steps = [step for step, _ in run]
        if mark == state:
            found.append(f"{steps[0]}-{steps[-1]}" if len(steps) > 1 else f"{steps[0]}")
    return ", ".join(found) or "–"


TABLES: dict[type, Callable[[Any], list[Markup]]] = {
    HeatMap: _heat_tables,
    Curves: _curve_tables,
    AttentionMaps: _map_tables,
    PlanPicture: _plan_tables,
}

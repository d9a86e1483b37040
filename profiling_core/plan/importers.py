"""Other caching schemes as plans: their decisions do not depend on the prompt, so they are data.

Each function gives the sites of a plan; `CachePlan.build(..., sites=...)` makes the file. What was
published of the full-size models lies in public_lists.json, with its sources and licences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from profiling_core.errors import PlanError
from profiling_core.plan import schedule


@cache
def public_document() -> dict[str, Any]:
    """public_lists.json: its sources, the grids of its models, then the lists of every source."""
    file = resources.files("profiling_core.plan") / "public_lists.json"
    return json.loads(file.read_text(encoding="utf-8"))


def from_steps(
    steps: int, computed: Iterable[int], branches: Sequence[str] = ("cond",), skip: str = "hold"
) -> list[dict]:
    """A list of compute steps for the whole prediction."""
    listed = schedule.explicit(steps, computed)
    return [_prediction(dict.fromkeys(branches, listed), skip)]


def from_mask(
    mask: Sequence[int], branches: Sequence[str] = ("cond",), skip: str = "hold"
) -> list[dict]:
    """A static step mask, 1 compute and 0 reuse (cache-dit's steps_computation_mask)."""
    for step, value in enumerate(mask):
        if value not in (0, 1):
            raise PlanError(f"mask[{step}] is {value!r}, expected 0 or 1")
    computed = [step for step, value in enumerate(mask) if value]
    return from_steps(len(mask), computed, branches, skip)


def from_shrinking(
    block_list: str,
    intervals: Sequence[tuple[int, int]],
    *,
    steps: int = 50,
    warmup: int = 6,
    longest: int = 12,
    shortest: int = 2,
    shape: str = "stepwise",
    reading: str = "walk",
    branches: Sequence[str] = ("cond", "uncond"),
    skip: str = "hold",
) -> list[dict]:
    """The paper's scheme: (Tmax, Tmin, s0) with shape 'stepwise', 'inverse' or 'average'."""
    shapes = {
        "stepwise": schedule.stepwise,
        "inverse": schedule.inverse,
        "average": schedule.average,
    }
    if shape not in shapes:
        raise PlanError(f"shape {shape!r} is unknown: take {', '.join(shapes)}")
    computed = shapes[shape](steps, warmup, longest, shortest, reading)
    return [
        {
            "kind": "intervals",
            "block_list": block_list,
            "intervals": [list(run) for run in intervals],
            "compute_steps": dict.fromkeys(branches, computed),
            "skip": skip,
        }
    ]


def from_magnitude_ratios(
    ratios: Mapping[str, Sequence[float]],
    *,
    threshold: float,
    most_skips: int,
    retention: float = 0.2,
    skip: str = "hold",
) -> list[dict]:
    """A MagCache schedule: per branch, the mean norm ratios of consecutive residuals.

    Since the last compute step the ratios are multiplied up and |1 - product| is summed; a step is
    skipped while the sum stays below `threshold` and at most `most_skips` follow each other. The
    first `retention` of the steps are computed.
    """
    compute_steps = {
        branch: _magnitude_steps(list(values), threshold, most_skips, retention)
        for branch, values in ratios.items()
    }
    return [_prediction(compute_steps, skip)]


def _magnitude_steps(
    ratios: list[float], threshold: float, most_skips: int, retention: float
) -> list[int]:
    computed = []
    product, error, skipped = 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        product *= ratio
        error += abs(1 - product)
        reuse = step >= int(len(ratios) * retention) and step > 0
        if reuse and error < threshold and skipped < most_skips:
            skipped += 1
            continue
        computed.append(step)
        product, error, skipped = 1.0, 0.0, 0
    return computed


def _prediction(compute_steps: Mapping[str, Sequence[int]], skip: str) -> dict:
    return {"kind": "prediction", "compute_steps": compute_steps, "skip": skip}

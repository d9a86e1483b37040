"""Compute steps that only the benchmarks choose, and plans of them."""

from __future__ import annotations

from typing import Any

from profiling_core.plan import CachePlan
from profiling_core.plan.schedule import explicit, round_half_up


def protected(steps: int, first: int, last: int, between: int) -> tuple[int, ...]:
    """The first and last steps, and `between` more spread evenly over the gap they leave.

    The evenly spread ones divide the gap into between + 1 parts, rounded to whole steps.
    """
    gap_start, gap_end = first - 1, steps - last
    if min(first, last, between) < 0 or first < 1 or between > gap_end - gap_start - 1:
        raise ValueError(
            f"cannot place {first} first, {between} middle and {last} last compute steps "
            f"in {steps} steps"
        )
    stride = (gap_end - gap_start) / (between + 1)
    middle = (round_half_up(gap_start + stride * (i + 1)) for i in range(between))
    return explicit(steps, (*range(first), *middle, *range(gap_end, steps)))


def protected_ends(steps: int, count: int) -> tuple[int, ...]:
    """Two fifths of the compute steps at the start, a sixth at the end, the others between."""
    first, last = round(0.4 * count), round(count / 6)
    return protected(steps, first, last, count - first - last)


def even(steps: int, count: int) -> list[int]:
    """`count` of the steps, evenly spread from the first."""
    return [number * steps // count for number in range(count)]


def plan_on(like: CachePlan, name: str, sites: list[dict[str, Any]], source: str) -> CachePlan:
    """A plan of the same model and noise levels, with other sites."""
    names = ("model", "steps", "sigmas", "solver", "shift")
    fields = {field: getattr(like, field) for field in names}
    provenance = {"made_by": "benchmarks", "source": source}
    return CachePlan.build(name=name, sites=sites, provenance=provenance, **fields)

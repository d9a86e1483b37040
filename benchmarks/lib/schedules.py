"""Compute steps that only the benchmarks choose."""

from __future__ import annotations

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

"""Compute steps: a warm-up, then intervals that shrink from Tmax to Tmin. Pure functions, no torch.

A schedule is a sorted tuple of step numbers in 0..steps-1: the steps at which a site is computed.
Every other step reuses what the last compute step stored.

The paper's schedule (arXiv 2504.03140). With s0 warm-up steps of S in all, equation 15 is read
here as the linear law

    T_s = Tmax - (Tmax - Tmin) (s - s0) / (S - s0)

and by equation 12 a step is computed when it lies a whole interval after the last one. Two
readings of that pair exist:

- "walk" (the default here): from a compute step s the next one is s + round(T_s);
- "modulo": a step s >= s0 is computed when s mod round(T_s) = 0.

For S = 50, s0 = 6, Tmax = 12, Tmin = 2 the computed steps after the warm-up 0-5 are

    walk      6 18 27 34 40 44 47          gaps 12 9 7 6 4 3, shrinking without a break
    modulo    11 18 24 28 35 40 45 48      gaps 7 6 4 7 5 5 3, since T_s moves with s
    release   6 18 26 32 38 42 46 48       the list in the released code, gaps 12 8 6 6 4 4 2

The released list starts like the walk (6, 18) and then shrinks in even gaps; it follows from
neither reading. RELEASED_STEPS keeps it as it is.

Equation 10 writes the stored delta as a sum over steps; equations 13 and 14 then add the *last*
delta to the input, and the released code overwrites. Summing deltas of several steps would add
the same blocks several times, so everything here overwrites: one compute step, one anchor.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from math import floor

from profiling_core.errors import PlanError

RELEASED_STEPS = (6, 18, 26, 32, 38, 42, 46, 48)
BLOCKS = ("background", "foreground", "split", "alternate")  # rows of the paper's table 3


def round_half_up(value: float) -> int:
    """Nearest integer, halves upwards (Python's round sends halves to the even neighbour)."""
    return floor(value + 0.5)


def interval_length(step: int, steps: int, warmup: int, longest: float, shortest: float) -> float:
    """T_s of equation 15, in steps: `longest` at the end of the warm-up, `shortest` at the end."""
    return longest - (longest - shortest) * (step - warmup) / (steps - warmup)


def stepwise(
    steps: int = 50,
    warmup: int = 6,
    longest: int = 12,
    shortest: int = 2,
    reading: str = "walk",
) -> tuple[int, ...]:
    """Compute steps whose gaps shrink from `longest` to `shortest` (equation 15)."""
    _check(steps, warmup, longest, shortest)
    return _with_warmup(steps, warmup, longest, shortest, reading)


def inverse(
    steps: int = 50,
    warmup: int = 6,
    longest: int = 12,
    shortest: int = 2,
    reading: str = "walk",
) -> tuple[int, ...]:
    """The paper's ablation: gaps grow from `shortest` to `longest`."""
    _check(steps, warmup, longest, shortest)
    return _with_warmup(steps, warmup, shortest, longest, reading)


def average(
    steps: int = 50,
    warmup: int = 6,
    longest: int = 12,
    shortest: int = 2,
    reading: str = "walk",
) -> tuple[int, ...]:
    """The paper's ablation: one fixed gap, the mean of `longest` and `shortest`."""
    _check(steps, warmup, longest, shortest)
    mean = (longest + shortest) / 2
    return _with_warmup(steps, warmup, mean, mean, reading)


def uniform(steps: int, warmup: int, interval: int) -> tuple[int, ...]:
    """Warm-up, then every `interval`-th step from its end (what the release runs on Wan)."""
    _check(steps, warmup, interval, interval)
    return (*range(warmup), *range(warmup, steps, interval))


def explicit(steps: int, computed: Iterable[int]) -> tuple[int, ...]:
    """A list of compute steps as given, checked: integers, ascending, within 0..steps-1."""
    listed = tuple(computed)
    for step in listed:
        if isinstance(step, bool) or not isinstance(step, int):
            raise ValueError(f"compute step {step!r} is not an integer")
        if not 0 <= step < steps:
            raise ValueError(f"compute step {step} lies outside 0..{steps - 1}")
    for before, after in pairwise(listed):
        if after <= before:
            raise ValueError(
                f"compute steps must ascend, but {after} follows {before}: sort them, drop doubles"
            )
    return listed


def segments(steps: int, computed: Sequence[int]) -> list[range]:
    """The reuse steps of every segment with any; PlanError where there is none.

    A segment runs from one compute step to the next.
    """
    if not computed or computed[0] != 0:
        raise PlanError("compute steps must begin with step 0: a reuse step before has no anchor")
    found = [range(a + 1, b) for a, b in pairwise((*computed, steps)) if b - a > 1]
    if not found:
        raise PlanError(f"all {steps} steps are computed, none is left to reuse")
    return found


def reused_by_side(blocks: str, parts: list[range]) -> dict[str, list[range]]:
    """The segments that reuse the background blocks and those that reuse the foreground ones.

    By `blocks`, one of BLOCKS: background; foreground; split, the foreground early and the
    background late, parted where the reuse steps are halved best; alternate, by turns and the
    foreground first.
    """
    if blocks in ("background", "foreground"):
        return {blocks: parts}
    if len(parts) < 2:
        raise PlanError(f"blocks {blocks!r} needs two segments with reuse steps, found 1")
    if blocks == "alternate":
        return {"foreground": parts[::2], "background": parts[1::2]}
    done = list(accumulate(len(part) for part in parts))
    first = min(range(1, len(parts)), key=lambda n: abs(2 * done[n - 1] - done[-1]))
    return {"foreground": parts[:first], "background": parts[first:]}


def _with_warmup(
    steps: int, warmup: int, start: float, end: float, reading: str
) -> tuple[int, ...]:
    if reading == "walk":
        return (*range(warmup), *_walk(steps, warmup, start, end))
    if reading == "modulo":
        return (*range(warmup), *_modulo(steps, warmup, start, end))
    raise ValueError(f"reading {reading!r} of equation 12 is unknown: take 'walk' or 'modulo'")


def _walk(steps: int, warmup: int, start: float, end: float) -> list[int]:
    computed = []
    step = warmup
    while step < steps:
        computed.append(step)
        step += max(1, round_half_up(interval_length(step, steps, warmup, start, end)))
    return computed


def _modulo(steps: int, warmup: int, start: float, end: float) -> list[int]:
    def length(step: int) -> int:
        return max(1, round_half_up(interval_length(step, steps, warmup, start, end)))

    return [step for step in range(warmup, steps) if step % length(step) == 0]


def _check(steps: int, warmup: int, longest: int, shortest: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    if not 1 <= warmup < steps:
        raise ValueError(
            f"warm-up of {warmup} steps, expected 1..{steps - 1}: without one there is no anchor"
        )
    if not 1 <= shortest <= longest:
        raise ValueError(f"intervals Tmax {longest}, Tmin {shortest}: expected Tmax >= Tmin >= 1")

"""What a run of a tree took, and what its progress bar says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from profiling_core.delta_cache import DeltaCache
from profiling_core.drift import largest, mean_share


@dataclass(frozen=True)
class RunStats:
    """What the last clip took; seconds are wall clock between device synchronisations."""

    solver: str
    steps: int  # of the grid of noise levels
    solver_steps: int  # of these the solver visited; fewer when a plan jumps
    model_calls: int  # that ran the model, over all branches
    reused_calls: int  # answered without running it
    block_runs: int
    block_runs_full: int  # of the same clip without a plan
    reused_intervals: int
    cache_peak_bytes: int
    denoise_seconds: float
    plan: str | None = None
    extra_step: int | None = None  # computed in addition to the plan's: its guard wanted it
    deviation: float | None = None  # the guard's largest: old forecast against new prediction
    deviation_step: int | None = None
    deviation_share: float | None = None  # of the threshold, on geometric average
    seed: int | None = None
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


def progress_marks(
    cache: DeltaCache | None, visit: Sequence[int], steps: int
) -> Iterator[tuple[int, str]]:
    """After every visited step: how many steps of the grid are done, and the reused share.

    A step counts as reused when any block of it is; so do the steps that the solver jumps. `visit`
    may grow behind the present step: a guard lets the solver visit one more.
    """
    computed = 0
    for number, step in enumerate(visit):
        done = visit[number + 1] if number + 1 < len(visit) else steps
        if cache is None:
            yield done, ""
            continue
        computed += cache.is_compute(step)
        yield done, f"reused {1 - computed / done:.0%}"


def guard_facts(cache: DeltaCache | None) -> dict[str, Any]:
    """The fields of RunStats that a plan's guard fills, once the run is over."""
    if cache is None:
        return {}
    worst = largest(cache.report.deviations)
    return {
        "extra_step": cache.report.extra_step,
        "deviation": worst.value if worst else None,
        "deviation_step": worst.step if worst else None,
        "deviation_share": mean_share(cache.report.deviations),
    }

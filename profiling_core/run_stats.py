"""What a run of a tree took, and what its progress bar says."""

from dataclasses import dataclass
from itertools import accumulate

from profiling_core.delta_cache import DeltaCache


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
    seed: int | None = None
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0


def progress_marks(
    cache: DeltaCache | None, visit: tuple[int, ...], steps: int
) -> list[tuple[int, str]]:
    """Per visited step: how many steps of the grid are done after it, and the reused share.

    A step counts as reused when any block of it is; so do the steps that the solver jumps.
    """
    ends = (*visit[1:], steps)
    if cache is None:
        return [(done, "") for done in ends]
    computed = accumulate(int(cache.is_compute(step)) for step in visit)
    return [
        (done, f"reused {1 - count / done:.0%}") for done, count in zip(ends, computed, strict=True)
    ]

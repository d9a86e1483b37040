"""What a run of a tree took, and what its progress bar says."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from profiling_core.engine.delta_cache import DeltaCache


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
    cache: DeltaCache | None, visit: Sequence[int], steps: int
) -> Iterator[tuple[int, str]]:
    """After every visited step: how many steps of the grid are done, and the reused share.

    A step counts as reused when any block of it is; so do the steps that the solver jumps.
    """
    computed = 0
    for number, step in enumerate(visit):
        done = visit[number + 1] if number + 1 < len(visit) else steps
        if cache is None:
            yield done, ""
            continue
        computed += cache.is_compute(step)
        yield done, f"reused {1 - computed / done:.0%}"

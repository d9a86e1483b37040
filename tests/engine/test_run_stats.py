"""What a run counts, with a plan and without, and what its progress bar shows."""

from typing import Any

import pytest
import torch

from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.engine.full_run import FullRun
from profiling_core.engine.run_stats import Run, shown_steps, timed, timed_call
from toys import both, intervals, prediction, toy_plan


class Bar:
    """Notes what a progress bar would show."""

    def __init__(self) -> None:
        self.n, self.note, self.shown = 0, "", []

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        self.note = s

    def update(self, n: int) -> None:
        self.n += n
        self.shown.append((self.n, self.note))


def shown(run: Run) -> list[tuple[int, str]]:
    bar = Bar()
    assert tuple(shown_steps(run, bar)) == run.solver_steps
    return bar.shown


def test_progress_shows_the_share_of_reuse_steps() -> None:
    jumps = toy_plan([prediction(both(0, 1, 3), "jump")], steps=6)
    assert shown(DeltaCache(jumps)) == [(1, "reused 0%"), (3, "reused 33%"), (6, "reused 50%")]
    blocks = toy_plan([intervals(both(0, 1, 3), [[0, 1]])], steps=6)
    assert shown(DeltaCache(blocks))[-1] == (6, "reused 50%")
    assert shown(FullRun(2, blocks=3)) == [(1, ""), (2, "")]


def test_a_full_run_counts_every_call_and_starts_anew() -> None:
    run, model = FullRun(2, blocks=3), torch.nn.Identity()
    for _ in range(2):
        with run.attached(model):
            for step in run.solver_steps:
                for branch in ("cond", "uncond"):
                    run.begin(step, branch)
        assert (run.stats.model_calls, run.stats.block_runs, run.stats.block_runs_full) == (
            4,
            12,
            12,
        )
        assert (run.stats.steps, run.stats.solver_steps, run.stats.plan) == (2, 2, None)
        assert run.stats.lines() == []
    assert vars(model).keys() == vars(torch.nn.Identity()).keys()


def test_seconds_of_a_block_that_fails_are_kept() -> None:
    with pytest.raises(KeyError), timed(torch.device("cpu")) as taken:
        raise KeyError
    assert taken.seconds > 0


def test_a_gpus_calls_are_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, end: Any) -> float:
            return 2500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    taken = timed_call(lambda: order.append("call") or "output", torch.device("cuda"))
    assert taken == ("output", 2.5)
    assert order == ["wait", "record", "call", "record", "wait"]

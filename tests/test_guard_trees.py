"""The drift guard in both trees' loops: an extra step, also where the solver jumps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import hunyuan_runs
import test_wan_pipeline as wan_runs
from hyvideo.pipeline import HunyuanVideo
from profiling_core.guard import with_compute_step
from profiling_core.plan import CachePlan
from wan.configs import CONFIGS
from wan.text2video import WanT2V

official_types = hunyuan_runs.official_types  # fixtures
hunyuan = hunyuan_runs.pipeline
COMPUTED = (0, 2, 4)  # compared: 2, 4; gaps behind them: 3, 5
NEVER, ALWAYS = 1e6, 1e-9


@pytest.fixture(scope="module")
def wan(checkpoint: Path) -> WanT2V:
    return WanT2V(CONFIGS["t2v-mini"], checkpoint, "cpu")


def check(run, plan: CachePlan, extra_step: int) -> None:
    """run(plan) gives a clip and its statistics; the clip is that of the plan with the step."""
    plain, before = run(plan)
    quiet, told = run(plan.guarded(NEVER, extra=True))
    assert torch.equal(plain, quiet) and told.block_runs == before.block_runs
    assert told.extra_step is None and 0 < told.deviation < 1e6 and told.deviation_step in (2, 4)
    guarded, stats = run(plan.guarded(ALWAYS, extra=True))
    more = with_compute_step(plan, extra_step)
    expected, planned = run(more)
    assert torch.equal(guarded, expected) and not torch.equal(guarded, plain)
    assert stats.extra_step == extra_step and stats.deviation_share > 1
    assert stats.block_runs == planned.block_runs == more.expected.block_runs
    assert stats.model_calls == planned.model_calls
    assert stats.solver_steps == planned.solver_steps
    assert before.deviation is before.deviation_share is None


@pytest.mark.parametrize(
    ("solver", "skip", "extra_step"),
    [("unipc", "jump", 5), ("dpm++", "jump", 5), ("unipc", "linear", 3), ("dpm++", "hold", 3)],
)
def test_wan(wan: WanT2V, solver: str, skip: str, extra_step: int) -> None:
    def run(plan: CachePlan) -> tuple[Tensor, object]:
        clip = wan.generate(wan_runs.PROMPT, **wan_runs.CLIP, sample_solver=solver, plan=plan)
        return clip, wan.last_run

    plan = wan_runs.tiny_plan(wan_runs.prediction(*COMPUTED, skip=skip), solver=solver)
    check(run, plan, extra_step)


@pytest.mark.parametrize(
    ("skip", "extra_step"), [("jump", 5), ("hold", 3), ("linear", 3), ("corrected", 3)]
)
def test_hunyuan(hunyuan: HunyuanVideo, skip: str, extra_step: int) -> None:
    def run(plan: CachePlan) -> tuple[Tensor, object]:
        return hunyuan.generate(
            hunyuan_runs.PROMPT, **hunyuan_runs.CLIP, plan=plan
        ), hunyuan.last_run

    check(run, hunyuan_runs.tiny_plan(hunyuan_runs.prediction(*COMPUTED, skip=skip)), extra_step)

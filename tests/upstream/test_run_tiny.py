"""run_tiny.py sees what it is for: runs that skip, and runs that are not what their plan says."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from profiling_core.loops.diffusers_models import plan_for_solver
from profiling_core.plan.model_specs import HUNYUAN, WAN, known_model
from profiling_core.plan.regrid import SPEEDUPS, regrid
from run_tiny import as_planned
from tiny_upstreams import STEPS, TinyHunyuan, TinyRun, TinyWan


@pytest.mark.parametrize("preset", ["paper", "release", *SPEEDUPS])
@pytest.mark.parametrize("run", [TinyWan, TinyHunyuan])
def test_every_preset_skips_on_the_steps_of_run_tiny(run: type[TinyRun], preset: str) -> None:
    family = {"wan2.1": WAN, "hunyuan-video": HUNYUAN}[run.family]
    model = known_model(run.family, dict.fromkeys(run.lists, 6), 24)
    levels = [1.0 - step / STEPS for step in range(STEPS)]
    shifted = tuple(family.shift * s / (1 + (family.shift - 1) * s) for s in levels)
    plan = plan_for_solver(preset, model, family.solver)
    plan = regrid(plan, shifted, solver=family.solver, shift=family.shift)
    full = plan.steps * len(plan.branches) * 6 * len(run.lists)
    assert plan.expected.block_runs < 0.9 * full


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"result": 2.0}, False),
        ({"attended": 11}, False),
        ({"held": 1}, False),
    ],
    ids=str,
)
def test_run_tiny_compares_results_counts_and_anchors(change: dict[str, Any], good: bool) -> None:
    found = {"result": 1.0, "attended": 10, "held": 0} | change
    run = SimpleNamespace(plan_used="a plan", attended=0, vae=SimpleNamespace(alive=[]))

    def by_plan(*given: Any) -> torch.Tensor:
        run.attended, run.vae.alive = found["attended"], [found["held"]]
        return torch.tensor(found["result"])

    def naively(*given: Any) -> torch.Tensor:
        run.attended = 10
        return torch.tensor(1.0)

    run.by_plan, run.naively = by_plan, naively
    assert as_planned(run, [], "a plan") is good

"""The two ComfyUIs that every check runs on, and plans for their tiny models."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_stand_in import World

from integrations.comfyui.nodes import Plan, Report
from integrations.comfyui.run import levels_of
from profiling_core.loops.diffusers_models import fingerprint_of
from profiling_core.plan import CachePlan


@pytest.fixture(params=["stand-in", "checkout"], scope="session")
def world(request: pytest.FixtureRequest) -> Any:
    """The stand-in, and the checkout that COMFYUI names."""
    if request.param == "stand-in":
        return World()
    if "COMFYUI" not in os.environ:
        pytest.skip("COMFYUI names no checkout")
    import comfy_checkout

    return comfy_checkout.World()


@pytest.fixture(params=["wan", "hunyuan"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


class Planner:
    """Makes plans for a MODEL and puts them on it by the node."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "plan.json"

    def plan(
        self,
        model: Any,
        sigmas: torch.Tensor,
        computed: list[int],
        skip: str,
        solver: str = "euler",
        intervals: list[list[int]] | None = None,
    ) -> CachePlan:
        """The prediction is computed at some steps, or intervals of the last list of blocks."""
        fingerprint = fingerprint_of(model.model.diffusion_model)
        site: dict[str, Any] = {
            "kind": "prediction",
            "skip": skip,
            "compute_steps": {"cond": computed},
        }
        if intervals:
            site |= {"kind": "intervals", "intervals": intervals}
            site["block_list"] = [*fingerprint.block_lists][-1]
        levels = levels_of(sigmas)
        return CachePlan.build(
            name="made",
            model=fingerprint,
            steps=len(levels),
            sigmas=levels,
            solver=solver,
            shift=5.0,
            sites=[site],
            provenance={"made_by": "a test", "source": "steps by hand"},
        )

    def put(self, plan: CachePlan, model: Any, **inputs: Any) -> Any:
        plan.save(self.file)
        return Plan().apply(model, plan_file=str(self.file), **inputs)[0]

    def __call__(self, model: Any, *fields: Any, **named: Any) -> Any:
        return self.put(self.plan(model, *fields, **named), model)


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(tmp_path)


def report(model: Any) -> str:
    return Report().read(model, None)["result"][0]


@pytest.fixture
def said() -> Any:
    """The report of a MODEL's last run."""
    return report

"""Both trees' miniatures as the benchmarks run them: noise drawn on the CPU, no progress bars."""

from __future__ import annotations

from typing import Any

from profiling_core.plan.model_specs import MODELS
from profiling_core.profile.profile import Settings
from profiling_core.recording.recorder import Recorder
from profiling_core.trees.registry import tree_class
from profiling_core.trees.tree_model import ModelRequest, Sampling, TreeModel

Tree = TreeModel
Inputs = tuple[Any, ...]  # what a prompt and a seed become
EXAMPLES = {
    "wan": "red circle moving right over blue stripes",
    "hunyuan": "blue star moving left over red checks",
}


def load(name: str, *, fp32: bool = False, steps: int | None = None) -> Tree:
    """A tree on its miniature."""
    kind = tree_class(name)
    tree = kind(ModelRequest(model=kind.miniature, steps=steps), EXAMPLES[name])
    tree.noise_device, tree.progress = "cpu", False
    tree.load(fp32=fp32)
    return tree


def recorder_of(
    tree: Tree, settings: Settings | None = None, run: Sampling | None = None
) -> Recorder:
    """A recorder of a run, by default of one with the model's own settings."""
    run, planned = run or tree.sampling, MODELS[tree.plan_model]
    return Recorder(
        settings=settings,
        model=planned.fingerprint,
        branches=planned.family.branches,
        steps=run.steps,
        sigmas=tree.sigmas(run),
        solver=run.solver,
        shift=run.shift,
    )

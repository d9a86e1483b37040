"""Validation: the best plans of a search, run on the profile's own prompts.

A predicted error leaves out what the model makes of a latent that is already off. A few real runs
do not: the full run of every recorded prompt and seed once, then every candidate, and the relative
error of its final latent. The candidates come from searches that trust the sensitivity more or less
and from every way to skip, so that they differ where the prediction is least sure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from profiling_core.plan import CachePlan, PlanError
from profiling_core.profile import Profile, ProfileError
from profiling_core.step_search import QUANTILE, scores

if TYPE_CHECKING:
    from profiling_core.compare.model import Asked, TreeModel

STRIDE = 8  # pixels of a latent's row or column, on both trees
FRAMES = 4  # frames of a latent's


@dataclass(frozen=True)
class Validated:
    """A plan and the relative errors of its final latents, (R,)."""

    plan: CachePlan
    errors: np.ndarray

    @property
    def score(self) -> float:
        """(7) of step_search on measured errors."""
        return float(scores(self.errors[None])[0])

    @property
    def error(self) -> float:
        return float(np.quantile(self.errors, QUANTILE))


def validate(
    profile: Profile, plans: list[CachePlan], model: TreeModel, tell: Callable[[str], None]
) -> list[Validated]:
    """Every plan on every recorded prompt and seed, the best first.

    model: loaded, and asked for what the profile recorded (`asked_for`). ProfileError for a run
    without a seed, or a clip of another size.
    """
    from profiling_core.metrics import latent_error

    errors = np.empty((len(plans), len(profile.runs)))
    for number, run in enumerate(profile.runs):
        if run.seed is None:
            raise ProfileError(
                f"run {number + 1} of the profile has no seed: it cannot be repeated"
            )
        inputs = model.inputs(run.prompt, run.seed)
        full = model.denoise(inputs).cpu()
        check_size(profile, tuple(full.shape[-4:]))
        for row, plan in enumerate(plans):
            errors[row, number] = latent_error(model.denoise(inputs, plan).cpu(), full)
        tell(f"run {number + 1} of {len(profile.runs)}: {run.prompt}")
    found = [Validated(plan, own) for plan, own in zip(plans, errors, strict=True)]
    return sorted(found, key=lambda one: one.score)


def asked_for(profile: Profile, ckpt_dir: str | None, dit_weight: str | None) -> tuple[str, Asked]:
    """The tree ("wan", "hunyuan") and what its command line is asked for: the profile's run."""
    from profiling_core.compare.model import Asked

    subject, guidance = profile.recorded, {run.guidance for run in profile.runs}
    if len(guidance) > 1:
        raise ProfileError(f"the profile's runs have several guidance scales: {sorted(guidance)}")
    family, name = subject.model.family, subject.model.name
    if family not in TREES:
        raise PlanError(f"--validate: {family!r} is no tree of this project: {', '.join(TREES)}")
    _, frames, rows, columns = subject.latent
    tree, solver = TREES[family], subject.solver if family == "wan2.1" else None
    return tree, Asked(
        model=_model(tree, name),
        ckpt_dir=ckpt_dir,
        dit_weight=dit_weight,
        size=f"{columns * STRIDE}*{rows * STRIDE}",
        frame_num=(frames - 1) * FRAMES + 1,
        steps=subject.steps,
        solver=solver,
        shift=subject.shift,
        guidance=guidance.pop(),
    )


TREES = {"wan2.1": "wan", "hunyuan-video": "hunyuan"}


def _model(tree: str, name: str) -> str:
    """The tree's word for the model of a fingerprint."""
    if tree == "wan":  # wan2.1-t2v-14B is t2v-14B
        return name.removeprefix("wan2.1-")
    return "HYVideo-mini" if re.search("mini$", name) else "HYVideo-T/2-cfgdistill"


def check_size(profile: Profile, latent: tuple[int, ...]) -> None:
    recorded = profile.recorded.latent
    if latent != recorded:
        raise ProfileError(
            f"the profile's latents are {recorded}, this model makes {latent}: name the checkpoint "
            "that was profiled"
        )

"""Validation: the best plans of a search, run on the profile's own prompts.

A predicted error leaves out what the model makes of a latent that is already off. A few real runs
do not: the full run of every recorded prompt and seed once, then every candidate, and the relative
error of its final latent. The candidates come from searches that trust the sensitivity more or less
and from every way to skip, so that they differ where the prediction is least sure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from profiling_core.errors import ProfileError
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.profile.profile import Profile
from profiling_core.refit.refit import Validated, check_size

if TYPE_CHECKING:
    from profiling_core.trees.tree_model import TreeModel


def validate(
    profile: Profile, plans: list[CachePlan], model: TreeModel, tell: Callable[[str], None]
) -> list[Validated]:
    """Every plan on every recorded prompt and seed, the best first.

    model: loaded, for clips and steps as the profile recorded. ProfileError for a run without a
    seed, or a clip of another size.
    """
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

"""The axes that several figures share."""

from __future__ import annotations

from collections.abc import Sequence

from profiling_core.plan import ModelFingerprint
from profiling_core.profile import Profile
from profiling_core.report.figures import Axis


def step_axis(profile: Profile, steps: Sequence[int], label: str = "denoising step") -> Axis:
    """These steps, each with its noise level."""
    sigmas = profile.recorded.sigmas
    return Axis(
        label,
        "step",
        tuple(map(str, steps)),
        notes=tuple(f"sigma {sigmas[step]:.4f}" for step in steps),
        at=tuple(map(float, steps)),
    )


def change_axis(profile: Profile) -> Axis:
    """Steps 1 to S - 1: what changed since the step before."""
    steps = range(1, profile.recorded.steps)
    return step_axis(profile, steps)


def block_axis(model: ModelFingerprint) -> Axis:
    """All blocks, list by list."""
    lists = model.block_lists
    names = tuple(str(block) for count in lists.values() for block in range(count))
    return Axis("block", "block", names, groups=tuple(lists.items()))

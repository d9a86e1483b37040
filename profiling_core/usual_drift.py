"""What the runs of a profile deviate at a plan's compute steps: thresholds for its guard. No torch.

(1) of guard needs the new prediction and those that the old forecast is made of, all of one run and
branch: their products are in the profile's Gram matrix, so nothing has to be run. The predictions
are those of full runs; a cached run deviates by a few per cent more or less.
"""

from __future__ import annotations

import numpy as np

from profiling_core.guard import old_forecasts
from profiling_core.plan import CachePlan, PlanError
from profiling_core.profile import Profile


def usual_deviations(profile: Profile, plan: CachePlan) -> dict[int, np.ndarray]:
    """(1) of guard for every compared step, of all runs, the larger branch's: (R,).

    PlanError for a plan on another grid than the profile's.
    """
    subject = profile.recorded
    if plan.sigmas != subject.sigmas or plan.branches != subject.branches:
        raise PlanError(
            f"plan {plan.name!r} has {plan.steps} steps and branches {', '.join(plan.branches)}: "
            f"the profile's {subject.steps} noise levels or its branches are others"
        )
    found: dict[int, np.ndarray] = {}
    for number, branch in enumerate(subject.branches):
        for step, forecast in old_forecasts(plan, branch).items():
            rows = [number * plan.steps + s for s in (step, *(anchor for anchor, _ in forecast))]
            weights = np.array([-1.0, *(weight for _, weight in forecast)])
            products = profile.arrays["gram"][:, rows][:, :, rows]
            squares = np.einsum("a,rab,b->r", weights, products, weights)
            own = np.sqrt(np.maximum(squares, 0) / products[:, 0, 0])
            found[step] = np.maximum(found.get(step, 0.0), own)
    return dict(sorted(found.items()))


def thresholds(profile: Profile, plan: CachePlan, factor: float) -> dict[int, float]:
    """`factor` times the median run's deviation, for every compared step."""
    usual = usual_deviations(profile, plan)
    return {step: factor * float(np.median(values)) for step, values in usual.items()}


def worst_ratios(profile: Profile, plan: CachePlan) -> np.ndarray:
    """The largest deviation of every run over the median run's at the same step: (R,).

    Their 90th percentile is a factor that one clip in ten exceeds somewhere.
    """
    values = np.stack(list(usual_deviations(profile, plan).values()))
    return (values / np.median(values, axis=1, keepdims=True)).max(axis=0)

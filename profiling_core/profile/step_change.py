"""How much predictions change from step to step, and the intervals that follow.

The curve of relative L1 between consecutive predictions, mean over runs and branches (figure 4's U
of arXiv 2504.03140), gives those settings of equation 15 that the user leaves open. The curve's
level is its median over the middle half of the steps:

s0    up to the last change before that half which exceeds twice the level; at least 1
Tmax  12 steps of 50, in proportion
Tmin  Tmax x level / mean of the last tenth of the changes, rounded, 1 to Tmax: the last interval
      is as much shorter as the predictions change faster at the end
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiling_core.errors import ProfileError
from profiling_core.plan.schedule import round_half_up
from profiling_core.profile.profile import Profile

TMAX, OF_STEPS = 12, 50  # the paper's longest interval, at its step count


@dataclass(frozen=True)
class Intervals:
    """Warm-up and intervals of equation 15, in steps, and which of them the L1 curve gave."""

    warmup: int
    tmax: int
    tmin: int
    derived: tuple[str, ...]

    @property
    def settings(self) -> dict[str, str | int]:
        steps = {"warmup": self.warmup, "tmax": self.tmax, "tmin": self.tmin}
        return {**steps, "from_l1_curve": ", ".join(self.derived) or "none"}


def shrinking_intervals(
    profile: Profile,
    tmax: int | None = None,
    tmin: int | None = None,
    warmup: int | None = None,
) -> Intervals:
    steps, curve = profile.recorded.steps, l1_curve(profile)
    given = {"warm-up": warmup, "Tmax": tmax, "Tmin": tmin}
    edge = curve.size // 4
    level = float(np.median(curve[edge : curve.size - edge]))
    if warmup is None:
        large = np.flatnonzero(curve[:edge] > 2 * level)
        warmup = int(large[-1]) + 1 if large.size else 1
    if tmax is None:
        tmax = max(1, round_half_up(TMAX * steps / OF_STEPS))
    if tmin is None:
        end = float(curve[-max(1, round_half_up(curve.size / 10)) :].mean())
        tmin = min(tmax, max(1, round_half_up(tmax * level / end))) if end > 0 else tmax
    derived = tuple(word for word, value in given.items() if value is None and word != "Tmax")
    return Intervals(warmup, tmax, tmin, derived)


def l1_curve(profile: Profile) -> np.ndarray:
    """Relative L1 of consecutive predictions, mean over runs and branches; (S-1,) float64."""
    changes = profile.recorded.steps - 1
    curve = profile.arrays["l1_relative"].reshape(-1, changes).mean(axis=0, dtype=np.float64)
    if not np.isfinite(curve).all():
        step = int(np.argmin(np.isfinite(curve)))
        raise ProfileError(f"l1_relative between steps {step} and {step + 1} is {curve[step]}")
    return curve

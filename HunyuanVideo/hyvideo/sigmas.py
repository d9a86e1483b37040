"""Noise levels of the official sampler; NumPy only."""

import math

import numpy as np

from profiling_core.errors import InputError

SOLVER = "euler"
MOST_STEPS = 1000  # timesteps the models were trained on


def sigma_grid(steps: int, shift: float, reverse: bool = True) -> np.ndarray:
    """The shifted noise levels of all steps and the last one's end, fp32 (steps + 1,).

    From 1 down to 0; without `reverse` upstream's default, from 0 up to 1, which samples noise.
    Every operation is rounded to fp32, as the official sampler's: the levels are bit-equal.
    """
    if steps < 1:
        raise InputError(f"infer-steps {steps} is too few: take at least 1, the default is 50")
    if steps > MOST_STEPS:
        raise InputError(f"infer-steps {steps} is too many: take at most {MOST_STEPS}")
    if not (shift > 0 and math.isfinite(shift)):
        raise InputError(f"flow-shift {shift} is not a positive number: the default is 7.0")
    one = np.float32(1)
    x = _falling_line(steps)
    with np.errstate(all="ignore"):
        levels = np.float32(shift) * x / (one + np.float32(shift - 1.0) * x)
    if not (np.isfinite(levels).all() and (np.diff(levels) < 0).all()):
        raise InputError(
            f"flow-shift {shift} leaves no distance between the noise levels of {steps} steps: "
            "the default is 7.0"
        )
    return levels if reverse else one - levels


def sigmas_fp32(steps: int, shift: float) -> tuple[float, ...]:
    """The falling levels as the solver holds them, one per step: the final 0 is left out."""
    return tuple(float(s) for s in sigma_grid(steps, shift)[:-1])


def _falling_line(steps: int) -> np.ndarray:
    """fp32 values from 1 to 0 as torch.linspace rounds them.

    Either half counts fp32 steps from its own end, in one fused multiply-add: exact, then rounded
    once.
    """
    step = float(np.float32(-1) / np.float32(steps))
    index = np.arange(steps + 1, dtype=np.float64)
    line = np.where(index < (steps + 1) // 2, 1.0 + step * index, -step * (steps - index))
    return line.astype(np.float32)

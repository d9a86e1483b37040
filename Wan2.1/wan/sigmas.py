"""Noise levels of the official samplers; NumPy only."""

import math

import numpy as np

from profiling_core.errors import InputError

# where a grid starts before the shift; the official UniPC holds 0.999 in fp32
FIRST_SIGMA = {"unipc": float(np.float32(0.999)), "dpm++": 1.0}
SOLVERS = tuple(FIRST_SIGMA)
MOST_STEPS = 1000  # timesteps the models were trained on


def sigma_grid(solver: str, steps: int, shift: float) -> np.ndarray:
    """The shifted noise levels of all steps, float64 (steps,), falling; the final 0 is left out."""
    if solver not in FIRST_SIGMA:
        raise InputError(f"sample_solver {solver!r} is not one of {', '.join(SOLVERS)}")
    if steps < 1:
        raise InputError(f"sample_steps {steps} is too few: take at least 1, the default is 50")
    if steps > MOST_STEPS:
        raise InputError(f"sample_steps {steps} is too many: take at most {MOST_STEPS}")
    if not (shift > 0 and math.isfinite(shift)):
        raise InputError(f"sample_shift {shift} is not a positive number: the default is 5.0")
    sigmas = np.linspace(FIRST_SIGMA[solver], 0.0, steps + 1)[:-1]
    with np.errstate(divide="ignore"):
        shifted = shift * sigmas / (1 + (shift - 1) * sigmas)
    levels = np.append(shifted, 0.0).astype(np.float32)
    # the solvers divide by the distances of the levels' logarithms
    if not (np.isfinite(levels[0]) and (np.diff(levels) < 0).all()):
        raise InputError(
            f"sample_shift {shift} leaves no distance between the noise levels of {steps} steps: "
            "the default is 5.0"
        )
    return shifted


def sigmas_fp32(solver: str, steps: int, shift: float) -> tuple[float, ...]:
    """The levels as the solvers hold them: rounded to fp32, one per step."""
    return tuple(float(s) for s in sigma_grid(solver, steps, shift).astype(np.float32))

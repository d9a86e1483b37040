"""The flow solvers of the trees as arithmetic on NumPy arrays: Euler, DPM++ 2M, UniPC.

On a given grid of noise levels each of them is linear in the start and in the predictions, so it
can be run on coordinates instead of latents: in microseconds, for all calibration prompts at once,
on any subset of the levels. Sampling uses the schedulers of diffusers, which these reproduce (tests
compare the two level by level).

Notation, for levels sigma with alpha = 1 - sigma and lambda = ln(alpha / sigma):

    m = x - sigma v                             the clean latent that a prediction v stands for
    h = lambda_n - lambda_j,  phi = e^-h - 1,  r = (lambda_i - lambda_j) / h

A step from level j to n, i being the level before j:

    (E)  x_n = x_j + (sigma_n - sigma_j) v_j                                          Euler
    (P1) x_n = (sigma_n / sigma_j) x_j - alpha_n phi m_j                              first order
    (P2) x_n = (P1) - alpha_n phi / (2 r) (m_i - m_j)                      DPM++ 2M, UniP-2 B2(h)
    (C1) x_n = (P1) - alpha_n phi / 2 (m_n - m_j)                                     UniC-1 B2(h)
    (C2) x_n = (P1) - alpha_n phi (rho_1 / r (m_i - m_j) + rho_2 (m_n - m_j))         UniC-2 B2(h)

DPM++ (arXiv 2211.01095, algorithm 2) takes (P1) at the first and the last step and (P2) between.
UniPC (arXiv 2302.04867, algorithm 1) does the same and, once m_n is known, corrects x_n before it
goes on: by (C1) where the step to it was of first order, else by (C2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from profiling_core.errors import PlanError
from profiling_core.plan.solvers import SOLVERS

Numbers = int | np.ndarray  # of levels
Factor = float | np.ndarray
Predict = Callable[[int, np.ndarray], np.ndarray]  # (number of the level, x) -> prediction


@dataclass(frozen=True)
class Levels:
    """The noise levels that a run visits, falling, and the 0 that it ends at."""

    sigmas: Sequence[float]
    sigma: np.ndarray = field(init=False)
    alpha: np.ndarray = field(init=False)
    log_snr: np.ndarray = field(init=False)  # lambda

    def __post_init__(self) -> None:
        sigma = np.append(np.asarray(self.sigmas, dtype=np.float64), 0.0)
        alpha = 1.0 - sigma
        with np.errstate(divide="ignore"):
            log_snr = np.log(alpha) - np.log(sigma)
        for name, value in (("sigma", sigma), ("alpha", alpha), ("log_snr", log_snr)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.sigma) - 1


def first_order(levels: Levels, j: int, n: Numbers) -> tuple[Factor, Factor]:
    """Factors of x_j and m_j in (P1); n may be many levels at once, here and below."""
    phi = np.expm1(levels.log_snr[j] - levels.log_snr[n])
    return levels.sigma[n] / levels.sigma[j], -levels.alpha[n] * phi


def second_order(levels: Levels, i: int, j: int, n: Numbers) -> tuple[Factor, Factor, Factor]:
    """Factors of x_j, m_j and m_i in (P2)."""
    keep, clean = first_order(levels, j, n)
    change = clean / (2 * _ratio(levels, i, j, n))
    return keep, clean - change, change


def corrector(levels: Levels, i: int, j: int, n: Numbers) -> tuple[Factor, Factor, Factor, Factor]:
    """Factors of x_j, m_j, m_i and m_n in (C2)."""
    keep, clean = first_order(levels, j, n)
    ratio = _ratio(levels, i, j, n)
    back, there = _weights(levels.log_snr[n] - levels.log_snr[j], ratio)
    back, there = clean * back / ratio, clean * there
    return keep, clean - back - there, back, there


def run(solver: str, levels: Levels, start: np.ndarray, predict: Predict) -> np.ndarray:
    """The latents before every step and the final one: (steps + 1, *start.shape).

    predict(k, x) is the prediction at level k, given the latent that the model would see there.
    """
    if solver not in SOLVERS:
        raise PlanError(f"solver {solver!r} is not known here: expected {', '.join(SOLVERS)}")
    return (_run_euler if solver == "euler" else _run_multistep)(solver, levels, start, predict)


def response(solver: str, levels: Levels) -> np.ndarray:
    """W, (S + 1, S): the factors of all predictions in the latents, as run on unit vectors."""
    units = np.eye(len(levels))
    return run(solver, levels, np.zeros(len(levels)), lambda k, _: units[k])


def _run_euler(solver: str, levels: Levels, x: np.ndarray, predict: Predict) -> np.ndarray:
    seen = [x]
    for k in range(len(levels)):
        x = x + (levels.sigma[k + 1] - levels.sigma[k]) * predict(k, x)
        seen.append(x)
    return np.stack(seen)


def _run_multistep(solver: str, levels: Levels, x: np.ndarray, predict: Predict) -> np.ndarray:
    seen, clean, last = [x], [], len(levels) - 1
    came_from = x  # the latent, corrected, at the level before
    for k in range(len(levels)):
        clean.append(x - levels.sigma[k] * predict(k, x))
        if solver == "unipc" and k:
            x = _corrected(levels, k, came_from, clean)
        came_from = x
        if k in (0, last):
            keep, new = first_order(levels, k, k + 1)
            x = keep * x + new * clean[k]
        else:
            keep, new, old = second_order(levels, k - 1, k, k + 1)
            x = keep * x + new * clean[k] + old * clean[k - 1]
        seen.append(x)
    return np.stack(seen)


def _corrected(levels: Levels, k: int, came_from: np.ndarray, clean: list) -> np.ndarray:
    """x at level k once its own clean latent is known: (C1) after the first step, then (C2)."""
    if k == 1:
        keep, new = first_order(levels, 0, 1)
        return keep * came_from + new * (clean[0] + clean[1]) / 2
    keep, new, old, there = corrector(levels, k - 2, k - 1, k)
    return keep * came_from + new * clean[k - 1] + old * clean[k - 2] + there * clean[k]


def _ratio(levels: Levels, i: int, j: int, n: Numbers) -> Factor:
    """r: negative, infinite where level i holds no signal at all."""
    return (levels.log_snr[i] - levels.log_snr[j]) / (levels.log_snr[n] - levels.log_snr[j])


def _weights(h: Factor, ratio: Factor) -> tuple[Factor, Factor]:
    """rho_1 and rho_2 of UniC-2: they solve rho_1 + rho_2 = b_1, r rho_1 + rho_2 = b_2.

    With z = -h: b_1 = (phi / z - 1) / phi and b_2 = 2 ((phi / z - 1) / z - 1 / 2) / phi.
    """
    phi = np.expm1(-h)
    first = phi / -h - 1
    b1, b2 = first / phi, 2 * (first / -h - 0.5) / phi
    back = (b2 - b1) / (ratio - 1)  # 0 for an infinite ratio
    return back, b1 - back

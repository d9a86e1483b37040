"""The noise levels of a foreign loop, read from its scheduler when the loop sets it up.

Works on the schedulers of diffusers and on those of upstream Wan2.1 and HunyuanVideo, which follow
the same contract: `set_timesteps(...)` leaves `timesteps`, one per step, and for flow matching
`sigmas`, one more.

DDIM with v-prediction (CogVideoX) is Euler's method in other coordinates. With alpha^2 =
alphas_cumprod and alpha^2 + sigma^2 = 1 its step from level n to the next is a rotation,

    x' = c_n x - s_n v,   c_n = alpha' alpha + sigma' sigma,   s_n = alpha' sigma - alpha sigma'

so that y = x / (c_0 ... c_n-1) takes steps y' = y + (tau' - tau) v with
tau' - tau = -s_n / (c_0 ... c_n). Its grid is tau, turned and scaled to fall from 1 to 0, and its
solver is Euler's: forecasts, corrections and the search hold there as they stand.

The levels of all other schedulers are the noise's share of the standard deviation, sigma, which is
what it is for a flow of unit variance; they can be recorded and forecast, but not searched.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from itertools import pairwise
from typing import Any

import torch

from profiling_core.errors import PlanError

# names of the flow solvers by the classes that implement them
_SOLVERS = {
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchDiscreteScheduler": "euler",
    "UniPCMultistepScheduler": "unipc",
    "FlowUniPCMultistepScheduler": "unipc",
    "DPMSolverMultistepScheduler": "dpm++",
    "FlowDPMSolverMultistepScheduler": "dpm++",
}
# what UniPC is set to where the weights of a fitted plan are for its steps
_WEIGHED = dict(solver_order=2, solver_type="bh2", predict_x0=True, disable_corrector=[])
See = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]  # prediction, latent, the next
_PART = (
    "a profile, a plan that jumps, and a model that gets other timesteps than its scheduler need a "
    "loop that begins at the first level: take strength=1, a plan that holds or forecasts "
    "('linear'), or leave the cache out"
)
_SHIFTS = ("flow_shift", "shift")  # of a scheduler's config


@dataclass(frozen=True)
class Grid:
    """Falling noise levels of all steps, the solver's name and the shift they were made with.

    rising: the scheduler's own sigmas rise; the levels are 1 minus them. In these levels
    the solver moves latents over `scales` (before every step, and the final one) by predictions
    times `factor`.
    """

    sigmas: tuple[float, ...]
    solver: str
    shift: float
    rising: bool = False
    factor: float = 1.0
    scales: tuple[float, ...] | None = None

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    @property
    def sampling(self) -> dict[str, Any]:
        """Steps, levels, solver and shift, as plans and recorders take them."""
        return {
            "steps": self.steps,
            "sigmas": self.sigmas,
            "solver": self.solver,
            "shift": self.shift,
        }


def grid_of(scheduler: Any, arguments: dict[str, Any] | None = None) -> Grid:
    """The grid of a scheduler whose timesteps are set.

    arguments: of `set_timesteps`, where a shift may be. PlanError for levels that do not
    fall step by step, as those of solvers with several model calls per step.
    """
    if _is_rotation(scheduler):
        return _rotation(scheduler)
    levels, rising = (
        _flow_levels(scheduler) if _is_flow(scheduler) else (_share_levels(scheduler), False)
    )
    for step, (before, after) in enumerate(pairwise(levels)):
        if not after < before:
            raise PlanError(
                f"{type(scheduler).__name__}: noise level {after:.6g} of step {step + 1} follows "
                f"{before:.6g}: plans need levels that fall at every step; take a scheduler with "
                "one model call per step"
            )
    shift, factor = _shift(scheduler, arguments or {}), -1.0 if rising else 1.0
    return Grid(tuple(levels), _solver(scheduler), shift, rising, factor)


def visit_only(scheduler: Any, steps: Sequence[int]) -> None:
    """Let the loop visit these steps alone; its solver takes the larger steps itself.

    PlanError for a scheduler that does not step from sigma to sigma.
    """
    if not _is_flow(scheduler):
        raise PlanError(
            f"the plan lets the solver jump, but {type(scheduler).__name__} steps by the number of "
            "a timestep: take a plan that holds or forecasts ('linear')"
        )
    kept, count = list(steps), len(scheduler.timesteps)
    scheduler.sigmas = torch.cat([scheduler.sigmas[kept], scheduler.sigmas[count:]])
    scheduler.timesteps = scheduler.timesteps[kept]
    scheduler.num_inference_steps = len(kept)


def takes_weights(scheduler: Any) -> bool:
    """Are the weights of a fitted plan for the steps of this scheduler?"""
    config = getattr(scheduler, "config", None)
    return _solver(scheduler) == "unipc" and all(
        getattr(config, name, None) == value for name, value in _WEIGHED.items()
    )


@contextmanager
def weighted(scheduler: Any, weights: Sequence[tuple[float, float, float]]) -> Iterator[None]:
    """Inside the with block its steps add the weights c, d, p of a fitted plan, by visited steps.

    With its predictions m_t, m_0, m_1 of the clean latent, the newest first, a corrected latent
    gets c (m_t - m_0) + d (m_0 - m_1) more, and a predicted one p (m_t - m_0).
    """
    plain: type = type(scheduler)
    if weights:
        scheduler._delta_weights = tuple(weights)
        scheduler.__class__ = _weighted_class(plain)
    try:
        yield
    finally:
        if weights:
            scheduler.__class__ = plain
            del scheduler._delta_weights


@cache
def _weighted_class(plain: type) -> type:
    """`plain` with weights of its own; a class, so that a copy of a scheduler steps by itself."""
    named = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain)(plain.__name__, (_Weighted, plain), named)


class _Weighted:
    """The updates that a step of UniPC calls, with the weights of the visited step."""

    def multistep_uni_c_bh_update(self: Any, this_model_output: Any, **named: Any) -> Any:
        above: Any = super()
        plain = above.multistep_uni_c_bh_update(this_model_output, **named)
        c, d, _ = self._delta_weights[self.step_index]
        return plain + c * (this_model_output - self.model_outputs[-1]) + d * _last_change(self)

    def multistep_uni_p_bh_update(self: Any, *given: Any, **named: Any) -> Any:
        above: Any = super()
        plain = above.multistep_uni_p_bh_update(*given, **named)
        return plain + self._delta_weights[self.step_index][2] * _last_change(self)


def _last_change(scheduler: Any) -> torch.Tensor | float:
    """Between the last two predictions of the clean latent; 0 where there is one."""
    older, newest = scheduler.model_outputs
    return 0.0 if older is None else newest - older


class SteppedLevels:
    """Follows the solver's steps of a loop; PlanError where a plan would not fit them.

    The loop has to begin where `start` says, and its first step, repeated, has to give the same
    latent: where noise is added at every step, an old prediction holds old noise. A later step is
    repeated where all before drew random numbers, as SA-Solver's do, which adds them at some levels
    alone; elsewhere nothing more is read from the device.
    """

    def __init__(self, see: See | None = None) -> None:
        self._see, self._inside = see, False
        self._timesteps: list[float] = []
        self._taken, self._draws = 0, True

    def start(self, scheduler: Any, first: int = 0, *, may_add_noise: bool = False) -> None:
        """A new run of a scheduler whose timesteps are set, that begins at step `first`."""
        self._timesteps = scheduler.timesteps.tolist()[first:]
        self._taken, self._draws = 0, not may_add_noise

    def place_of(self, timestep: torch.Tensor) -> int:
        """The step of a model call; 0 where its timestep is rounded or none of the scheduler's."""
        if timestep.dtype.itemsize < 4:
            return 0
        visited = float(timestep.max())
        return self._timesteps.index(visited) if visited in self._timesteps else 0

    @contextmanager
    def of(self, target: Any) -> Iterator[None]:
        """Follow the steps of a scheduler, or of a class, inside the with block."""
        signature, of_class = inspect.signature(target.step), isinstance(target, type)

        def answer(step: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
            if self._inside:  # the step of a class above, which is followed as well
                return step(*args, **kwargs)
            self._inside = True
            try:
                scheduler, *rest = args if of_class else (target, *args)
                given = signature.bind(*args, **kwargs).arguments
                if not self._taken:
                    self._check_begin(scheduler, given["timestep"])
                before = copy.deepcopy(scheduler) if self._draws else None
                states = _random_states(given) if self._draws else []
                result = step(*args, **kwargs)
                if before is not None:
                    self._draws = not all(map(torch.equal, states, _random_states(given)))
                    plain = step if of_class else type(scheduler).step
                    _check_same(scheduler, _latent(result), _latent(plain(before, *rest, **kwargs)))
            finally:
                self._inside = False
            self._taken += 1
            if self._see is not None:
                self._see(given["model_output"], given["sample"], _latent(result))
            return result

        with around_calls(target, "step", answer):
            yield

    def check_taken(self) -> None:
        """PlanError for a loop that ended without a step."""
        if self._timesteps and not self._taken:
            raise PlanError(f"this loop took none of its {len(self._timesteps)} steps: {_PART}")

    def _check_begin(self, scheduler: Any, timestep: Any) -> None:
        visited = float(torch.as_tensor(timestep).max())
        if self._timesteps and visited != self._timesteps[0]:
            raise PlanError(
                f"the first step of this loop is at timestep {visited:g}, its "
                f"{type(scheduler).__name__} has {self._timesteps[0]:g} there: {_PART}"
            )


def _latent(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result.prev_sample


def _random_states(given: dict[str, Any]) -> list[torch.Tensor]:
    """Of the generators that a step may draw from; on the host, a GPU's as well."""
    sample, own = given["sample"], given.get("generator")
    states = [each.get_state() for each in (own if isinstance(own, list) else [own]) if each]
    states += [torch.cuda.get_rng_state(sample.device)] if sample.is_cuda else []
    return [torch.get_rng_state(), *states]


def _check_same(scheduler: Any, once: torch.Tensor, again: torch.Tensor) -> None:
    if not torch.equal(once, again):
        raise PlanError(
            f"{type(scheduler).__name__} adds noise at this step, which a prediction of an earlier "
            "step knows nothing of: take a sampler without it (stochastic_sampling=False, eta=0, "
            "'dpmsolver++' for 'sde-dpmsolver++', DDIM for CogVideoX's DPM), or no cache"
        )


@contextmanager
def when_set(target: Any, see: Callable[[Any, dict[str, Any]], None]) -> Iterator[None]:
    """`see(scheduler, arguments)` after every `set_timesteps` inside the with block.

    target: a scheduler, or a class of which the loop makes its own.
    """

    def answer(set_timesteps: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        result = set_timesteps(*args, **kwargs)
        see(args[0] if isinstance(target, type) else target, kwargs)
        return result

    with around_calls(target, "set_timesteps", answer):
        yield


@contextmanager
def around_calls(target: Any, name: str, answer: Callable[..., Any]) -> Iterator[None]:
    """`answer(method, args, kwargs)` answers a method of an object, or of a class."""
    original, own = getattr(target, name), name in vars(target)

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return answer(original, args, kwargs)

    setattr(target, name, call)
    try:
        yield
    finally:
        if own:
            setattr(target, name, original)
        else:
            delattr(target, name)


def _is_flow(scheduler: Any) -> bool:
    flow = getattr(getattr(scheduler, "config", None), "prediction_type", None) == "flow_prediction"
    return flow or any("Flow" in kind.__name__ for kind in type(scheduler).__mro__)


def _flow_levels(scheduler: Any) -> tuple[list[float], bool]:
    """Falling levels, and whether the sigmas rise (Mochi; HunyuanVideo without --flow-reverse)."""
    levels = [float(sigma) for sigma in scheduler.sigmas.tolist()[: len(scheduler.timesteps)]]
    rising = len(levels) > 1 and levels[-1] > levels[0]
    return ([1.0 - level for level in levels] if rising else levels), rising


def _is_rotation(scheduler: Any) -> bool:
    """DDIM with v-prediction."""
    kind = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    stepping = type(scheduler).step.__qualname__.split(".")[0]
    return stepping in ("DDIMScheduler", "CogVideoXDDIMScheduler") and kind == "v_prediction"


def _rotation(scheduler: Any) -> Grid:
    products = scheduler.alphas_cumprod.detach().cpu().double()
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    taus, scales = [0.0], [1.0]
    for t in scheduler.timesteps.tolist():
        after = t - stride
        there = products[after] if after >= 0 else scheduler.final_alpha_cumprod
        (a, s), (b, r) = (_parts(float(product)) for product in (products[t], there))
        scales.append(scales[-1] * (b * a + r * s))
        taus.append(taus[-1] - (b * s - a * r) / scales[-1])
    sigmas = tuple(1.0 - tau / taus[-1] for tau in taus[:-1])
    return Grid(sigmas, "euler", 1.0, False, -taus[-1], tuple(scales))


def _parts(product: float) -> tuple[float, float]:
    """alpha and sigma."""
    return math.sqrt(product), math.sqrt(1.0 - product)


def _share_levels(scheduler: Any) -> list[float]:
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is None:
        raise PlanError(
            f"{type(scheduler).__name__} has neither sigmas of a flow nor alphas_cumprod: its "
            "noise levels are not known"
        )
    steps = scheduler.timesteps.to(device="cpu", dtype=torch.long)
    return (1 - products.detach().cpu().double()[steps]).sqrt().tolist()


def _solver(scheduler: Any) -> str:
    """By the class whose step runs: one that is inherited and changed is another solver."""
    stepping = type(scheduler).step.__qualname__.split(".")[0]
    if _is_flow(scheduler) and stepping in _SOLVERS:
        return _SOLVERS[stepping]
    return type(scheduler).__name__.removesuffix("Scheduler")


def _shift(scheduler: Any, arguments: dict[str, Any]) -> float:
    if arguments.get("shift"):
        return float(arguments["shift"])
    if arguments.get("mu") is not None:
        return math.exp(arguments["mu"])
    config = getattr(scheduler, "config", None)
    found = (getattr(config, name, None) for name in _SHIFTS)
    return float(next((shift for shift in found if shift), 1.0))

"""Drift guard: what a plan says of it, and the plan with one more compute step. No torch.

At a compute step n that follows skipped steps, the line through the last two predictions before it
says what a forecast would have given at n; the prediction itself is now known. Their relative
distance is the deviation of n, measured by `drift` on sampled values:

    (1)  deviation of n = |f_n - v_n| / |v_n|,    f_n = the old forecast, v_n the new prediction

The forecast is linear in sigma, as in plans that skip by 'linear' and 'corrected'; a plan that
holds compares with the last prediction; where the solver jumps nothing is forecast, and the line
says how far the predictions are from what its polynomial of first order takes them to be.

A deviation above the threshold says that this clip moves more than the planner's did. With `extra`
the middle step of the next gap is then computed, once in a run.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidationError, field_validator

from profiling_core.checked import Checked, PlanError, first_mistake
from profiling_core.cost import expected_cost

if TYPE_CHECKING:
    from profiling_core.plan import CachePlan, Forecast

SAMPLES = 4096


class Guard(Checked):
    """Compare old forecasts with new predictions; see the module's docstring.

    threshold: of (1), one number, or one for every compared step (its number as a key).
    """

    threshold: float | dict[str, float]
    samples: Annotated[int, Field(ge=1, le=2**24)] = SAMPLES  # values of one prediction
    extra: bool = False  # compute one more step above the threshold

    @field_validator("threshold", mode="before")
    @classmethod
    def _deviations(cls, given: object) -> object:
        for value in given.values() if isinstance(given, dict) else (given,):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < float("inf"):
                raise ValueError(
                    "expected a relative deviation above 0 such as 0.1, or one for every compared "
                    f"step, found {value!r}"
                )
        return given

    def at(self, step: int) -> float:
        """The threshold at a step; at one that the plan does not compare, of the nearest one."""
        if not isinstance(self.threshold, dict):
            return self.threshold
        return self.threshold[min(self.threshold, key=lambda known: abs(int(known) - step))]


def check_guard(plan: CachePlan) -> None:
    """ValueError for a guard that has nothing to compare, or that this plan cannot follow."""
    guard = plan.guard
    if guard is None:
        return
    if plan.prediction is None:
        raise ValueError("guard: it compares whole predictions, this plan has no prediction site")
    steps = compared_steps(plan)
    if not steps:
        raise ValueError("guard: no compute step follows a skipped one, nothing can be compared")
    if isinstance(guard.threshold, dict):
        wrong = set(guard.threshold) ^ {str(step) for step in steps}
        if wrong:
            key = min(wrong, key=lambda text: (len(text), text))
            what = "is no compared step" if key in guard.threshold else "has no threshold"
            known = ", ".join(map(str, steps))
            raise ValueError(f"guard.threshold: step {key} {what}; compared are {known}")
    fitted = any(site.weights or getattr(site, "given", None) for site in plan.sites)
    if guard.extra and fitted:
        raise ValueError(
            "guard.extra: weights are fitted to the plan's own compute steps, one more cannot be "
            "inserted; leave extra out or take a plan that forecasts 'linear' or jumps"
        )
    if guard.extra and not middles(plan):
        raise ValueError("guard.extra: no step is skipped after the first compared one")


def compared_steps(plan: CachePlan) -> tuple[int, ...]:
    """Compute steps of any branch that follow skipped ones."""
    return tuple(sorted({step for b in plan.branches for step in old_forecasts(plan, b)}))


def old_forecasts(plan: CachePlan, branch: str) -> dict[int, Forecast]:
    """f of (1): anchors and weights for every compute step that follows skipped ones."""
    if plan.prediction is None:
        return {}
    computed = plan.prediction.compute_steps[branch]
    hold = plan.prediction.skip == "hold"
    return {
        n: plan.line(n, computed[j : j + 1] if hold else computed[: j + 1])
        for j, (before, n) in enumerate(pairwise(computed))
        if n > before + 1
    }


def middles(plan: CachePlan) -> dict[int, int]:
    """Where an extra step can go: middle step of every gap -> last compute step before the gap.

    A gap is a run of steps that no branch computes; gaps before the first compared step are left
    out, since nothing is known when they begin.
    """
    computed = {s for b in plan.branches for s in plan.prediction.compute_steps[b]}
    ends = [*sorted(computed), plan.steps]
    first = min(compared_steps(plan), default=plan.steps)
    return {(j + n) // 2: j for j, n in pairwise(ends) if n > j + 1 and j >= first}


def with_compute_step(plan: CachePlan, step: int) -> CachePlan:
    """The plan with `step` computed by all sites and branches, without its guard."""
    sites = tuple(
        site.model_copy(
            update={
                "compute_steps": {
                    branch: tuple(sorted({*steps, step}))
                    for branch, steps in site.compute_steps.items()
                }
            }
        )
        for site in plan.sites
    )
    fields = {name: getattr(plan, name) for name in type(plan).model_fields}
    fields |= {"sites": sites, "guard": None, "expected": None}
    try:
        more = type(plan).model_validate(fields)
    except ValidationError as error:
        raise PlanError(f"plan {plan.name!r} with step {step}: {first_mistake(error)}") from None
    return more.model_copy(update={"expected": expected_cost(more)})


def carried_guard(plan: CachePlan, one_to_one: bool) -> tuple[Guard | None, list[str]]:
    """The guard on another grid, and what the user should know of it."""
    if plan.guard is None or one_to_one:
        return plan.guard, []
    if isinstance(plan.guard.threshold, dict):
        return None, ["its guard is left out: the thresholds belong to its own noise levels"]
    return plan.guard, ["the guard's threshold is that of the plan's own noise levels"]


def guard_line(plan: CachePlan) -> list[str]:
    """What the guard will do, for the log before the run."""
    if plan.guard is None:
        return []
    guard, count = plan.guard, len(compared_steps(plan))
    above = guard.threshold if isinstance(guard.threshold, float) else "the step's threshold"
    does = "computes one more step" if guard.extra else "says so"
    return [
        f"guard: compares {guard.samples} values at {count} compute steps with the old forecast, "
        f"{does} where it is off by more than {above}"
    ]

"""Refit: forecast weights fitted along the cached trajectory, so that it ends on the recorded one.

Weights that are fitted on full runs (open loop) do not last. With a plan the model sees other
latents: the errors of early forecasts are still there, and the model's predictions change with
them. A refit runs the plan on all the profile's prompts, one stretch at a time. A stretch from the
compute step j to the next one, n, skips the steps between. At its turn every prompt has reached j
with the weights found so far, and v_j is known. Any solver of flow_solvers is linear in the
predictions: weights changed by d_a, alike at all skipped steps s of the stretch, move the latent at
n to

    (1)  x_n(d) = x_n(0) + w sum over anchors a of d_a v_a,    w = sum over s of W[n, s]

with W as in segments, and x_n(0) where the line through the last two anchors leads. The target is
the full run's latent X_n: least squares over the prompts r, with a ridge towards the line,

    (2)  sum over r of |x_n,r(d) - X_n,r|^2 / |x_n,r(0) - X_n,r|^2  +  ridge |w d|^2

Every prompt counts by the share of its distance that is left, a step towards the least mean in
decibels: otherwise one prompt that went astray would outweigh all others.

The loop is closed: x_n(0) contains all earlier errors, so a stretch also corrects those. For Euler
only the sum over a stretch matters and d may be alike at its steps. A multistep solver also
remembers single steps, and these keep the line's shape.

(2) reaches only what the anchors before n span. For Euler the model then runs at n, and v_n is used
as in `corrected` (site_schedule.corrections): the latent that goes on from n is fitted too,

    (3)  y_n(c) = x_n + sum over n and the anchors a of c_a v_a,  nearest to X_n as in (2)

with a ridge towards its line, and the solver is given v_n + sum of c_a v_a / (sigma_n+1 -
sigma_n): weights of predictions once more, `given` in the plan.

A pass costs one cached run of every prompt. It keeps the predictions at compute steps on the host;
the fit needs their products alone. A pass has a form: compute steps, and 2 anchors or 3. The passes
take the most promising forms. The result is the best of their plans and the starting plan, as
measured on the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from profiling_core.errors import PlanError, ProfileError
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.plan.schema import Forecast, PredictionSite
from profiling_core.plan.site_schedule import corrections, forecasts
from profiling_core.profile.profile import Profile
from profiling_core.refit.rollout import LoadedModel, Rollout, Weights
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.search import Budget, PlanSearch, Point, anchor_bytes, count_of
from profiling_core.search.step_search import QUANTILE, scores

ANCHORS = (3, 2)
RIDGE = 1e-6  # of the mean squared prediction
ROUNDING = 1e-4  # of the final latent's norm: distances below it all count alike
STEPS_FROM = ("corrected", "linear")  # reuse modes whose steps are tried

Log = Callable[[str], None]
Terms = dict[int, float]  # weights of predictions, by their steps


@dataclass(frozen=True)
class Form:
    """What one pass fits: a linear plan to start from, and the most anchors of a forecast.

    corrects: by (3), for Euler.
    """

    plan: CachePlan
    anchors: int
    words: str
    corrects: bool = True

    @property
    def site(self) -> PredictionSite:
        return _prediction(self.plan)


@dataclass(frozen=True)
class Refitted:
    """A plan, the relative errors of its final latents (R,), and its form in words."""

    plan: CachePlan
    errors: np.ndarray
    words: str

    @property
    def score(self) -> float:
        """(7) of step_search on measured errors."""
        return float(scores(self.errors[None])[0])

    @property
    def error(self) -> float:
        return float(np.quantile(self.errors, QUANTILE))


def forms(search: PlanSearch, point: Point, budget: Budget) -> list[Form]:
    """Every form at the point's speed-up within the budget's bytes, the most promising first.

    PlanError when the bytes do not allow two anchors, or no step is skipped.
    """
    count = count_of(search.steps, point.speedup)
    if count == search.steps:
        raise PlanError("--refit: the plan computes every step, there are no weights to fit")
    steps: dict[tuple[int, ...], str] = {}
    for skip in [skip for skip in STEPS_FROM if skip in search.skips] or search.skips[:1]:
        steps.setdefault(search.point_of(skip, count).steps, skip)
    found = []
    for anchors in ANCHORS:
        for own, skip in steps.items():
            line = search.plan_of(Point("linear", own, point.speedup, 0.0), budget, "refit")
            form = Form(line, anchors, f"weights of {anchors} anchors, steps of {skip!r}")
            if budget.max_bytes is None or _bytes(search.profile, form) <= budget.max_bytes:
                found.append(form)
    if not found:
        raise PlanError(
            f"--refit: weights need 2 predictions a branch, more than {budget.max_bytes} bytes: "
            "allow more with --max-bytes, or leave --refit out"
        )
    return found


def steps_of(forms: Iterable[Form]) -> set[int]:
    """The steps before which a refit needs the latents of the full run."""
    return {step for form in forms for step in form.site.compute_steps["cond"]}


def rollouts_of(
    profile: Profile, model: LoadedModel, steps: Iterable[int], log: Log
) -> list[Rollout]:
    """The profile's prompts, each recorded once in full; `steps`: where latents are kept."""
    rollouts, steps = [], set(steps)
    for run, inputs in zip(profile.runs, _inputs(profile, model), strict=True):
        rollout = Rollout(model, inputs, run.guidance, profile.recorded.steps)
        _check_size(profile, rollout.record(steps))
        rollouts.append(rollout)
        log(f"full run {len(rollouts)} of {len(profile.runs)}: {run.prompt}")
    return rollouts


def _inputs(profile: Profile, model: LoadedModel) -> Iterator[tuple[Any, ...]]:
    for number, run in enumerate(profile.runs, start=1):
        if run.seed is None:
            raise ProfileError(f"run {number} of the profile has no seed: it cannot be repeated")
        yield model.inputs(run.prompt, run.seed)


def _check_size(profile: Profile, latent: Tensor) -> None:
    recorded, found = profile.recorded.latent, tuple(latent.shape[-4:])
    if found != recorded:
        raise ProfileError(
            f"the profile's latents are {recorded}, this model makes {found}: name the checkpoint "
            "that was profiled"
        )


def refit(
    rollouts: Sequence[Rollout], start: CachePlan, forms: Iterable[Form], log: Log
) -> list[Refitted]:
    """The start and a plan of every form, one pass each, the least measured error first."""
    errors = [_error(rollout, rollout.model.denoise(rollout.inputs, start)) for rollout in rollouts]
    found = [Refitted(start, np.array(errors), "as searched")]
    log(f"measured {found[0].error:.4f} {found[0].words}")
    for number, form in enumerate(forms, start=1):
        found.append(one_pass(rollouts, form))
        log(f"pass {number}: measured {found[-1].error:.4f}, {form.words}")
    return sorted(found, key=lambda one: one.score)


def one_pass(rollouts: Sequence[Rollout], form: Form) -> Refitted:
    """The plan with the weights of one pass, and its errors on the same prompts."""
    for rollout in rollouts:
        rollout.forget()
    weights = _Pass(rollouts, form).fitted()
    errors = np.array([_error(rollout, rollout.run(weights)) for rollout in rollouts])
    for rollout in rollouts:
        rollout.forget()
    return Refitted(with_weights(form.plan, weights), errors, form.words)


class _Pass:
    """Fits stretch after stretch; terms are weights of predictions by their steps."""

    def __init__(self, rollouts: Sequence[Rollout], form: Form) -> None:
        self.rollouts, self.plan, self.most = rollouts, form.plan, form.anchors
        self.weights = Weights()
        self.response = flow_solvers.response(form.plan.solver, Levels(form.plan.sigmas))
        branch = form.plan.branches[0]
        self.computed = form.site.compute_steps[branch]
        self.lines = forecasts(form.plan, form.site, branch)
        self.corrections = _corrections(form.plan) if form.corrects else {}

    def fitted(self) -> Weights:
        for j, n in pairwise((*self.computed, self.plan.steps)):
            if n > j + 1:
                reached, moves = self._forecast(j, n)
                if n in self.corrections:
                    self._correct(n, reached, moves)
        return self.weights

    def _forecast(self, j: int, n: int) -> tuple[list[Tensor], Terms]:
        """(2) for the steps between; the latents at n of every rollout, and w d by anchors."""
        skipped = range(j + 1, n)
        anchors = [step for step in self.computed if step <= j][-self.most :][::-1]
        self.weights.forecasts |= {s: self.lines[s] for s in skipped}
        until = None if n == self.plan.steps else n
        reached = [rollout.run(self.weights, until).double() for rollout in self.rollouts]
        moves = self._least_squares(anchors, n, reached)
        effect = float(self.response[n, list(skipped)].sum())
        for s in skipped:
            line = dict(self.lines[s])
            self.weights.forecasts[s] = tuple(
                (a, line.get(a, 0.0) + move / effect) for a, move in moves.items()
            )
        pairs = zip(self.rollouts, reached, strict=True)
        return [latent + _sum(rollout, moves) for rollout, latent in pairs], moves

    def _correct(self, n: int, reached: list[Tensor], moves: Terms) -> None:
        """(3) at n, given the latents there and how they were moved from the line."""
        after = None if n + 1 == self.plan.steps else n + 1
        for rollout in self.rollouts:
            rollout.run(self.weights, after)  # the model runs at n
        change = {step: self.corrections[n].get(step, 0.0) for step in (n, *moves)}
        change = {step: known - moves.get(step, 0.0) for step, known in change.items()}
        pairs = zip(self.rollouts, reached, strict=True)
        latents = [latent + _sum(rollout, change) for rollout, latent in pairs]
        more, own = self._least_squares(list(change), n, latents), self.response[n + 1, n]
        self.weights.corrected[n] = tuple(
            (step, (step == n) + (known + more[step]) / own) for step, known in change.items()
        )

    def _least_squares(self, steps: list[int], n: int, latents: list[Tensor]) -> Terms:
        """Weights of predictions that bring the latents nearest to the wanted ones at n."""
        products, targets = np.zeros((len(steps), len(steps))), np.zeros(len(steps))
        for rollout, latent in zip(self.rollouts, latents, strict=True):
            wanted = rollout.final if n == self.plan.steps else rollout.wanted[n]
            missing, rows = wanted.double() - latent, [rollout.prediction(step) for step in steps]
            final = rollout.final.double()
            size = float(missing @ missing + ROUNDING**2 * (final @ final))
            products += np.array([[float(a @ b) for b in rows] for a in rows]) / size
            targets += np.array([float(row @ missing) for row in rows]) / size
        ridge = RIDGE * np.trace(products) / len(steps) * np.eye(len(steps))
        return dict(zip(steps, np.linalg.solve(products + ridge, targets).tolist(), strict=True))


def _sum(rollout: Rollout, terms: Terms) -> Tensor:
    return reduce(torch.add, (w * rollout.prediction(step) for step, w in terms.items()))


def _prediction(plan: CachePlan) -> PredictionSite:
    if plan.prediction is None:
        raise PlanError(f"--refit: plan {plan.name!r} does not reuse the prediction")
    return plan.prediction


def _corrections(plan: CachePlan) -> dict[int, Terms]:
    """The corrections by a line at every compute step after a skip, as changes of the latent.

    Only Euler has them.
    """
    if plan.solver != "euler":
        return {}
    site = _prediction(plan).model_copy(update={"skip": "corrected"})
    corrected, levels = plan.model_copy(update={"sites": (site,)}), (*plan.sigmas, 0.0)
    found = corrections(corrected, plan.branches[0])
    return {
        n: {step: (weight - (step == n)) * (levels[n + 1] - levels[n]) for step, weight in terms}
        for n, terms in found.items()
    }


def with_weights(plan: CachePlan, weights: Weights) -> CachePlan:
    """The plan of a prediction site with these weights, the same for all branches."""
    site = {
        "kind": "prediction",
        "compute_steps": _prediction(plan).compute_steps,
        "skip": "weights",
        "weights": dict.fromkeys(plan.branches, _numbers(weights.forecasts)),
    }
    if weights.corrected:
        site["given"] = dict.fromkeys(plan.branches, _numbers(weights.corrected))
    return plan.replace(sites=[site])


def _numbers(terms: dict[int, Forecast]) -> dict[str, list[float]]:
    """As in a plan's file, which gives anchors by their order."""
    return {str(step): [weight for _, weight in own] for step, own in terms.items()}


def with_facts(plan: CachePlan, name: str, **facts: float | str) -> CachePlan:
    """The plan under a name, with more settings in its provenance."""
    settings = {**plan.provenance.settings, **facts}
    provenance = plan.provenance.model_copy(update={"settings": settings})
    error = plan.expected.predicted_error if plan.expected else None
    return plan.replace(name=name, provenance=provenance, predicted_error=error)


def _error(rollout: Rollout, latent: Any) -> float:
    return latent_error(latent.cpu().flatten().float(), rollout.final)


def _bytes(profile: Profile, form: Form) -> int:
    """Bytes of the anchors of a plan of this form, before it is fitted."""
    plan, branch = form.plan, form.plan.branches[0]

    def ones(step: int) -> Forecast:
        before = [c for c in form.site.compute_steps[branch] if c < step]
        return tuple((anchor, 1.0) for anchor in before[-form.anchors :][::-1])

    weights = Weights(
        forecasts={s: ones(s) for s in forecasts(plan, form.site, branch)},
        corrected={n: ((n, 1.0), *ones(n)) for n in _corrections(plan)},
    )
    return anchor_bytes(with_weights(plan, weights), profile)

"""Refit: forecast weights fitted along the cached path, so that it lands on the recorded one.

The weights of a search are fitted on full runs (open loop). With a plan the model sees other
latents: what an early forecast left behind is still there, and what the model says has changed. A
refit plays the plan on the profile's prompts in lockstep. A stretch from the compute step j to the
next one, n, skips the steps between. When it is its turn, every prompt has come to j with the
weights found so far, and v_j is known. Any solver of flow_solvers is linear in what it is given:
weights changed by d_a, alike at all skipped steps s of the stretch, move the latent at n to

    (1)  x_n(d) = x_n(0) + w sum over anchors a of d_a v_a,    w = sum over s of W[n, s]

with W as in segments, and x_n(0) where the line through the last two anchors leads. Wanted is the
full run's latent X_n: least squares over the prompts r, with a ridge towards the line,

    (2)  sum over r of |x_n,r(d) - X_n,r|^2 / |x_n,r(0) - X_n,r|^2  +  ridge |w d|^2

Every prompt counts by what share of its distance is left, which is a step towards the least mean in
decibels: one prompt that has gone astray would otherwise outweigh all others.

The loop is closed: x_n(0) holds all that went wrong before, so that a stretch also makes good what
earlier ones left. For Euler nothing but the sum over a stretch matters and d may be alike at its
steps; a multistep solver also remembers single ones, and these keep the line's shape.

(2) can only reach what the anchors before n span. For Euler the model then runs at n, and what v_n
says is used as in `corrected` (plan.corrections): the latent that goes on from n is fitted too,

    (3)  y_n(c) = x_n + sum over n and the anchors a of c_a v_a,  nearest to X_n as in (2)

with a ridge towards the trapezium, and the solver is given v_n + sum of c_a v_a / (sigma_n+1 -
sigma_n): weights of predictions once more, `given` in the plan.

A pass costs one cached run of every prompt. What it keeps of a prompt are predictions of compute
steps, on the host; the fit takes their products alone. A pass has a form: compute steps, and 2
anchors or 3. The passes take the most promising forms, and the best of these and the plan at the
start, as measured on the prompts, is what remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, prod
from typing import Any

import numpy as np
from torch import Tensor

from profiling_core.errors import PlanError, ProfileError
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.schema import Forecast
from profiling_core.plan.site_schedule import corrections, forecasts
from profiling_core.profile.profile import Profile
from profiling_core.refit.rollout import Clip, Weights
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.search import PREDICTION_ITEMSIZE, Budget, PlanSearch, Point
from profiling_core.search.step_search import QUANTILE, scores

ANCHORS = (3, 2)
RIDGE = 1e-6  # of the mean squared prediction
ROUNDING = 1e-4  # of the final latent's norm: distances below it all count alike
STEPS_FROM = ("corrected", "linear", "weights")  # ways to skip whose steps are tried

Tell = Callable[[str], None]
Terms = dict[int, float]  # weights of predictions, by their steps


@dataclass(frozen=True)
class Form:
    """What one pass fits: a linear plan whose steps and line it begins with, and most anchors.

    corrects: by (3), where the solver is Euler's.
    """

    plan: CachePlan
    anchors: int
    words: str
    corrects: bool = True


@dataclass(frozen=True)
class Validated:
    """A plan and the relative errors of its final latents, (R,)."""

    plan: CachePlan
    errors: np.ndarray

    @property
    def score(self) -> float:
        """(7) of step_search on measured errors."""
        return float(scores(self.errors[None])[0])

    @property
    def error(self) -> float:
        return float(np.quantile(self.errors, QUANTILE))


@dataclass(frozen=True)
class Refitted(Validated):
    """A plan as measured on the profile's prompts; words: its form."""

    words: str


def forms(search: PlanSearch, point: Point, budget: Budget) -> list[Form]:
    """Every form within the budget's bytes, the most promising first.

    Their steps are as many as the point's speed-up pays for. PlanError when not even two anchors
    may be held, or no step is skipped.
    """
    count = floor(search.paths.steps / point.speedup + 1e-9)
    if count == search.paths.steps:
        raise PlanError("--refit: the plan computes every step, there are no weights to fit")
    ways = [skip for skip in STEPS_FROM if skip in search.skips] or search.skips[:1]
    steps: dict[tuple[int, ...], str] = {}
    for skip in ways:
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
    """The steps before which a refit wants to know the latents of the full run."""
    return {step for form in forms for step in form.plan.prediction.compute_steps["cond"]}


def clips_of(profile: Profile, model: Any, steps: Iterable[int], tell: Tell) -> list[Clip]:
    """The profile's prompts, each recorded once in full; `steps`: whose latents are wanted.

    model: loaded, and asked for what the profile recorded (validation.asked_for). ProfileError for
    a run without a seed, or a clip of another size.
    """
    clips, steps = [], set(steps)
    for number, run in enumerate(profile.runs, start=1):
        if run.seed is None:
            raise ProfileError(f"run {number} of the profile has no seed: it cannot be repeated")
        clip = Clip(model, model.inputs(run.prompt, run.seed), run.guidance)
        check_size(profile, tuple(clip.record(steps).shape[-4:]))
        clips.append(clip)
        tell(f"full run {number} of {len(profile.runs)}: {run.prompt}")
    return clips


def refit(
    clips: Sequence[Clip], start: CachePlan, forms: Iterable[Form], tell: Tell
) -> list[Refitted]:
    """The start and a plan of every form, the best measured first: one pass each."""
    errors = [_error(clip, clip.model.denoise(clip.inputs, start)) for clip in clips]
    found = [Refitted(start, np.array(errors), "as searched")]
    tell(f"measured {found[0].error:.4f} {found[0].words}")
    for number, form in enumerate(forms, start=1):
        found.append(one_pass(clips, form))
        tell(f"pass {number}: measured {found[-1].error:.4f}, {form.words}")
    return sorted(found, key=lambda one: one.score)


def one_pass(clips: Sequence[Clip], form: Form) -> Refitted:
    """The plan with the weights of one lockstep pass, and what it leaves on the same prompts."""
    for clip in clips:
        clip.forget()
    weights = _Pass(clips, form).fitted()
    errors = np.array([_error(clip, clip.play(weights)) for clip in clips])
    for clip in clips:
        clip.forget()
    return Refitted(with_weights(form.plan, weights), errors, form.words)


class _Pass:
    """Fits stretch after stretch; terms are weights of predictions by their steps."""

    def __init__(self, clips: Sequence[Clip], form: Form) -> None:
        self.clips, self.plan, self.most = clips, form.plan, form.anchors
        self.weights, self.response = Weights(), _response(form.plan)
        branch = form.plan.branches[0]
        self.computed = form.plan.prediction.compute_steps[branch]
        self.lines = forecasts(form.plan, form.plan.prediction, branch)
        self.trapezia = _trapezia(form.plan) if form.corrects else {}

    def fitted(self) -> Weights:
        """The weights of the whole plan."""
        for j, n in pairwise((*self.computed, self.plan.steps)):
            if n > j + 1:
                reached, moves = self._forecast(j, n)
                if n in self.trapezia:
                    self._correct(n, reached, moves)
        return self.weights

    def _forecast(self, j: int, n: int) -> tuple[list[Tensor], Terms]:
        """(2) for the steps between; the latents at n of every clip, and w d by anchors."""
        skipped = range(j + 1, n)
        anchors = [step for step in self.computed if step <= j][-self.most :][::-1]
        self.weights.forecasts |= {s: self.lines[s] for s in skipped}
        until = None if n == self.plan.steps else n
        reached = [clip.play(self.weights, until).double() for clip in self.clips]
        moves = self._least_squares(anchors, n, reached)
        effect = float(self.response[n, list(skipped)].sum())
        for s in skipped:
            line = dict(self.lines[s])
            self.weights.forecasts[s] = tuple(
                (a, line.get(a, 0.0) + move / effect) for a, move in moves.items()
            )
        pairs = zip(self.clips, reached, strict=True)
        return [latent + _sum(clip, moves) for clip, latent in pairs], moves

    def _correct(self, n: int, reached: list[Tensor], moves: Terms) -> None:
        """(3) at n, given the latents there and how they were moved from the line."""
        after = None if n + 1 == self.plan.steps else n + 1
        for clip in self.clips:
            clip.play(self.weights, after)  # the model runs at n
        change = {step: self.trapezia[n].get(step, 0.0) for step in (n, *moves)}
        change = {step: known - moves.get(step, 0.0) for step, known in change.items()}
        pairs = zip(self.clips, reached, strict=True)
        latents = [latent + _sum(clip, change) for clip, latent in pairs]
        more, own = self._least_squares(list(change), n, latents), self.response[n + 1, n]
        self.weights.given[n] = tuple(
            (step, (step == n) + (known + more[step]) / own) for step, known in change.items()
        )

    def _least_squares(self, steps: list[int], n: int, latents: list[Tensor]) -> Terms:
        """Weights of predictions that bring the latents nearest to the wanted ones at n."""
        products, aims = np.zeros((len(steps), len(steps))), np.zeros(len(steps))
        for clip, latent in zip(self.clips, latents, strict=True):
            wanted = clip.final if n == self.plan.steps else clip.wanted[n]
            missing, rows = wanted.double() - latent, [clip.prediction(step) for step in steps]
            size = float(
                missing @ missing + ROUNDING**2 * (clip.final.double() @ clip.final.double())
            )
            products += np.array([[float(a @ b) for b in rows] for a in rows]) / size
            aims += np.array([float(row @ missing) for row in rows]) / size
        ridge = RIDGE * np.trace(products) / len(steps) * np.eye(len(steps))
        return dict(zip(steps, np.linalg.solve(products + ridge, aims).tolist(), strict=True))


def _sum(clip: Clip, terms: Terms) -> Tensor:
    return sum(weight * clip.prediction(step) for step, weight in terms.items())


def _trapezia(plan: CachePlan) -> dict[int, Terms]:
    """For Euler: the correction of the line at every compute step after a skip, by steps.

    What plan.corrections makes of it, as a change of the latent.
    """
    if plan.solver != "euler":
        return {}
    site = plan.prediction.model_copy(update={"skip": "corrected"})
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
        "compute_steps": plan.prediction.compute_steps,
        "skip": "weights",
        "weights": dict.fromkeys(plan.branches, _numbers(weights.forecasts)),
    }
    if weights.given:
        site["given"] = dict.fromkeys(plan.branches, _numbers(weights.given))
    return _rebuilt(plan, sites=[site])


def _numbers(terms: dict[int, Forecast]) -> dict[str, list[float]]:
    """As a plan's file holds them, anchors left to their order."""
    return {str(step): [weight for _, weight in own] for step, own in terms.items()}


def with_facts(plan: CachePlan, name: str, **facts: float | str) -> CachePlan:
    """The plan under a name, with further settings in its provenance."""
    provenance = plan.provenance.model_dump(mode="json", exclude_none=True)
    provenance["settings"] |= facts
    return _rebuilt(plan, name=name, provenance=provenance)


def _rebuilt(plan: CachePlan, **changed: Any) -> CachePlan:
    document = plan.model_dump(mode="json", exclude_none=True, exclude={"format", "expected"})
    error = None if "sites" in changed or plan.expected is None else plan.expected.predicted_error
    return CachePlan.build(**(document | changed), predicted_error=error)


def _response(plan: CachePlan) -> np.ndarray:
    """W of (1): (S + 1, S)."""
    units, start = np.eye(plan.steps), np.zeros(plan.steps)
    return flow_solvers.run(plan.solver, Levels(plan.sigmas), start, lambda k, _: units[k])


def _error(clip: Clip, latent: Any) -> float:
    return latent_error(latent.cpu().flatten().float(), clip.final)


def _bytes(profile: Profile, form: Form) -> int:
    """Of the anchors of a plan of this form, known before it is fitted."""
    plan, weights = form.plan, Weights()
    computed, corrections = plan.prediction.compute_steps[plan.branches[0]], _trapezia(plan)
    for s in forecasts(plan, plan.prediction, plan.branches[0]):
        before = [step for step in computed if step < s][-form.anchors :][::-1]
        weights.forecasts[s] = tuple((step, 1.0) for step in before)
    for n in corrections:
        before = [step for step in computed if step < n][-form.anchors :][::-1]
        weights.given[n] = tuple((step, 1.0) for step in (n, *before))
    return bytes_held(
        with_weights(plan, weights),
        tokens=0,
        stream_itemsize=0,
        latent_numel=prod(profile.recorded.latent),
        prediction_itemsize=PREDICTION_ITEMSIZE,
    )


def check_size(profile: Profile, latent: tuple[int, ...]) -> None:
    """ProfileError unless a model's latent has the recorded size."""
    recorded = profile.recorded.latent
    if latent != recorded:
        raise ProfileError(
            f"the profile's latents are {recorded}, this model makes {latent}: name the checkpoint "
            "that was profiled"
        )

"""When a site of a plan is computed, and what is made of its anchors at the other steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import log

from profiling_core.plan.schema import Branch, Forecast, PlanDocument, Site


@dataclass(frozen=True)
class SiteSchedule:
    """One site and branch, resolved: what each step does, what it needs, what dies after it."""

    computes: frozenset[int]
    forecasts: dict[int, Forecast]
    last_use: dict[int, int]  # anchor step -> last step that reuses it
    corrections: dict[int, Forecast] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: PlanDocument, site: Site, branch: Branch) -> SiteSchedule:
        return cls(
            computes(plan, site, branch),
            forecasts(plan, site, branch),
            anchor_lifetimes(plan, site, branch),
            corrections(plan, branch) if site is plan.prediction else {},
        )


def computes(plan: PlanDocument, site: Site, branch: Branch) -> frozenset[int]:
    """Steps at which `site` really runs: its own, where the prediction is computed."""
    own = frozenset(site.compute_steps[branch])
    prediction = plan.prediction
    if prediction is None or site is prediction:
        return own
    return own & frozenset(prediction.compute_steps[branch])


def forecasts(plan: PlanDocument, site: Site, branch: Branch) -> dict[int, Forecast]:
    """For every reuse step of `site`: the anchors that are summed and their weights."""
    if site.skip == "jump":
        return {}
    computed = computes(plan, site, branch)
    visited = computes(plan, plan.prediction, branch) if plan.prediction else None
    anchors: list[int] = []
    found: dict[int, Forecast] = {}
    for step in range(plan.steps):
        if step in computed:
            anchors.append(step)
        elif site is plan.prediction or visited is None or step in visited:
            found[step] = line(plan, step, anchors[-1:] if site.skip == "hold" else anchors)
    return found


def line(plan: PlanDocument, step: int, anchors: Sequence[int]) -> Forecast:
    """The line in log-SNR through the last two anchors, at `step`; one alone is held.

    At sigma = 1 log-SNR is minus infinity. A line from there is flat: it holds its newer end.
    """
    if len(anchors) == 1 or plan.sigmas[anchors[-2]] == 1:
        return ((anchors[-1], 1.0),)
    older, newest = anchors[-2:]
    sigmas = (plan.sigmas[number] for number in (step, newest, older))
    here, near, far = (log((1 - sigma) / sigma) for sigma in sigmas)  # lambda
    slope = (here - near) / (near - far)
    return ((newest, 1.0 + slope), (older, -slope))


def corrections(plan: PlanDocument, branch: Branch) -> dict[int, Forecast]:
    """Where skip is "corrected": what the solver is given at a compute step n after a skip.

    The forecasts f_s of the skipped steps were drawn from the anchors before; now that v_n is
    known, the line from v_j to v_n in lambda is the better estimate of them,

        line_s = v_j + (lambda_s - lambda_j) / (lambda_n - lambda_j) (v_n - v_j).

    It is summed over the same small steps of sigma: c = sum of (sigma_s+1 - sigma_s) (line_s - f_s)
    is put into the prediction, v_n + c / (sigma_n+1 - sigma_n), so that Euler's own step adds it to
    the latent. The step itself comes first, then its anchors with their weights.
    """
    site = plan.prediction
    if site is None or site.skip != "corrected":
        return {}
    levels, computed = (*plan.sigmas, plan.end or 0.0), site.compute_steps[branch]
    drawn, found = forecasts(plan, site, branch), {}
    for j, n in pairwise(computed):
        if n == j + 1:
            continue
        weights = {n: 0.0, j: 0.0}
        for s in range(j + 1, n):
            step = levels[s + 1] - levels[s]
            for anchor, weight in line(plan, s, (j, n)):
                weights[anchor] += step * weight
            for anchor, weight in drawn[s]:
                weights[anchor] = weights.get(anchor, 0.0) - step * weight
        own = levels[n + 1] - levels[n]
        found[n] = tuple((k, (k == n) + change / own) for k, change in weights.items())
    return found


def anchor_lifetimes(plan: PlanDocument, site: Site, branch: Branch) -> dict[int, int]:
    """For every compute step that is stored: the last step that reuses it or is corrected by it."""
    last_use: dict[int, int] = {}
    for step, forecast in sorted(forecasts(plan, site, branch).items()):
        for anchor, _ in forecast:
            last_use[anchor] = step
    if site is plan.prediction:
        for step, correction in corrections(plan, branch).items():
            for anchor, _ in correction[1:]:
                last_use[anchor] = max(step, last_use.get(anchor, step))
    return last_use

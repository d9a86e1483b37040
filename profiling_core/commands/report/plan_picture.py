"""The picture of a plan: what happens with every block at every step, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from profiling_core.commands.report.figures import PlanPicture, block_axis, step_axis
from profiling_core.errors import ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import (
    block_runs,
    block_runs_full,
    bytes_held,
    held_anchors,
    speedup_flops,
)
from profiling_core.plan.describe import format_bytes, marks, site_lines, storage_words
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.schema import Branch, ModelFingerprint
from profiling_core.profile.profile import Profile

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


def plan_figures(profile: Profile, plans: Sequence[CachePlan]) -> list[PlanPicture]:
    """One picture per plan; ProfileError for a plan that is made for another model."""
    for plan in plans:
        check_same_model(profile, plan)
    return [
        plan_figure(plan, f"fig-plan-{n}", _facts(profile, plan))
        for n, plan in enumerate(plans, start=1)
    ]


def check_same_model(profile: Profile, plan: CachePlan) -> None:
    """ProfileError, naming both, when plan and profile differ in block lists or width."""
    ours, theirs = profile.recorded.model, plan.model
    if (ours.block_lists, ours.width) != (theirs.block_lists, theirs.width):
        raise ProfileError(
            f"plan {plan.name!r} is for {theirs.name} ({_shape(theirs)}), the profile is of "
            f"{ours.name} ({_shape(ours)}): give plans and a profile of one model"
        )


def plan_figure(
    plan: CachePlan, figure_id: str, facts: tuple[tuple[str, str], ...] = ()
) -> PlanPicture:
    """The picture of one plan; facts: what stands below it."""
    branches: tuple[tuple[str, tuple[str, ...]], ...]
    branches = tuple((branch, block_states(plan, branch)) for branch in plan.branches)
    if len({states for _, states in branches}) == 1:
        branches = ((" and ".join(plan.branches), branches[0][1]),)
    axis = step_axis(range(plan.steps))
    caption = (
        "Each cell is one block at one step. A kept result is stored for later steps, a reused "
        "one is read or forecast from the store, and the block does not run."
    )
    title = f"Plan {plan.name}"
    blocks = block_axis(plan.model)
    return PlanPicture(figure_id, title, caption, axis, blocks, branches, facts)


def block_states(plan: CachePlan, branch: Branch) -> tuple[str, ...]:
    """One string per block in the order of the lists: a state of `figures.STATES` per step."""
    prediction = plan.prediction
    whole = "+" * plan.steps if prediction is None else marks(plan, prediction, branch)
    rows = {
        (name, block): whole
        for name, count in plan.model.block_lists.items()
        for block in range(count)
    }
    for site in plan.interval_sites:
        own = _under(whole, marks(plan, site, branch))
        for first, last in site.intervals:
            for block in range(first, last + 1):
                rows[site.block_list, block] = own  # a block is in one site at most
    return tuple(rows.values())


def _under(whole: str, own: str) -> str:
    """An interval's marks where the model is called, the prediction's elsewhere."""
    return "".join(w if w in ".>" else o for w, o in zip(whole, own, strict=True))


def answer(profile: Profile, plan: CachePlan) -> str:
    """What the plan brings and costs, in one line."""
    held, error = _extra_bytes(profile, plan), _predicted(plan)
    memory = _formula(plan) if held is None else format_bytes(held)
    return (
        f"{speedup_flops(plan):.2f}x faster (ideal, by block FLOPs), {memory} of extra memory, "
        f"predicted error {error or 'not in the plan'}"
    )


def _facts(profile: Profile, plan: CachePlan) -> tuple[tuple[str, str], ...]:
    runs, full = block_runs(plan), block_runs_full(plan)
    facts = [
        ("Block runs", f"{runs} of {full} ({runs / full:.1%})"),
        ("Ideal speed-up", f"{speedup_flops(plan):.2f}x by block FLOPs"),
        ("Extra memory", _memory(profile, plan)),
        ("Predicted error", _predicted(plan) or "not in the plan"),
        ("Sites", "; ".join(site_lines(plan))),
        ("Made from", plan.provenance.source),
    ]
    if plan.steps != profile.recorded.steps:
        facts.append(("Steps", f"{plan.steps}, the profile has {profile.recorded.steps}"))
    return tuple(facts)


def _predicted(plan: CachePlan) -> str | None:
    error = plan.expected.predicted_error if plan.expected else None
    return None if error is None else f"{error:.4g}"


def _memory(profile: Profile, plan: CachePlan) -> str:
    held = _extra_bytes(profile, plan)
    if held is None:
        return _formula(plan)
    tokens, dtype = math.prod(profile.recorded.grid), _dtype(profile, plan)
    size = f"{format_bytes(held)} at {tokens} video tokens with a {dtype} stream"
    return f"{_formula(plan)}; {size}, in {storage_words(plan)}"


def _formula(plan: CachePlan) -> str:
    return held_anchors(plan).formula(plan.model.width) + " elements"


def _dtype(profile: Profile, plan: CachePlan) -> str:
    planned = MODELS.get(plan.model.name)
    return planned.family.stream if planned else profile.runs[0].dtype


def _extra_bytes(profile: Profile, plan: CachePlan) -> int | None:
    """Bytes at the profile's clip size; None for a dtype of unknown size."""
    planned, dtype = MODELS.get(plan.model.name), _dtype(profile, plan)
    if dtype not in ITEMSIZE:
        return None
    return bytes_held(
        plan,
        tokens=math.prod(profile.recorded.grid),
        stream_itemsize=ITEMSIZE[dtype],
        latent_numel=math.prod(profile.recorded.latent),
        prediction_itemsize=ITEMSIZE[planned.family.prediction if planned else dtype],
    )


def _shape(model: ModelFingerprint) -> str:
    lists = ", ".join(f"{count} {name}" for name, count in model.block_lists.items())
    return f"{lists}, width {model.width}"

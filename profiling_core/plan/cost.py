"""What a plan costs and holds, known before the run: block runs, FLOPs, anchors, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from profiling_core.plan.schema import Branch, Expected, PlanDocument
from profiling_core.plan.site_schedule import anchor_lifetimes, computes, corrections, forecasts


@dataclass(frozen=True)
class HeldAnchors:
    """Anchors alive at the same time, at the worst moment of a run."""

    deltas: int  # each tokens x width elements
    predictions: int  # each as large as the latent

    def formula(self, width: int) -> str:
        return f"{self.deltas} x tokens x {width} + {self.predictions} x latent"


def block_runs(plan: PlanDocument) -> int:
    """Blocks that run in one clip, over all steps and branches."""
    runs = sum(plan.model.block_lists.values()) * model_calls(plan)
    for branch in plan.branches:
        runs -= sum(s.blocks * len(forecasts(plan, s, branch)) for s in plan.interval_sites)
    return runs


def model_calls(plan: PlanDocument) -> int:
    """Calls in one clip that run the model, over all steps and branches."""
    prediction = plan.prediction
    if prediction is None:
        return plan.steps * len(plan.branches)
    return sum(len(computes(plan, prediction, branch)) for branch in plan.branches)


def block_runs_full(plan: PlanDocument) -> int:
    """The same without a cache."""
    return plan.steps * len(plan.branches) * sum(plan.model.block_lists.values())


def block_runs_without(plan: PlanDocument, calls: Sequence[int]) -> int:
    """Without a cache, for the calls of every visited step; a jumped one has those before it."""
    ends = (*plan.solver_steps[1:], plan.steps)
    spans = (end - start for start, end in zip(plan.solver_steps, ends, strict=True))
    steps = sum(count * span for count, span in zip(calls, spans, strict=False))
    return steps * sum(plan.model.block_lists.values())


def speedup_flops(plan: PlanDocument) -> float:
    """Block runs of a full run over those of the plan: the ideal speed-up of the blocks."""
    return block_runs_full(plan) / block_runs(plan)


def block_share(plan: PlanDocument, step: int, branch: Branch) -> float:
    """Share of one model call's blocks that run at this step, 0 to 1."""
    prediction = plan.prediction
    if prediction is not None and step not in computes(plan, prediction, branch):
        return 0.0
    reused = [site for site in plan.interval_sites if step not in computes(plan, site, branch)]
    blocks = sum(plan.model.block_lists.values())
    return (blocks - sum(site.blocks for site in reused)) / blocks


def kinds(plan: PlanDocument, branch: Branch) -> dict[int, str]:
    """What the call of every step does: 'run' all blocks, 'keep' anchors meanwhile, 'reuse' them.

    Sites that differ are joined in the plan's order: 'keep+reuse'.
    """
    sites = [
        {
            **dict.fromkeys(computes(plan, site, branch), "run"),
            **dict.fromkeys(anchor_lifetimes(plan, site, branch), "keep"),
            **dict.fromkeys(forecasts(plan, site, branch), "reuse"),
        }
        for site in plan.sites
    ]
    found = {}
    for step in plan.solver_steps:
        words = [site[step] for site in sites if step in site]  # a skipped call walks no blocks
        found[step] = words[0] if len(set(words)) == 1 else "+".join(words)
    return found


def visit(plan: PlanDocument, branch: Branch, wanted: set[str]) -> list[int]:
    """One step of every wanted kind, that with the most anchors, and all steps these build on."""
    reused = [forecasts(plan, site, branch) for site in plan.sites]

    def anchors(step: int) -> list[int]:
        return [anchor for steps in reused for anchor, _ in steps.get(step, ())]

    by_kind: dict[str, list[int]] = {}
    for step, kind in kinds(plan, branch).items():
        by_kind.setdefault(kind, []).append(step)
    open_ = [
        max(steps, key=lambda s: len(anchors(s))) for k, steps in by_kind.items() if k in wanted
    ]
    found: set[int] = set()
    while open_:
        step = open_.pop()
        if step not in found:
            found.add(step)
            open_ += anchors(step)
    return sorted(found)


def every_kind(plan: PlanDocument, branch: Branch) -> list[int]:
    """`visit` for all kinds but the plain call, and a corrected one; empty where no other is."""
    steps = visit(plan, branch, set(kinds(plan, branch).values()) - {"run"})
    return [*steps, *[step for step in corrections(plan, branch) if step > steps[-1]][:1]]


def held_anchors(plan: PlanDocument) -> HeldAnchors:
    """The anchors at the moment with the most deltas, then the most predictions.

    That is the moment with the most bytes wherever a delta (tokens x width) outweighs the few
    predictions (latent-sized); `bytes_held` makes no such assumption.
    """
    return max(_alive_anchors(plan), key=lambda held: (held.deltas, held.predictions))


def _alive_anchors(plan: PlanDocument) -> list[HeldAnchors]:
    """What is alive after every model call; an anchor dies with the last step that reuses it."""
    branches = len(plan.branches)
    change = [[0, 0] for _ in range(plan.steps * branches + 1)]
    for site in plan.sites:
        kind = 1 if site.kind == "prediction" else 0
        count = len(site.intervals) if site.kind == "intervals" else 1
        for order, branch in enumerate(plan.branches):
            for born, dies in anchor_lifetimes(plan, site, branch).items():
                change[born * branches + order][kind] += count
                # a correction's last anchor makes room before the new prediction is stored
                after = dies not in computes(plan, site, branch)
                change[dies * branches + order + after][kind] -= count
    totals = accumulate(change, lambda now, step: [now[0] + step[0], now[1] + step[1]])
    return [HeldAnchors(deltas, predictions) for deltas, predictions in totals]


def bytes_held(
    plan: PlanDocument,
    *,
    tokens: int,
    stream_itemsize: int,
    latent_numel: int,
    prediction_itemsize: int = 4,
) -> int:
    """Bytes of anchors at the worst moment; tokens and latent_numel are those of one process.

    tokens: of the residual stream, all samples of a batch together. HunyuanVideo's double blocks
    update image and text apart, its single blocks one joint stream: both are image + text tokens.
    With the plan's `storage_place` "host" they lie in host memory and take none of the device's.
    """
    half = plan.storage == "bfloat16"
    delta = tokens * plan.model.width * (2 if half else stream_itemsize)
    prediction = latent_numel * (2 if half else prediction_itemsize)
    moments = _alive_anchors(plan)
    return max(held.deltas * delta + held.predictions * prediction for held in moments)


def expected_cost(plan: PlanDocument, predicted_error: float | None = None) -> Expected:
    """The figures that a plan file carries in 'expected'."""
    return Expected(
        block_runs=block_runs(plan),
        block_runs_full=block_runs_full(plan),
        speedup_flops=round(speedup_flops(plan), 4),
        anchors=held_anchors(plan).formula(plan.model.width),
        predicted_error=predicted_error,
    )

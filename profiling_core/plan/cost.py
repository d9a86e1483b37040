"""What a plan costs and holds, known before the run: block runs, FLOPs, anchors, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from profiling_core.plan.schema import Checked

if TYPE_CHECKING:
    from profiling_core.plan import CachePlan
    from profiling_core.plan.plan import Site


class Expected(Checked):
    """What a plan file says of its cost; recomputed and compared on load."""

    block_runs: int
    block_runs_full: int
    speedup_flops: float
    anchors: str
    predicted_error: Annotated[float, Field(allow_inf_nan=False)] | None = None


@dataclass(frozen=True)
class HeldAnchors:
    """Anchors alive at the same time, at the worst moment of a run."""

    deltas: int  # each tokens x width elements
    predictions: int  # each as large as the latent

    def formula(self, width: int) -> str:
        return f"{self.deltas} x tokens x {width} + {self.predictions} x latent"


def block_runs(plan: CachePlan) -> int:
    """Blocks that run in one clip, over all steps and branches."""
    blocks, runs = sum(plan.model.block_lists.values()), 0
    for branch in plan.branches:
        prediction = plan.prediction
        calls = plan.computes(prediction, branch) if prediction else range(plan.steps)
        runs += blocks * len(calls)
        runs -= sum(s.blocks * len(plan.forecasts(s, branch)) for s in plan.interval_sites)
    return runs


def block_runs_full(plan: CachePlan) -> int:
    """The same without a cache."""
    return plan.steps * len(plan.branches) * sum(plan.model.block_lists.values())


def speedup_flops(plan: CachePlan) -> float:
    """Block runs of a full run over those of the plan: the ideal speed-up of the blocks."""
    return block_runs_full(plan) / block_runs(plan)


def block_share(plan: CachePlan, step: int, branch: str) -> float:
    """Share of one model call's blocks that run at this step, 0 to 1."""
    prediction = plan.prediction
    if prediction is not None and step not in plan.computes(prediction, branch):
        return 0.0
    reused = [site for site in plan.interval_sites if step not in plan.computes(site, branch)]
    blocks = sum(plan.model.block_lists.values())
    return (blocks - sum(site.blocks for site in reused)) / blocks


def held_anchors(plan: CachePlan) -> HeldAnchors:
    """The anchors at the moment with the most deltas, then the most predictions.

    That is the moment with the most bytes wherever a delta (tokens x width) outweighs the few
    predictions (latent-sized); `bytes_held` makes no such assumption.
    """
    return max(_alive_anchors(plan), key=lambda held: (held.deltas, held.predictions))


def _alive_anchors(plan: CachePlan) -> list[HeldAnchors]:
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
                after = dies not in plan.computes(site, branch)
                change[dies * branches + order + after][kind] -= count
    totals = accumulate(change, lambda now, step: [now[0] + step[0], now[1] + step[1]])
    return [HeldAnchors(deltas, predictions) for deltas, predictions in totals]


def anchor_lifetimes(plan: CachePlan, site: Site, branch: str) -> dict[int, int]:
    """For every compute step that is stored: the last step that reuses it or is corrected by it."""
    last_use: dict[int, int] = {}
    for step, forecast in sorted(plan.forecasts(site, branch).items()):
        for anchor, _ in forecast:
            last_use[anchor] = step
    if site is plan.prediction:
        for step, correction in plan.corrections(branch).items():
            for anchor, _ in correction[1:]:
                last_use[anchor] = max(step, last_use.get(anchor, step))
    return last_use


def bytes_held(
    plan: CachePlan,
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


def expected_cost(plan: CachePlan, predicted_error: float | None = None) -> Expected:
    """The figures that a plan file carries in 'expected'."""
    return Expected(
        block_runs=block_runs(plan),
        block_runs_full=block_runs_full(plan),
        speedup_flops=round(speedup_flops(plan), 4),
        anchors=held_anchors(plan).formula(plan.model.width),
        predicted_error=predicted_error,
    )


def summary_lines(
    plan: CachePlan,
    *,
    tokens: int | None = None,
    stream_itemsize: int = 4,
    latent_numel: int | None = None,
    prediction_itemsize: int = 4,
) -> list[str]:
    """What the plan computes, costs and holds, in a few lines for a log."""
    runs, full = block_runs(plan), block_runs_full(plan)
    lines = [
        f"plan {plan.name!r} for {plan.model.name}: {plan.provenance.source}",
        f"computes {runs} of {full} block runs ({100 * runs / full:.1f} %), "
        f"ideal speed-up of the blocks {speedup_flops(plan):.2f}x",
        *(f"  {line}" for line in site_lines(plan)),
    ]
    if plan.expected is not None and plan.expected.predicted_error is not None:
        guessed = plan.provenance.settings.get("sensitivity") == "default law"
        how = " (by the default law of sensitivity: record the model's own)" if guessed else ""
        error = plan.expected.predicted_error
        lines.append(f"predicted relative error of the latent {error:.4f}{how}")
    if tokens is not None and latent_numel is not None:
        held = bytes_held(
            plan,
            tokens=tokens,
            stream_itemsize=stream_itemsize,
            latent_numel=latent_numel,
            prediction_itemsize=prediction_itemsize,
        )
        lines.append(
            f"holds at most {format_bytes(held)} of anchors in {storage_words(plan)} "
            f"({held_anchors(plan).formula(plan.model.width)})"
        )
    else:
        formula = held_anchors(plan).formula(plan.model.width)
        lines.append(f"holds at most {formula} elements in {storage_words(plan)}")
    return lines


def storage_words(plan: CachePlan) -> str:
    """Where the anchors lie, and their type where it is not the stream's."""
    stored = ", as bfloat16" if plan.storage == "bfloat16" else ""
    return f"{plan.storage_place} memory{stored}"


def site_lines(plan: CachePlan) -> list[str]:
    """One line per site: what is reused, how often it is computed, how the rest is met."""
    lines = []
    for site in plan.sites:
        counts = [str(len(plan.computes(site, branch))) for branch in plan.branches]
        computed = counts[0] if len(set(counts)) == 1 else "/".join(counts)
        if site.kind == "intervals":
            runs = " ".join(_run(a, b) for a, b in site.intervals)
            what = f"{site.block_list} {runs} ({site.blocks} blocks)"
        else:
            what = "the whole prediction"
        lines.append(
            f"{what}: computed at {computed} of {plan.steps} steps, others {_SKIP[site.skip]}"
        )
    return lines or ["every step computes everything"]


_SKIP = {
    "hold": "reuse the last one",
    "linear": "forecast linearly in sigma",
    "weights": "forecast with the plan's weights",
    "corrected": "forecast linearly in sigma and corrected at the next computed step",
    "jump": "stepped over by the solver",
}


def picture(plan: CachePlan) -> list[str]:
    """A step-by-site picture: '#' computed and kept, '+' computed, '.' reused, '>' jumped."""
    rows: list[tuple[str, str]] = []
    for site in plan.sites:
        marks = {branch: _marks(plan, site, branch) for branch in plan.branches}
        alike = len(set(marks.values())) == 1
        for element in _element_names(site):
            if alike:
                rows.append((element, marks[plan.branches[0]]))
            else:
                rows += [(f"{element} {branch}", marks[branch]) for branch in plan.branches]
    margin = max((len(name) for name, _ in rows), default=0)
    tens = "".join(f"{step:<10}" for step in range(0, plan.steps, 10))[: plan.steps]
    key = "# computed and kept   + computed   . reused   > stepped over by the solver"
    return [f"{'step':<{margin}}  {tens}", *(f"{n:<{margin}}  {m}" for n, m in rows), "", key]


def _marks(plan: CachePlan, site: Site, branch: str) -> str:
    computed = plan.computes(site, branch)
    kept = anchor_lifetimes(plan, site, branch)
    skipped = ">" if site.skip == "jump" else "."
    return "".join(
        "#" if step in kept else "+" if step in computed else skipped for step in range(plan.steps)
    )


def _element_names(site: Site) -> list[str]:
    if site.kind != "intervals":
        return ["prediction"]
    return [f"{site.block_list} {_run(a, b)}" for a, b in site.intervals]


def _run(first: int, last: int) -> str:
    return f"{first}-{last}" if first != last else f"{first}"


def format_bytes(count: int) -> str:
    """Bytes with a binary unit, three significant digits."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"

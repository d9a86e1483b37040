"""A plan in words and as a picture, for logs and commands."""

from __future__ import annotations

from profiling_core.plan.cost import (
    block_runs,
    block_runs_full,
    bytes_held,
    held_anchors,
    speedup_flops,
)
from profiling_core.plan.schema import Branch, PlanDocument, Site
from profiling_core.plan.site_schedule import anchor_lifetimes, computes


def summary_lines(
    plan: PlanDocument,
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


def storage_words(plan: PlanDocument) -> str:
    """Where the anchors lie, and their type where it is not the stream's."""
    stored = ", as bfloat16" if plan.storage == "bfloat16" else ""
    return f"{plan.storage_place} memory{stored}"


def site_lines(plan: PlanDocument) -> list[str]:
    """One line per site: what is reused, how often it is computed, how the rest is met."""
    lines = []
    for site in plan.sites:
        counts = [str(len(computes(plan, site, branch))) for branch in plan.branches]
        computed = counts[0] if len(set(counts)) == 1 else "/".join(counts)
        if site.kind == "intervals":
            runs = " ".join(_run(a, b) for a, b in site.intervals)
            what = f"{site.block_list} {runs} ({site.blocks} blocks)"
        else:
            what = "the whole prediction"
        weighted = (
            " with the plan's weights" if site is plan.prediction and plan.solver_weights else ""
        )
        lines.append(
            f"{what}: computed at {computed} of {plan.steps} steps, others {_SKIP[site.skip]}"
            f"{weighted}"
        )
    return lines or ["every step computes everything"]


_SKIP = {
    "hold": "reuse the last one",
    "linear": "forecast by a line in log-SNR",
    "corrected": "forecast by a line in log-SNR and corrected at the next computed step",
    "jump": "stepped over by the solver",
}


def picture(plan: PlanDocument) -> list[str]:
    """A step-by-site picture: '#' computed and kept, '+' computed, '.' reused, '>' jumped."""
    rows: list[tuple[str, str]] = []
    for site in plan.sites:
        rows_of = {branch: marks(plan, site, branch) for branch in plan.branches}
        alike = len(set(rows_of.values())) == 1
        for element in _element_names(site):
            if alike:
                rows.append((element, rows_of[plan.branches[0]]))
            else:
                rows += [(f"{element} {branch}", rows_of[branch]) for branch in plan.branches]
    margin = max((len(name) for name, _ in rows), default=0)
    tens = "".join(f"{step:<10}" for step in range(0, plan.steps, 10))[: plan.steps]
    key = "# computed and kept   + computed   . reused   > stepped over by the solver"
    return [f"{'step':<{margin}}  {tens}", *(f"{n:<{margin}}  {m}" for n, m in rows), "", key]


def marks(plan: PlanDocument, site: Site, branch: Branch) -> str:
    """A character a step: what the site does there."""
    computed = computes(plan, site, branch)
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

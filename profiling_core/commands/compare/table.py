"""A comparison as Markdown: the paper's columns, the spread over clips, every clip."""

from __future__ import annotations

from collections.abc import Sequence

from profiling_core.commands.compare.rows import FULL, Clip
from profiling_core.commands.compare.summary import (
    IN_THE_PAPERS_TABLE,
    METRICS,
    Measured,
    Metric,
    Summary,
)
from profiling_core.plan.describe import format_bytes

Cells = list[list[str]]
MEANINGS = {
    "psnr_frames": "mean over frames of a frame's PSNR against the same frame of the full run, "
    "each capped at 100 dB",
    "psnr_pooled": "one PSNR of the squared error of the whole clip against the full run",
    "ssim": "mean over frames against the full run (scikit-image, Gaussian window of 11 pixels, "
    "sigma 1.5)",
    "lpips": "mean over frames against the full run (AlexNet, version 0.1, heads averaged over "
    "space)",
    "latent_error": "distance of the final latent from the full run's, over the length of that one",
    "motion": "energy of frame differences over the full run's: below 1 motion is lost",
    "flicker": "mean second difference in time over the full run's",
}
LATENCY = (
    "median seconds of the denoising loop, encoding and decoding left out, after a warm-up run"
)
SPEEDUP = (
    "median over clips of a full run's seconds over the plan's, both of one process: the full run "
    "of the same clip where that process took it, else the median of its full runs"
)
IDEAL = "block FLOPs of a full run over the plan's: what the blocks alone would allow"
MEMORY = "bytes of stored anchors at the worst moment"
SPREAD = "mean ± standard deviation over clips, in brackets the worst clip"
TENSORS = (
    "Every plan is compared with the full run of the same model, prompt, seed and settings, on "
    "tensors before any codec. A full run is no ground truth: another good clip would score badly."
)


def markdown(title: str, subject: Sequence[str], summary: Summary) -> str:
    """The whole document; subject: lines about model, clips and machine."""
    parts = [f"# {_escaped(title)}", "  \n".join(map(_escaped, subject)), TENSORS]
    parts += [f"**{_escaped(note)}**" for note in summary.notes]
    parts += ["## Methods", _table(*paper_table(summary)), *_meanings(summary)]
    if summary.plans:
        parts += ["## Spread over clips", f"{SPREAD.capitalize()}.", _table(*spread_table(summary))]
        parts += ["## Every clip", _table(*clip_table(summary))]
    return "\n\n".join(parts) + "\n"


def paper_table(summary: Summary) -> tuple[list[str], Cells]:
    """The columns of the paper's tables (means), and beside them the ideal and the clips."""
    metrics = [m for m in METRICS if m.field in IN_THE_PAPERS_TABLE]
    head = ["method", *(m.heading for m in metrics), "latency s ↓", "speed-up ↑", "ideal", "clips"]
    rows = []
    for one in (summary.full, *summary.plans):
        means = [_mean(one, metric) for metric in metrics]
        speed = [f"{one.seconds:.2f}", f"{one.speedup:.2f}x", f"{one.ideal:.2f}x"]
        rows.append([one.label, *means, *speed, str(len(one.rows))])
    return head, rows


def spread_table(summary: Summary) -> tuple[list[str], Cells]:
    """Mean, standard deviation and worst clip of every metric, one row a plan."""
    head = ["method", *(m.heading for m in summary.metrics), "extra memory", "clips"]
    rows = []
    for one in summary.plans:
        cells = [spread_cell(one, metric) for metric in summary.metrics]
        rows.append([one.label, *cells, format_bytes(one.bytes_held), str(len(one.rows))])
    return head, rows


def clip_table(summary: Summary) -> tuple[list[str], Cells]:
    """One row a clip and method, in the order of the clips."""
    head = ["prompt", "seed", "method", *(m.heading for m in summary.metrics), "s", "speed-up"]
    by_clip: dict[Clip, Cells] = {row.clip: [] for row in summary.full.rows}
    for one in (summary.full, *summary.plans):
        for row, speedup in zip(one.rows, one.speedups, strict=True):
            values = [m.show(getattr(row, m.field)) for m in summary.metrics]
            cells = [row.subject, str(row.seed), row.method, *values]
            by_clip.setdefault(row.clip, []).append(
                [*cells, f"{row.seconds:.2f}", f"{speedup:.2f}x"]
            )
    return head, [cells for clip in by_clip.values() for cells in clip]


def spread_cell(one: Measured, metric: Metric) -> str:
    spread = one.spread(metric)
    if spread is None:
        return "–"
    around = f"{metric.show(spread.mean)} ± {metric.show(spread.deviation)}"
    return f"{around} ({metric.show(spread.worst)})"


def meanings(summary: Summary) -> list[tuple[str, str]]:
    """Every column's name and what it is measured against."""
    found = [(m.title, MEANINGS[m.field]) for m in summary.metrics]
    found += [
        ("latency", LATENCY),
        ("speed-up", SPEEDUP),
        ("ideal", IDEAL),
        ("extra memory", MEMORY),
    ]
    if not any(m.field == "lpips" for m in summary.metrics):
        found.append(("LPIPS", "not measured: its weights were not given (--lpips-weights)"))
    return found


def _mean(one: Measured, metric: Metric) -> str:
    spread = None if one.label == FULL else one.spread(metric)
    return metric.show(spread.mean if spread else None)


def _meanings(summary: Summary) -> list[str]:
    return ["\n".join(f"- {name}: {text}" for name, text in meanings(summary))]


def _table(head: Sequence[str], rows: Cells) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: prompts come from anywhere."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text

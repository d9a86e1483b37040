"""One clip on several GPUs: what the ranks send, how long it takes, what is left of the speed-up.

    python -m benchmarks.speed.scaling       # fits, predictions, figure; memory of every rank

The model (scaling_model.py) is fitted to published seconds, set against the paper's sixteen
speed-ups, and then asked about our plans. Nothing of it was measured on a GPU here. The rows of
results/scaling.jsonl (the miniatures on 1 and 2 processes of one CPU) were made by
benchmarks/scaling_local.py at commit 48c2bd2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.lib.rows import load_rows, save_figure, table
from benchmarks.speed.full_models import WAN_14B as WAN_14B_SIZES
from benchmarks.speed.scaling_model import (
    GPUS,
    H100,
    HUNYUAN,
    PUBLISHED_SECONDS,
    PUBLISHED_SPEEDUPS,
    WAN_14B,
    Clip,
    Fit,
    PaperFit,
    clip_seconds,
    fit_paper,
    fit_seconds,
    loop_seconds,
    sent,
    speedups,
)
from profiling_core.parallel.degrees import Degrees
from profiling_core.plan.cost import bytes_held
from profiling_core.runtime.options import resolve_plan
from wan.model import WanModel

PARTS = ("model", "memory")
SPEEDUP = 2.0  # of `balanced`
PREDICTED = (
    (HUNYUAN, Clip(720, 1280, 129)),
    (WAN_14B, Clip(720, 1280, 81)),
    (WAN_14B, Clip(480, 832, 81)),
)
DEGREES = (
    Degrees(ulysses=8),
    Degrees(ulysses=4, ring=2),
    Degrees(ring=8),
    Degrees(ulysses=4, cfg=2),
)

GB = 1e9
ENCODER = 5_680_910_336 * 2  # bytes of the official text encoder, bf16
PLANS = ("release", "paper", "balanced")


def main() -> int:
    args = build_parser().parse_args()
    if "model" in args.parts:
        fit = fit_seconds()
        paper = fit_paper(fit)
        sys.stdout.write("\n\n".join(shown(fit, paper)) + "\n")
        for path in draw(fit, paper, args.out):
            sys.stderr.write(f"drew {path}\n")
    if "memory" in args.parts:
        sys.stdout.write(f"\n{memory_table(Clip(480, 832, 81))}\n")
    if rows := load_rows("scaling"):
        sys.stdout.write(f"\n{local_table(rows)}\n")
    return 0


def local_table(rows: list[dict]) -> str:
    latest = {(row["tree"], row["processes"]): row for row in rows}
    lines = []
    for (tree, count), row in sorted(latest.items()):
        seconds = (f"{row[name]:.2f}" for name in ("full_seconds", "plan_seconds"))
        lines.append([tree, str(count), *seconds, f"{row['speedup']:.2f}x"])
    return table(["tree", "processes", "full, s", "balanced, s", "speed-up"], lines)


def shown(fit: Fit, paper: PaperFit) -> Iterator[str]:
    """All tables of the model."""
    reached = f"{fit.compute:.0%} of the matmul rate, {fit.link:.0%} of the link"
    header = [f"HunyuanVideo 720p, 129 frames, seconds ({reached})", *map(str, GPUS)]
    found = {"published, H100": PUBLISHED_SECONDS, "model": fit.seconds}
    yield table(header, [[name, *(f"{s:.0f}" for s in of)] for name, of in found.items()])
    words = f"the paper's speed-ups; model: {paper.speedup:.2f}x of the blocks"
    lines = []
    for clip, published in PUBLISHED_SPEEDUPS.items():
        lines.append([f"{clip}: published", *(f"{s:.2f}" for s in published)])
        lines.append(["model", *(f"{s:.2f}" for s in paper.modelled[clip])])
    yield table([words, *map(str, GPUS)], lines)
    header = [f"predicted, {SPEEDUP:g}x plan", *map(str, GPUS), "8 over 1"]
    yield table(header, list(_predicted(fit)))
    yield table(["one call, MB sent by each of 8 ranks", *map(_words, DEGREES)], list(_sent()))
    yield table(["loop seconds, 8 H100", *map(_words, DEGREES)], list(_loops(fit)))
    heads = [f"{n} GPUs a clip" for n in GPUS]
    yield table([f"8 H100, {SPEEDUP:g}x plan: seconds of a clip", *heads], list(_clips(fit)))
    yield table([f"8 H100, {SPEEDUP:g}x plan: clips an hour", *heads], list(_clips(fit, 8)))


def _predicted(fit: Fit) -> Iterator[list[str]]:
    machine = fit.machine(H100)
    for model, clip in PREDICTED:
        loops = [
            loop_seconds(model, clip, Degrees(ulysses=n), machine)
            / loop_seconds(model, clip, Degrees(ulysses=n), machine, SPEEDUP)
            for n in GPUS
        ]
        found = {"loop": loops}
        for words, shared in (("decode on rank 0", False), ("decode on all", True)):
            found[words] = speedups(model, clip, machine, fit.rest, SPEEDUP, shared=shared)
        for words, values in found.items():
            cells = [f"{value:.2f}x" for value in values]
            yield [f"{model.name} {clip}: {words}", *cells, f"{values[-1] / values[0]:.1%}"]


def _sent() -> Iterator[list[str]]:
    for model, clip in PREDICTED:
        cells = [f"{sent(model, clip, degrees) / 1e6:.0f}" for degrees in DEGREES]
        yield [f"{model.name} {clip}", *cells]


def _loops(fit: Fit) -> Iterator[list[str]]:
    for model, clip in PREDICTED:
        fitting = [one if one.cfg <= model.branches else None for one in DEGREES]
        seconds = [one and loop_seconds(model, clip, one, fit.machine(H100)) for one in fitting]
        yield [f"{model.name} {clip}", *("-" if s is None else f"{s:.0f}" for s in seconds)]


def _clips(fit: Fit, gpus: int = 0) -> Iterator[list[str]]:
    """Seconds of one clip on 1, 2, 4 and 8 GPUs; gpus: clips an hour that so many make instead."""
    machine = fit.machine(H100)
    for model, clip in PREDICTED:
        cells = []
        for n in GPUS:
            degrees = Degrees(ulysses=n)
            how = {"speedup": SPEEDUP, "shared": True}
            seconds = clip_seconds(model, clip, degrees, machine, fit.rest, **how)
            cells.append(f"{gpus / n * 3600 / seconds:.1f}" if gpus else f"{seconds:.0f}")
        yield [f"{model.name} {clip}", *cells]


def _words(degrees: Degrees) -> str:
    counts = {name: getattr(degrees, name) for name in ("ulysses", "ring", "cfg")}
    return " x ".join(f"{name} {count}" for name, count in counts.items() if count > 1)


def memory_table(clip: Clip) -> str:
    """GB on each of so many Ulysses ranks with FSDP; anchors of the rank's own tokens."""
    with torch.device("meta"):
        model = WanModel(**WAN_14B_SIZES)
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    rest = sum(p.numel() for p in model.parameters()) - sum(blocks)
    lines = [
        ["transformer's share, fp32", *((sum(blocks) + rest) * 4 / n for n in GPUS)],
        ["gathered: embeddings and head, fp32", *([0.0] + [rest * 4] * 3)],
        ["gathered: one block, bf16", *([0.0] + [blocks[0] * 2] * 3)],
        ["text encoder's share", *(ENCODER / n for n in GPUS)],
    ]
    for preset in PLANS:
        plan = resolve_plan(preset, "wan2.1-t2v-14B")
        latent = 16 * clip.latents * (clip.height // 8) * (clip.width // 8)
        sizes = {"stream_itemsize": 4, "latent_numel": latent}
        held = [bytes_held(plan, tokens=-(-clip.tokens // n), **sizes) for n in GPUS]
        lines.append([f"anchors of `{preset}`", *held])
    header = [f"Wan2.1 14B, {clip}: GB a rank", *map(str, GPUS)]
    return table(header, [[name, *(f"{n / GB:.2f}" for n in sizes)] for name, *sizes in lines])


def draw(fit: Fit, paper: PaperFit, out: Path) -> list[Path]:
    """Left: the paper's speed-ups and the model; right: ours, predicted."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = ("C0", "C1", "C2", "C3")
    for colour, (clip, published) in zip(colours, PUBLISHED_SPEEDUPS.items(), strict=True):
        left.plot(GPUS, published, "o", color=colour, label=str(clip))
        left.plot(GPUS, paper.modelled[clip], "-", color=colour)
    left.set_title("HunyuanVideo, the paper's plan: published (dots), model (lines)", fontsize=10)
    machine = fit.machine(H100)
    for colour, (model, clip) in zip(colours, PREDICTED, strict=False):
        for shared, style in ((True, "-"), (False, ":")):
            values = speedups(model, clip, machine, fit.rest, SPEEDUP, shared=shared)
            where = "all ranks" if shared else "rank 0"
            label = f"{model.name}, {clip.width}x{clip.height}, decode on {where}"
            right.plot(GPUS, values, style, color=colour, marker=".", label=label)
    right.set_title(f"predicted: a plan of {SPEEDUP:g}x, H100", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, map(str, GPUS))
        axes.set_xlabel("GPUs")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower left")
    left.set_ylabel("speed-up end to end")
    return save_figure(figure, out / "scaling", dpi=130)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("out/scaling"))
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""One prompt per tree on its bundled miniature: in full, with the paper's plan, and with ours.

Writes <tree>_full.mp4, <tree>_paper.mp4, <tree>_balanced.mp4 and <tree>_contact_sheet.png, and
prints what each cost and kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import matplotlib
import torch

from common import TREES, append_row, default_device, device_name, environment, quiet_log, table
from pipelines import BUILD, RunStats, Tree, to_frames
from profiling_core.cost import format_bytes
from profiling_core.metrics import Quality, compare

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RUNS = {"full": None, "paper": "paper", "balanced": "balanced"}
COLUMNS = 8
NOTES = """\
seconds: the denoising loop; ratio: full / run; ideal: block runs of full / run; PSNR (mean over
frames) and SSIM against the full run, before the codec; held: anchors at most
"""


@dataclass(frozen=True)
class Clip:
    """One run: its video, statistics with the median seconds, quality against the full run."""

    name: str
    video: torch.Tensor
    stats: RunStats
    quality: Quality | None = None

    @property
    def ideal(self) -> float:
        return self.stats.block_runs_full / self.stats.block_runs  # all blocks cost the same


def main() -> int:
    args = build_parser().parse_args()
    quiet_log()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    device, titles, lines = default_device(), [], []
    for name in args.trees:
        tree = BUILD[name](device)
        prompt = args.prompt or tree.prompt
        clips = run_all(tree, prompt, args.seed, args.rounds)
        for clip in clips:
            tree.save(clip.video, out / f"{name}_{clip.name}.mp4")
        contact_sheet(clips, out / f"{name}_contact_sheet.png", prompt)
        titles.append(f"{name}: {prompt!r}, seed {args.seed}, {clips[0].stats.steps} steps")
        lines += [cells(name, clip, clips[0]) for clip in clips]
        if args.record:
            found = {"prompt": prompt, "seed": args.seed, "rounds": args.rounds}
            for clip in clips:
                append_row("demo", {**row(name, clip, clips[0]), **found, **environment(device)})
    header = ["tree", "run", "seconds", "ratio", "ideal", "PSNR dB", "SSIM", "held"]
    files = ", ".join(sorted(path.name for path in out.glob("*_*.*")))
    sys.stdout.write(
        "\n".join(["", *titles, device_name(device), NOTES, table(header, lines), ""])
        + f"\nin {out}: {files}\n"
    )
    return 0


def run_all(tree: Tree, prompt: str, seed: int, rounds: int) -> list[Clip]:
    """The full run and the plans, alternating; the same prompt and noise for all."""
    inputs = tree.inputs(prompt, seed)
    tree.denoise(inputs, steps=2)  # warms up
    latents, stats, seconds = {}, {}, {name: [] for name in RUNS}
    for number in range(rounds):
        for name in RUNS if number % 2 == 0 else reversed(RUNS):
            sys.stderr.write(f"{tree.name} {name}\n")
            plan = tree.plan(RUNS[name])
            latents[name] = tree.denoise(inputs, plan, progress=sys.stderr.isatty())
            stats[name] = tree.last_run
            seconds[name].append(tree.last_run.denoise_seconds)
    reference = tree.decode(latents["full"])
    clips = []
    for name in RUNS:
        video = reference if name == "full" else tree.decode(latents[name])
        quality = None if name == "full" else compare(video, reference)
        taken = replace(stats[name], denoise_seconds=median(seconds[name]))
        clips.append(Clip(name, video, taken, quality))
    return clips


def row(tree: str, clip: Clip, full: Clip) -> dict:
    """What the table shows, in numbers."""
    seconds = clip.stats.denoise_seconds
    quality = clip.quality.as_row() if clip.quality else {}
    return {
        "tree": tree,
        "run": clip.name,
        "solver": clip.stats.solver,
        "steps": clip.stats.steps,
        "seconds": round(seconds, 3),
        "ratio": round(full.stats.denoise_seconds / seconds, 3),
        "ideal": round(clip.ideal, 4),
        **{name: round(value, 4) for name, value in quality.items()},
        "bytes_held": clip.stats.cache_peak_bytes,
    }


def cells(tree: str, clip: Clip, full: Clip) -> list[str]:
    """The clip's line of the table."""
    found = row(tree, clip, full)
    return [
        tree,
        clip.name,
        f"{found['seconds']:.2f}",
        f"{found['ratio']:.2f}x",
        f"{found['ideal']:.2f}x",
        f"{clip.quality.psnr_frames:.1f}" if clip.quality else "-",
        f"{clip.quality.ssim:.4f}" if clip.quality else "-",
        format_bytes(found["bytes_held"]),
    ]


def contact_sheet(clips: list[Clip], path: Path, prompt: str) -> None:
    """Rows: the full run, each plan, its difference to the full run times 4."""
    reference = clips[0].video
    rows = [("full", to_frames(reference))]
    for clip in clips[1:]:
        rows.append((clip.name, to_frames(clip.video)))
        difference = ((clip.video - reference).abs() * 4).clamp(0, 2) - 1
        rows.append((f"{clip.name}\n|difference| x 4", to_frames(difference)))
    picks = torch.linspace(0, reference.shape[1] - 1, COLUMNS).round().int().tolist()
    size = (COLUMNS * 1.5 + 0.6, len(rows) * 1.5 + 0.7)
    figure, axes = plt.subplots(len(rows), COLUMNS, figsize=size, layout="constrained")
    for (label, frames), line in zip(rows, axes, strict=True):
        for frame, axis in zip(picks, line, strict=True):
            axis.imshow(frames[frame])
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label, fontsize=8)
    for frame, axis in zip(picks, axes[0], strict=True):
        axis.set_title(f"frame {frame}", fontsize=8)
    figure.suptitle(prompt, fontsize=10)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    os.replace(temporary, path)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--prompt", help="for all trees; default: each tree's own")
    parser.add_argument("--seed", type=int, default=42, help="of the noise, drawn on the CPU")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions; the median is shown")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--out", default="out/demo")
    parser.add_argument("--record", action="store_true", help="append rows to results/demo.jsonl")
    return parser


if __name__ == "__main__":
    sys.exit(main())

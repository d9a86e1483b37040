"""One prompt per tree on its bundled miniature: in full, with the paper's plan, and with ours.

Writes <tree>_full.mp4, <tree>_paper.mp4, <tree>_balanced.mp4 and <tree>_contact_sheet.png, and
prints what each cost and kept.

    make demo
    python examples/demo.py --trees wan --rounds 3
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from profiling_core.parallel.degrees import thread_count, thread_settings, usable_cpus

os.environ.update(thread_settings())  # before torch is imported

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from profiling_core.engine.run_stats import RunStats
from profiling_core.errors import UserError
from profiling_core.files import whole_file
from profiling_core.metrics import Quality, compare
from profiling_core.plan.describe import format_bytes
from profiling_core.runtime.terminal import printable, write_to
from profiling_core.runtime.video_file import check_target
from profiling_core.trees.registry import TREES, tree_class
from profiling_core.trees.tree_model import ModelRequest, TreeModel

plt.rcParams["text.parse_math"] = False  # a prompt may hold dollars
PROMPTS = {
    "wan": "red circle moving right over blue stripes",
    "hunyuan": "blue star moving left over red checks",
}
RUNS = {"full": None, "paper": "paper", "balanced": "balanced"}
COLUMNS = 8
NOTES = """\
seconds: the denoising loop; ratio: full / run; ideal: block runs of full / run; PSNR (mean over
frames) and SSIM against the full run, before the codec;
extra memory: anchors at most
"""
NOISE = "* above the ideal: noise of the machine, fewer with more --rounds"


@dataclass(frozen=True)
class Run:
    """One clip: its video, statistics with the median seconds, quality against the full run."""

    name: str
    video: torch.Tensor
    stats: RunStats
    quality: Quality | None = None

    @property
    def ideal(self) -> float:
        return self.stats.block_runs_full / self.stats.block_runs  # all blocks cost the same

    def ratio(self, full: Run) -> float:
        return full.stats.denoise_seconds / self.stats.denoise_seconds


def main() -> int:
    """Exit code 0, or 2 after one line on stderr for what the user can put right."""
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    out, titles, lines = Path(args.out), [], []
    try:
        check_target(out / "clip.mp4", "--out", still=False)
        for name in args.trees:
            prompt = args.prompt or PROMPTS[name]
            tree = load(name, prompt)
            runs = run_all(name, tree, prompt, args.seed, args.rounds)
            for run in runs:
                tree.save(run.video, out / f"{name}_{run.name}.mp4")
            contact_sheet(runs, out / f"{name}_contact_sheet.png", prompt)
            titles.append(f"{name}: {prompt!r}, seed {args.seed}, {runs[0].stats.steps} steps")
            lines += [cells(name, run, runs[0]) for run in runs]
    except (UserError, OSError) as error:
        write_to(sys.stderr, f"error: {printable(str(error))}\n")
        return 2
    files = ", ".join(sorted(path.name for path in out.glob("*_*.*")))
    text = ["", *titles, device_name(), NOTES, table(lines), f"\nin {out}: {files}\n"]
    write_to(sys.stdout, "\n".join(text))
    return 0


def load(name: str, prompt: str) -> TreeModel:
    """A tree on its miniature, as its own command line loads it."""
    kind = tree_class(name)
    tree = kind(ModelRequest(model=kind.miniature), prompt)
    tree.load()
    return tree


def run_all(name: str, tree: TreeModel, prompt: str, seed: int, rounds: int) -> list[Run]:
    """The full run and the plans, alternating; the same prompt and noise for all."""
    inputs = tree.inputs(prompt, seed)
    tree.denoise(inputs, steps=2)  # warms up
    latents, stats, seconds = {}, {}, {run: [] for run in RUNS}
    for number in range(rounds):
        for run in RUNS if number % 2 == 0 else reversed(RUNS):
            latents[run] = tree.denoise(inputs, tree.plan(RUNS[run]))
            stats[run], taken = tree.last_run, tree.last_run.denoise_seconds
            seconds[run].append(taken)
            sys.stderr.write(f"{name} {run}, {number + 1}/{rounds}: {taken:.1f} s\n")
            sys.stderr.flush()
    reference, found = tree.decode(latents["full"]), []
    for run in RUNS:
        video = reference if run == "full" else tree.decode(latents[run])
        quality = None if run == "full" else compare(video, reference)
        found.append(
            Run(run, video, replace(stats[run], denoise_seconds=median(seconds[run])), quality)
        )
    return found


def cells(tree: str, run: Run, full: Run) -> list[str]:
    """The run's line of the table; a ratio that rounds to more than the ideal has a star."""
    ratio, ideal = f"{run.ratio(full):.2f}", f"{run.ideal:.2f}"
    return [
        tree,
        run.name,
        f"{run.stats.denoise_seconds:.2f}",
        f"{ratio}x*" if float(ratio) > float(ideal) else f"{ratio}x",
        f"{ideal}x",
        f"{run.quality.psnr_frames:.1f}" if run.quality else "-",
        f"{run.quality.ssim:.4f}" if run.quality else "-",
        format_bytes(run.stats.peak_bytes),
    ]


def table(lines: list[list[str]]) -> str:
    """Plain text columns, and what a star means where there is one."""
    header = ["tree", "run", "seconds", "ratio", "ideal", "PSNR dB", "SSIM", "extra memory"]
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, ["-" * width for width in widths], *lines]
    ]
    starred = any("*" in cell for line in lines for cell in line)
    return "\n".join([*text, *([NOISE] if starred else [])])


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def contact_sheet(runs: list[Run], path: Path, prompt: str) -> None:
    """Rows: the full run, each plan, its difference to the full run times 4."""
    reference = runs[0].video
    rows = [("full", reference)]
    for run in runs[1:]:
        difference = ((run.video - reference).abs() * 4).clamp(0, 2) - 1
        rows += [(run.name, run.video), (f"{run.name}\n|difference| x 4", difference)]
    picks = torch.linspace(0, reference.shape[1] - 1, COLUMNS).round().int().tolist()
    size = (COLUMNS * 1.5 + 0.6, len(rows) * 1.5 + 0.7)
    figure, axes = plt.subplots(len(rows), COLUMNS, figsize=size, layout="constrained")
    for (label, video), line in zip(rows, axes, strict=True):
        frames = ((video.clamp(-1, 1) + 1) / 2).permute(1, 2, 3, 0).numpy()  # (F, H, W, 3)
        for frame, axis in zip(picks, line, strict=True):
            axis.imshow(frames[frame])
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label, fontsize=8)
    for frame, axis in zip(picks, axes[0], strict=True):
        axis.set_title(f"frame {frame}", fontsize=8)
    figure.suptitle(prompt, fontsize=10)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", nargs="+", choices=list(TREES), default=list(TREES))
    parser.add_argument("--prompt", help="for all trees; default: each tree's own")
    parser.add_argument("--seed", type=int, default=42, help="of the noise, drawn on the CPU")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions; the median is shown")
    parser.add_argument("--threads", type=int, default=thread_count(min(usable_cpus(), 8)))
    parser.add_argument("--out", default="out/demo")
    return parser


if __name__ == "__main__":
    sys.exit(main())

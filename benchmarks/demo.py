"""One prompt on the bundled miniature: in full, with the paper's plan, and with ours.

Writes full.mp4, paper.mp4, balanced.mp4 and a contact sheet, and prints what each cost and kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import matplotlib
import torch

from common import default_device, device_name, quiet_log, table
from profiling_core.cost import format_bytes, speedup_flops
from profiling_core.metrics import Quality, compare
from profiling_core.options import resolve_plan

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from wan.configs import CONFIGS, parse_size
from wan.text2video import RunStats, WanT2V, plan_for_run
from wan.video import save_video, to_frames

PLANS = (None, "paper", "balanced")
COLUMNS = 8


def main() -> int:
    args = parse_arguments()
    quiet_log()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    config = CONFIGS["t2v-mini"]
    pipeline = WanT2V(config, config.ckpt_dir, default_device())
    clips = run_all(pipeline, args)
    for name, (video, _, _) in clips.items():
        save_video(video, out / f"{name}.mp4", config.sample_fps)
    reference = clips["full"][0]
    quality = {
        name: compare(video.cpu(), reference.cpu())
        for name, (video, _, _) in clips.items()
        if name != "full"
    }
    contact_sheet(clips, out / "contact_sheet.png", args.prompt)
    sys.stdout.write(report(clips, quality, args, pipeline.device, out))
    return 0


def run_all(
    pipeline: WanT2V, args: argparse.Namespace
) -> dict[str, tuple[torch.Tensor, RunStats, float]]:
    """Per plan: the decoded clip, its statistics with the median seconds, the ideal ratio."""
    config = pipeline.config
    context, context_null = pipeline.encode([args.prompt, config.sample_neg_prompt])
    shape = config.latent_shape(parse_size(config.default_size), config.frame_num)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(args.seed))
    settings = {
        "shift": config.sample_shift,
        "sample_solver": "unipc",
        "guide_scale": config.sample_guide_scale,
    }
    pipeline.denoise(context, context_null, noise, **settings, sampling_steps=2, progress=False)
    latents, stats, seconds, ideals = {}, {}, {}, {}
    for number in range(args.rounds):
        for value in PLANS if number % 2 == 0 else reversed(PLANS):
            name = value or "full"
            sys.stderr.write(f"{name}\n")
            plan = resolve_plan(value, config.plan_model)
            latents[name] = pipeline.denoise(
                context,
                context_null,
                noise,
                **settings,
                sampling_steps=config.sample_steps,
                plan=plan,
                progress=sys.stderr.isatty(),
            )
            stats[name] = pipeline.last_run
            seconds.setdefault(name, []).append(pipeline.last_run.denoise_seconds)
            carried = plan and plan_for_run(plan, "unipc", config.sample_steps, settings["shift"])
            ideals[name] = speedup_flops(carried) if carried else 1.0
    return {
        name: (
            pipeline.decode(latents[name]),
            replace(stats[name], denoise_seconds=median(seconds[name])),
            ideals[name],
        )
        for name in latents
    }


def report(
    clips: dict[str, tuple[torch.Tensor, RunStats, float]],
    quality: dict[str, Quality],
    args: argparse.Namespace,
    device: torch.device,
    out: Path,
) -> str:
    """The table and the names of the files."""
    full = clips["full"][1].denoise_seconds
    rows = []
    for name, (_, run, ideal) in clips.items():
        q = quality.get(name)
        rows.append(
            [
                name,
                f"{run.denoise_seconds:.2f}",
                f"{full / run.denoise_seconds:.2f}x",
                f"{ideal:.2f}x",
                f"{q.psnr_frames:.1f}" if q else "-",
                f"{q.ssim:.4f}" if q else "-",
                format_bytes(run.cache_peak_bytes),
            ]
        )
    header = ["run", "seconds", "ratio", "ideal", "PSNR dB", "SSIM", "held"]
    files = ", ".join(f"{name}.mp4" for name in clips)
    return (
        f"\n{args.prompt!r}, seed {args.seed}, 50 UniPC steps, {device_name(device)}\n"
        "seconds: the denoising loop; ratio: full / run; ideal: by block FLOPs; PSNR (mean over\n"
        "frames) and SSIM against the full run, before the codec; held: anchors at most\n\n"
        f"{table(header, rows)}\n\nin {out}: {files}, contact_sheet.png\n"
    )


def contact_sheet(
    clips: dict[str, tuple[torch.Tensor, RunStats, float]], path: Path, prompt: str
) -> None:
    """Rows: the full run, each plan, its difference to the full run times 4."""
    reference = clips["full"][0]
    rows = [("full", to_frames(reference))]
    for name, (video, _, _) in clips.items():
        if name != "full":
            rows.append((name, to_frames(video)))
            difference = ((video - reference).abs() * 4).clamp(0, 2) - 1
            rows.append((f"{name}\n|difference| x 4", to_frames(difference)))
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


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="red circle moving right over blue stripes")
    parser.add_argument("--seed", type=int, default=42, help="of the noise, drawn on the CPU")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions; the median is shown")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--out", default="out/demo")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

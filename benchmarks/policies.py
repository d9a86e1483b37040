"""The shipped plans on held-out prompts of the miniature, beside fewer steps of the same solver.

Every row is one prompt, seed, solver and policy: quality of the decoded clip against the 50-step
run of the same solver, and the share of block runs. Rows go to results/policies.jsonl.
"""

from __future__ import annotations

import argparse
import os
import sys
from statistics import mean, pstdev

import torch

from common import ROOT, append_row, default_device, environment, quiet_log, table
from profiling_core.metrics import compare, latent_error
from profiling_core.options import resolve_plan
from wan.configs import CONFIGS, parse_size
from wan.text2video import WanT2V

sys.path.insert(0, str(ROOT))
from miniatures.clips import held_out_prompts

PRESETS = ("release", "paper", "balanced")


def main() -> int:
    args = parse_arguments()
    quiet_log()
    torch.set_num_threads(args.threads)
    config = CONFIGS["t2v-mini"]
    pipeline = WanT2V(config, config.ckpt_dir, default_device())
    found = environment(pipeline.device)
    rows = []
    for number, prompt in enumerate(held_out_prompts(args.prompts)):
        for solver in args.solvers:
            new = one_prompt(pipeline, prompt, args.seed + number, solver)
            for row in new:
                append_row("policies", {**row, **found})
            rows += new
            sys.stderr.write(f"{number + 1}/{args.prompts} {solver}: {prompt}\n")
    sys.stdout.write(summary(rows) + "\n")
    return 0


def one_prompt(pipeline: WanT2V, prompt: str, seed: int, solver: str) -> list[dict]:
    """Rows of all policies for one prompt."""
    config = pipeline.config
    contexts = pipeline.encode([prompt, config.sample_neg_prompt])
    shape = config.latent_shape(parse_size(config.default_size), config.frame_num)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def run(steps: int = config.sample_steps, plan: str | None = None) -> torch.Tensor:
        return pipeline.denoise(
            *contexts,
            noise,
            shift=config.sample_shift,
            sample_solver=solver,
            guide_scale=config.sample_guide_scale,
            sampling_steps=steps,
            plan=resolve_plan(plan, config.plan_model),
            progress=False,
        )

    full = run()
    reference, blocks = pipeline.decode(full), pipeline.last_run.block_runs_full
    rows = []
    for policy, options in policies(config.plan_model, config.sample_steps).items():
        latent = run(**options)
        quality = compare(pipeline.decode(latent).cpu(), reference.cpu())
        rows.append(
            {
                "policy": policy,
                "solver": solver,
                "prompt": prompt,
                "seed": seed,
                "block_share": round(pipeline.last_run.block_runs / blocks, 4),
                "bytes_held": pipeline.last_run.cache_peak_bytes,
                "latent_error": round(latent_error(latent.cpu(), full.cpu()), 5),
                **{key: round(value, 4) for key, value in quality.as_row().items()},
            }
        )
    return rows


def policies(model: str, steps: int) -> dict[str, dict]:
    """The shipped plans, and for each cost the same solver with fewer steps."""
    found: dict[str, dict] = {}
    for preset in PRESETS:
        cost = resolve_plan(preset, model).expected
        fewer = round(steps * cost.block_runs / cost.block_runs_full)
        found[preset] = {"plan": preset}
        found[f"{fewer} steps"] = {"steps": fewer}
    return found


def summary(rows: list[dict]) -> str:
    """Mean, standard deviation and worst prompt per solver and policy."""
    lines = []
    for solver in sorted({row["solver"] for row in rows}, reverse=True):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            of = [r for r in rows if r["policy"] == policy and r["solver"] == solver]
            psnr = [row["psnr_frames"] for row in of]
            lines.append(
                [
                    solver,
                    policy,
                    f"{1 / mean(row['block_share'] for row in of):.2f}x",
                    f"{mean(psnr):.1f} +-{pstdev(psnr):.1f} ({min(psnr):.1f})",
                    f"{mean(row['psnr_pooled'] for row in of):.1f}",
                    f"{mean(row['ssim'] for row in of):.4f}",
                    f"{mean(row['latent_error'] for row in of):.3f}",
                    f"{mean(row['motion'] for row in of):.2f}",
                    f"{mean(row['flicker'] for row in of):.2f}",
                    str(len(of)),
                ]
            )
    header = ["solver", "policy", "ideal", "PSNR frames (worst)", "pooled", "SSIM"]
    return table([*header, "latent error", "motion", "flicker", "n"], lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=100, help="of the first prompt's noise")
    parser.add_argument("--solvers", nargs="+", default=["unipc", "dpm++"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

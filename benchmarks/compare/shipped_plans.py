"""The shipped plans on held-out prompts of the miniatures, beside fewer steps of the same solver.

Every row is one tree, prompt, seed, solver and policy: quality of the decoded clip against the
50-step run of the same solver, and the share of block runs. Rows go to results/policies.jsonl.
"""

from __future__ import annotations

import sys
from statistics import mean

import torch

from benchmarks.lib.clips import Tree, load
from benchmarks.lib.command_line import Parser, log
from benchmarks.lib.rows import (
    TREES,
    append_row,
    default_device,
    environment,
    quality_row,
    spread,
    table,
)
from miniatures.clips import held_out_prompts
from profiling_core.metrics import latent_error
from profiling_core.plan.presets import available
from profiling_core.trees.registry import TREES as ADAPTERS

SOLVERS = [solver for tree in ADAPTERS.values() for solver in tree.solvers]


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    device, rows = default_device(), []
    found = environment(device)
    for name in args.trees:
        tree = load(name)
        solvers = [solver for solver in tree.solvers if solver in args.solvers]
        for number, prompt in enumerate(held_out_prompts(args.prompts)):
            for solver in solvers:
                new = one_prompt(tree, prompt, args.seed + number, solver)
                for row in new:
                    append_row("policies", {**row, **found})
                rows += new
                log(f"{name} {number + 1}/{args.prompts} {solver}: {prompt}")
    sys.stdout.write(summary(rows) + "\n")
    return 0


def one_prompt(tree: Tree, prompt: str, seed: int, solver: str) -> list[dict]:
    """Rows of all policies for one prompt."""
    inputs = tree.inputs(prompt, seed)
    full = tree.denoise(inputs, solver=solver)
    reference, blocks = tree.decode(full), tree.last_run.block_runs_full
    rows = []
    for policy, (preset, steps) in policies(tree).items():
        latent = tree.denoise(inputs, tree.plan(preset), steps=steps, solver=solver)
        rows.append(
            {
                "tree": tree.name,
                "policy": policy,
                "solver": solver,
                "prompt": prompt,
                "seed": seed,
                "block_share": round(tree.last_run.block_runs / blocks, 4),
                "bytes_held": tree.last_run.peak_bytes,
                "latent_error": round(latent_error(latent.cpu(), full.cpu()), 5),
                **quality_row(tree.decode(latent), reference),
            }
        )
    return rows


def policies(tree: Tree) -> dict[str, tuple[str | None, int | None]]:
    """The shipped plans, and for each cost the same solver with fewer steps: (preset, steps)."""
    found: dict[str, tuple[str | None, int | None]] = {}
    for preset in available(tree.plan_model):
        cost = tree.plan(preset).expected
        fewer = round(tree.steps * cost.block_runs / cost.block_runs_full)
        found[preset] = (preset, None)
        found[f"{fewer} steps"] = (None, fewer)
    return found


def summary(rows: list[dict]) -> str:
    """Mean, standard deviation and worst prompt per tree, solver and policy."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["tree"], row["solver"], row["policy"]), []).append(row)
    lines = []
    for key in sorted(groups, key=lambda key: (TREES.index(key[0]), SOLVERS.index(key[1]))):
        of = groups[key]
        psnr = [row["psnr_frames"] for row in of]
        lines.append(
            [
                *key,
                f"{1 / mean(row['block_share'] for row in of):.2f}x",
                spread(psnr),
                f"{mean(row['psnr_pooled'] for row in of):.1f}",
                f"{mean(row['ssim'] for row in of):.4f}",
                f"{mean(row['latent_error'] for row in of):.3f}",
                f"{mean(row['motion'] for row in of):.2f}",
                f"{mean(row['flicker'] for row in of):.2f}",
                str(len(of)),
            ]
        )
    header = ["tree", "solver", "policy", "ideal", "PSNR frames (worst)", "pooled", "SSIM"]
    return table([*header, "latent error", "motion", "flicker", "n"], lines)


def build_parser() -> Parser:
    parser = Parser(__doc__, prompts=12)
    parser.add_argument("--seed", type=int, default=100, help="of the first prompt's noise")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=SOLVERS)
    return parser


if __name__ == "__main__":
    sys.exit(main())

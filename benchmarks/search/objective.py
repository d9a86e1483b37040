"""Plans of the search on prompts that no profile holds: what `exactly` adds to `point_of`.

Further calibration prompts, so that the held-out ones stay fresh. Rows go to
results/objective.jsonl, with the steps; what is there does not run again. The table has the mean
and worst prompt of 16 - 20 log10(relative error of the final latent), which is PSNR up to an offset
of the prompt; the rows of objectives that lost are in it as well.

    python -m benchmarks.search.objective --threads 1
    python -m benchmarks.search.objective --table
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch

from benchmarks.compare.compare import BUDGETS
from benchmarks.compare.samplers import Planned, plan_hash, save_array, weights_hash
from benchmarks.lib.calibrate import PROMPTS, SEED, calibration_prompts, profile_of
from benchmarks.lib.clips import load
from benchmarks.lib.command_line import Parser, at_least, log
from benchmarks.lib.rows import (
    Rows,
    append_row,
    default_device,
    environment,
    load_rows,
    spread,
    table,
)
from profiling_core.metrics import latent_error
from profiling_core.search.search import Budget, PlanSearch

NAME = "objective"
ADDED, ALONE = "steps added", "one search"
OF_RUN, OF_ROW = ("tree", "weights", "prompt", "seed", "plan"), ("count", "variant")


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    for name in () if args.table else args.trees:
        run_tree(name, args)
    sys.stdout.write(shown(load_rows(NAME)) + "\n")
    return 0


def run_tree(name: str, args: argparse.Namespace) -> None:
    """The missing rows of one tree."""
    tree = load(name, fp32=True)
    search, weights = PlanSearch(profile_of(tree)), weights_hash(tree)
    rows, prompts = Rows(load_rows(NAME), OF_RUN, OF_ROW), calibration_prompts(PROMPTS + args.more)
    for number in range(PROMPTS, len(prompts)):
        prompt, seed = prompts[number], SEED + number
        inputs = tree.inputs(prompt, seed)
        path = args.out / f"{name}-{weights}" / f"calibration-{number}.npy"
        if not path.exists():
            save_array(path, tree.denoise(inputs).cpu().numpy())
        full = torch.from_numpy(np.load(path))
        for count in (max(1, round(tree.steps / budget)) for budget in args.budgets):
            added = search.exactly(count)
            for variant, point in {ADDED: added, ALONE: search.point_of(added.skip, count)}.items():
                plan = search.plan_of(point, Budget(speedup=point.speedup))
                row = {
                    **{"tree": name, "weights": weights, "prompt": prompt, "seed": seed},
                    **{"count": count, "variant": variant, "skip": point.skip},
                    **{"steps": list(point.steps), "plan": plan_hash(plan)},
                }
                if row in rows:
                    continue
                same = rows.same_run(row)
                error = (
                    latent_error(Planned(plan).run(tree, inputs).latent, full) if not same else 0
                )
                row["latent_error"] = same["latent_error"] if same else round(error, 6)
                append_row(NAME, {**row, **environment(default_device())})
                rows.add(row)
                log(f"{name} {prompt}, {count} steps, {variant}: {row['latent_error']:.4f}")


def shown(rows: list[dict]) -> str:
    """Every variant beside "one search" on the prompts that both have run on."""
    found: dict[tuple, dict[int, float]] = {}
    for row in rows:
        key = (row["tree"], row["count"], row["variant"])
        found.setdefault(key, {})[row["seed"]] = 16 - 20 * np.log10(row["latent_error"])
    lines = []
    for tree, count, variant in sorted(found):
        own, alone = found[tree, count, variant], found.get((tree, count, ALONE), {})
        if seeds := sorted(own.keys() & alone.keys()):
            both = [spread([of[seed] for seed in seeds]) for of in (own, alone)]
            lines.append([tree, str(count), variant, str(len(seeds)), *both])
    return table(["tree", "computed", "variant", "prompts", "dB", ALONE], lines)


def build_parser() -> Parser:
    parser = Parser(__doc__, budgets=BUDGETS, out="out/compare", table=True)
    help_text = "calibration prompts beside the profile's"
    parser.add_argument("--more", type=at_least(1), default=12, help=help_text)
    return parser


if __name__ == "__main__":
    sys.exit(main())

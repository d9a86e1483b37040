"""Does a plan do what was predicted: error, speed-up, and the seconds that its search takes?

errors  40 plans a tree (prediction_plans.py) on calibration and held-out prompts: relative error of
        the final latent beside the predicted one, rank correlations, a figure. Runs that have a row
        already are not made again.
speed   the denoising loop with searched plans and without, in alternation. By block FLOPs a plan
        of the whole prediction is as fast as its share of computed steps says; "with the loop"
        adds what every visited step costs beside the model, got from a run that computes one step.
        Wants a quiet machine.
search  a fresh process that loads the profile and plans for 2x, with one and with two threads.

Rows go to results/prediction.jsonl; the figures in docs/prediction.md are made of them:

    python -m benchmarks.search.prediction --threads 1
    python -m benchmarks.search.prediction --parts errors --table   # from the rows alone, no runs
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.compare.compare import Parser
from benchmarks.compare.samplers import weights_hash
from benchmarks.compare.tuning import tell
from benchmarks.lib import rows as row_files
from benchmarks.lib.calibrate import profile_path
from benchmarks.lib.clips import BUILD, Tree
from benchmarks.lib.command_line import quiet_log
from benchmarks.lib.rows import TREES, append_row, default_device, environment, table
from benchmarks.lib.timing import alternate, paired_ratio
from benchmarks.search.prediction_errors import Ranks, Row, measure_all, pairs_of, prompts_of, ranks
from benchmarks.search.prediction_plans import plans_of
from benchmarks.search.prediction_plot import draw
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.importers import from_steps
from profiling_core.profile.profile import Profile
from profiling_core.search.search import Budget, PlanSearch

PARTS = ("errors", "search", "speed")
NAME = "prediction"
SPEEDUPS = (1.5, 2.0, 3.0)
TIMED = """
import json, os, sys, time
began, spent = time.perf_counter(), time.process_time()
from profiling_core.profile import Profile
from profiling_core.search import Budget, PlanSearch
start, cpu = time.perf_counter(), time.process_time()
PlanSearch(Profile.load(sys.argv[1])).plan(Budget(speedup=float(sys.argv[2])))
print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, start - began]))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 after one line on stderr for bad input."""
    try:
        args = build_parser().parse_args(arguments)
        quiet_log()
        torch.set_num_threads(args.threads)
        for part in (part for part in PARTS if part in args.parts):
            PART[part](args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


# -- errors


def errors(args: argparse.Namespace) -> None:
    """Run what is missing, then ranks and a figure of every tree."""
    for name in args.trees:
        tree, search = load(name)
        plans = plans_of(search)
        prompts = prompts_of(search, args.calibration_prompts, args.held_out_prompts)
        if not args.table:
            measure_all(tree, plans, prompts, load_rows("error"), args.out)
        pairs = pairs_of(search, plans, prompts, load_rows("error"), weights_hash(tree))
        if not pairs:
            raise ValueError(
                f"no plan of {name} has rows of all {len(prompts)} prompts yet: run without --table"
            )
        rows = ranks(pairs, prompts)
        for row in () if args.table else rows:
            facts = {"what": "ranks", "tree": name, "prompts": len(prompts), **asdict(row)}
            append_row(NAME, {**facts, **environment(default_device())})
        sys.stdout.write(f"{name}, {len(pairs)} plans, {len(prompts)} prompts\n{shown(rows)}\n")
        for path in draw(name, pairs, args.out):
            tell(f"drew {path}")


def shown(rows: Sequence[Ranks]) -> str:
    header = ["plans", "n", "rank correlation", "of calibration prompts", "of held-out prompts"]
    lines = [
        [
            row.group,
            str(row.count),
            f"{row.overall:.3f}",
            *("-" if mean is None else f"{mean:.3f}" for mean in (row.calibration, row.held_out)),
            f"{row.ratio:.2f}",
        ]
        for row in rows
    ]
    return table([*header, "measured / predicted"], lines)


# -- speed


def speed(args: argparse.Namespace) -> None:
    """Loop seconds in alternation, for one plan at every speed-up."""
    lines = []
    for name in args.trees:
        tree, search = load(name)
        plans = {f"{s:g}x": search.plan(Budget(speedup=s)) for s in SPEEDUPS}
        for row in speeds(tree, plans, args.rounds):
            append_row(NAME, {**row, **environment(tree.pipeline.device)})
            ratios = (row["by_flops"], row["with_loop"], row["measured"])
            over = [f"{row['measured'] / row[key]:.3f}" for key in ("by_flops", "with_loop")]
            lines.append([name, row["skip"], *(f"{r:.3f}x" for r in ratios), *over])
    header = ["tree", "skip", "by block FLOPs", "with the loop", "measured"]
    sys.stdout.write(table([*header, "over FLOPs", "over loop"], lines) + "\n")


def speeds(tree: Tree, plans: dict[str, CachePlan], rounds: int) -> list[Row]:
    """A row for every plan."""
    inputs, taken = tree.inputs(tree.prompt, 0), {}
    alone = one_step(next(iter(plans.values())))

    def run(name: str, plan: CachePlan | None) -> None:
        tree.denoise(inputs, plan)
        taken.setdefault(name, []).append(tree.last_run.denoise_seconds)

    variants = {"full": None, **plans, "one step": alone}
    calls = {name: partial(run, name, plan) for name, plan in variants.items()}
    alternate(calls, rounds, tree.pipeline.device)
    seconds = {name: found[1:] for name, found in taken.items()}  # the first round warms up
    full, least = median(seconds["full"]), median(seconds["one step"])
    step = (full - least) / (tree.steps - 1)  # the model's calls of a computed step
    beside = (least - step) / tree.steps  # what every step costs beside them
    rows = []
    for name, plan in plans.items():
        computed = len(plan.prediction.compute_steps["cond"])
        expected = computed * step + len(plan.solver_steps) * beside
        row = {
            **{"what": "speed", "tree": tree.name, "plan": name, "skip": plan.prediction.skip},
            **{"rounds": rounds, "full_seconds": full, "seconds": median(seconds[name])},
            **{"step_seconds": step, "beside_seconds": beside, "by_flops": speedup_flops(plan)},
            **{"with_loop": full / expected},
            "measured": paired_ratio(seconds["full"], seconds[name]),
        }
        rows.append({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def one_step(like: CachePlan) -> CachePlan:
    """The same model and grid; step 0 alone is computed and held."""
    return CachePlan.build(
        name="one step",
        model=like.model,
        steps=like.steps,
        sigmas=like.sigmas,
        solver=like.solver,
        shift=like.shift,
        sites=from_steps(like.steps, [0], like.branches),
        provenance={"made_by": "benchmarks/prediction.py", "source": "step 0 alone"},
    )


# -- search


def search_seconds(args: argparse.Namespace) -> None:
    """Wall and CPU seconds of a search in a fresh process, medians."""
    lines = []
    for name in args.trees:
        path = profile_path(BUILD[name](default_device(), fp32=True))
        for threads in args.search_threads:
            found = [timed_search(path, threads) for _ in range(args.search_rounds)]
            wall, cpu, imports = (median(each) for each in zip(*found, strict=True))
            facts = {"what": "search", "tree": name, "search_threads": threads}
            facts |= {"rounds": args.search_rounds, "wall": round(wall, 3), "cpu": round(cpu, 3)}
            facts |= {"imports": round(imports, 3)}
            append_row(NAME, {**facts, **environment(default_device())})
            lines.append([name, str(threads), *(f"{s:.2f}" for s in (wall, cpu, imports))])
    header = ["tree", "threads", "s wall", "s CPU", "s of imports before"]
    sys.stdout.write(table(header, lines) + "\n")


def timed_search(path: Path, threads: int) -> list[float]:
    """[wall, CPU, imports before] of one search for 2x."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environ = {
        **os.environ,
        "PYTHONPATH": str(row_files.ROOT),
        **dict.fromkeys(names, str(threads)),
    }
    command = [sys.executable, "-c", TIMED, str(path), "2.0"]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


# -- what the parts share

PART = {"errors": errors, "search": search_seconds, "speed": speed}


def load(name: str) -> tuple[Tree, PlanSearch]:
    """A tree in fp32 and the search on its profile."""
    tree = BUILD[name](default_device(), fp32=True)
    path = profile_path(tree)
    if not path.exists():
        raise ValueError(f"no profile {path}: record it with python -m benchmarks.lib.calibrate")
    return tree, PlanSearch(Profile.load(path))


def load_rows(what: str) -> list[dict[str, Any]]:
    """Rows of one kind, oldest first; ValueError names a line that is none."""
    return [row for row in row_files.load_rows(NAME) if row["what"] == what]


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--calibration-prompts", type=int, default=2)
    parser.add_argument("--held-out-prompts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="of the part speed")
    parser.add_argument("--search-rounds", type=int, default=3)
    parser.add_argument("--search-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("out/prediction"))
    parser.add_argument("--table", action="store_true", help="errors: from the rows alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())

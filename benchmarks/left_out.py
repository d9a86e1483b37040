"""How to search, settled on the calibration prompts alone: plans of all but one, run on that one.

For every calibration prompt the profile without it gives a plan for every speed-up, way to skip and
trust in the sensitivity (`ease` of step_search), and the plan runs on the prompt that was left out,
in fp32. No held-out prompt of any other benchmark is touched, so that what is settled here may be
compared there. Rows go to results/left_out.jsonl; what is there is not made again:

    python benchmarks/left_out.py --threads 1
    python benchmarks/left_out.py --table
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from calibrate import PROMPTS, SEED, calibration_prompts, profile_path
from common import TREES, append_row, default_device, environment, load_rows, quiet_log, table
from compare_tuning import tell
from compare_ways import Planned, References, measured, plan_hash, weights_hash
from pipelines import BUILD
from profiling_core.plan import CachePlan
from profiling_core.profile import Profile
from profiling_core.search import Budget, PlanSearch
from profiling_core.step_search import EASE

BUDGETS = (1.5, 1.9, 2.3, 3.0)  # as in compare.py
EASES = (0.25, 0.5, 0.75, 1.0)
EASED = {"wan": ("jump",), "hunyuan": ("linear", "corrected")}  # these at every ease and budget,
OTHERS = (1.9, 3.0)  # the other ways to skip at these, with the usual ease
CHOSEN = "least predicted"
NAME = "left_out"
Row = dict[str, Any]


def main() -> int:
    args = build_parser().parse_args()
    quiet_log()
    torch.set_num_threads(args.threads)
    for name in () if args.table else args.trees:
        run_tree(name, args.out)
    rows = [row for row in load_rows(NAME) if row["tree"] in args.trees]
    sys.stdout.write("\n\n".join(summary(rows, tree) for tree in args.trees) + "\n")
    return 0


def run_tree(name: str, out: Path) -> None:
    """All rows of one tree that are not there yet."""
    tree = BUILD[name](default_device(), fp32=True)
    weights, found = weights_hash(tree), environment(default_device())
    references = References(tree, out / f"{name}-{weights}")
    profile = Profile.load(profile_path(tree))
    known = {key(row) for row in load_rows(NAME)}
    for number, prompt in enumerate(calibration_prompts(PROMPTS)):
        seed = SEED + number
        out_of = [(run.prompt, run.seed) for run in profile.runs].index((prompt, seed))
        others = [run for run in range(len(profile.runs)) if run != out_of]
        of_prompt = {"tree": name, "weights": weights, "prompt": prompt, "seed": seed}
        made = list(plans(PlanSearch(profile.of_runs(others)), EASED[name]))
        missing = [(row, plan) for row, plan in made if key({**of_prompt, **row}) not in known]
        if not missing:
            continue
        reference, ran = references.get("calibration", number, prompt, seed), {}
        for row, plan in missing:
            if row["plan"] not in ran:  # two eases may find the same steps
                ran[row["plan"]] = measured(tree, Planned(plan), reference)
            figures = ran[row["plan"]]
            append_row(NAME, {**of_prompt, **row, **figures, "precision": "fp32", **found})
            tell(
                f"{name} {number + 1}/{PROMPTS} {row['budget']:g}x {row['skip']}, "
                f"ease {row['ease']:g}: {figures['psnr_frames']:.1f} dB"
            )


def plans(search: PlanSearch, eased: Sequence[str]) -> Iterator[tuple[Row, CachePlan]]:
    """Every plan, and what its row says of it."""
    for budget in BUDGETS:
        count = round(search.paths.steps / budget)
        for skip in search.skips if budget in OTHERS else eased:
            for ease in EASES if skip in eased else (EASE,):
                point = search.point_of(skip, count, ease)
                plan = search.plan_of(point, Budget(speedup=point.speedup))
                row = {"budget": budget, "skip": skip, "ease": ease, "plan": plan_hash(plan)}
                yield {**row, "steps": list(point.steps), "predicted": round(point.error, 7)}, plan


def key(row: Row) -> tuple[Any, ...]:
    names = ("tree", "weights", "prompt", "seed", "budget", "skip", "ease", "plan")
    return tuple(row[name] for name in names)


def summary(rows: list[Row], tree: str) -> str:
    """Mean PSNR in dB over the prompts (worst prompt), every variant at every budget.

    The last lines take, at every ease, the way to skip whose plan was predicted to err least.
    """
    cells: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    ways: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    latest = {key(row): row for row in rows if row["tree"] == tree}
    for row in latest.values():
        label = f"{row['skip']}, ease {row['ease']:g}"
        cells[label][row["budget"]].append(row["psnr_frames"])
        ways[row["prompt"], row["seed"], row["budget"], row["ease"]].append(row)
    for (_, _, budget, ease), found in ways.items():
        best = min(found, key=lambda row: row["predicted"])
        cells[f"{CHOSEN}, ease {ease:g}"][budget].append(best["psnr_frames"])
    header = [tree, *(f"{budget:g}x" for budget in BUDGETS), "mean"]
    return table(header, [[label, *_line(cells[label])] for label in sorted(cells)])


def _line(found: dict[float, list[float]]) -> Iterator[str]:
    for budget in BUDGETS:
        values = found[budget]
        spread = f" +-{stdev(values):.1f}" if len(values) > 1 else ""
        yield f"{mean(values):.1f}{spread} ({min(values):.1f})" if values else "-"
    every = [value for values in found.values() for value in values]
    yield f"{mean(every):.1f}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/compare"), help="full runs")
    parser.add_argument("--table", action="store_true", help="from the rows alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())

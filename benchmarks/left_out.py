"""How to search, settled on the calibration prompts alone: plans of all but one, run on that one.

For every calibration prompt the profile without it gives a plan for every speed-up, way to skip,
trust in the sensitivity (`ease` of step_search) and quantile that the search lowers beside the mean
(`bad`), and the plan runs on the prompt that was left out, in fp32. No held-out prompt of any other
benchmark is touched, so that what is settled here may be compared there. Rows go to
results/left_out.jsonl; what is there is not made again:

    python benchmarks/left_out.py --threads 1
    python benchmarks/left_out.py --table
    python benchmarks/left_out.py --told     # measured over predicted, for step_search.TOLD
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean, mean, stdev
from typing import Any

import torch

from calibrate import PROMPTS, SEED, calibration_prompts
from common import TREES, append_row, default_device, environment, load_rows, quiet_log, table
from compare_tuning import tell
from compare_ways import Planned, References, measured, plan_hash, weights_hash
from pipelines import BUILD
from profiling_core.plan import CachePlan
from profiling_core.profile import Profile
from profiling_core.search import Budget, PlanSearch, Point
from profiling_core.searched_presets import PROFILES as SHIPPED
from profiling_core.step_search import TOLD, USUAL, Aim

BUDGETS = (1.5, 1.9, 2.3, 3.0)  # as in compare.py
AIMS = [Aim(ease, bad) for bad in (0.8, 1.0) for ease in (0.25, 0.5, 0.75, 1.0)]
# these with every aim at every budget, the other ways to skip with the usual aim at OTHERS
TRIED = {"wan": ("jump",), "hunyuan": ("linear", "corrected")}
OTHERS = (1.9, 3.0)
CHOSEN = "least predicted"
NAME = "left_out"
ROOT = Path(__file__).parents[1]
PROFILES = dict(zip(TREES, (ROOT / path for path in SHIPPED.values()), strict=True))
Row = dict[str, Any]


def main() -> int:
    args = build_parser().parse_args()
    quiet_log()
    torch.set_num_threads(args.threads)
    for name in () if args.table or args.told else args.trees:
        run_tree(name, args.out)
    rows = [row for row in load_rows(NAME) if row["tree"] in args.trees]
    texts = [told(rows)] if args.told else [summary(rows, tree) for tree in args.trees]
    sys.stdout.write("\n\n".join(texts) + "\n")
    return 0


def run_tree(name: str, out: Path) -> None:
    """All rows of one tree that are not there yet."""
    tree = BUILD[name](default_device(), fp32=True)
    weights, found = weights_hash(tree), environment(default_device())
    references = References(tree, out / f"{name}-{weights}")
    known = {key(row) for row in load_rows(NAME)}
    for number, prompt in enumerate(calibration_prompts(PROMPTS)):
        seed = SEED + number
        of_prompt = {"tree": name, "weights": weights, "prompt": prompt, "seed": seed}
        made = list(plans(PlanSearch(_without(name, prompt, seed)), TRIED[name]))
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
                f"{aim_of(row)}: {figures['psnr_frames']:.1f} dB"
            )


def plans(search: PlanSearch, tried: Sequence[str]) -> Iterator[tuple[Row, CachePlan]]:
    """Every plan, and what its row says of it."""
    for budget in BUDGETS:
        count = round(search.paths.steps / budget)
        for skip in search.skips if budget in OTHERS else tried:
            for aim in AIMS if skip in tried else (USUAL,):
                point = search.point_of(skip, count, aim)
                plan = search.plan_of(point, Budget(speedup=point.speedup))
                row = {"budget": budget, "skip": skip, **asdict(aim), "plan": plan_hash(plan)}
                yield {**row, "steps": list(point.steps), "predicted": round(point.error, 7)}, plan


def told(rows: list[Row]) -> str:
    """Measured over (9) of step_search of the usual aim's plans, geometric means; no model runs."""
    searches: dict[tuple[Any, ...], PlanSearch] = {}
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in {key(row): row for row in rows if aim_of(row) == aim_of(asdict(USUAL))}.values():
        prompt = row["tree"], row["prompt"], row["seed"]
        if prompt not in searches:
            searches[prompt] = PlanSearch(_without(*prompt))
        search, skip = searches[prompt], row["skip"]
        plan = search.plan_of(Point(skip, tuple(row["steps"]), 0.0, 0.0), Budget(speedup=2.0))
        ratios[skip, row["tree"]].append(
            row["latent_error"] / (search.predicted(plan) / TOLD[skip])
        )
    lines = []
    for skip in TOLD:
        means = [ratios[skip, tree] for tree in TREES if ratios[skip, tree]]
        whole = f"{geometric_mean(map(geometric_mean, means)):.2f}" if means else "-"
        lines.append([skip, *(_ratio(ratios[skip, tree]) for tree in TREES), whole])
    return table(["measured / predicted", *TREES, "geometric mean"], lines)


def _ratio(found: list[float]) -> str:
    return f"{geometric_mean(found):.2f} ({len(found)})" if found else "-"


def _without(name: str, prompt: str, seed: int) -> Profile:
    """A miniature's profile without one of its runs."""
    profile = Profile.load(PROFILES[name])
    runs = [(run.prompt, run.seed) for run in profile.runs]
    return profile.of_runs([n for n, run in enumerate(runs) if run != (prompt, seed)])


def key(row: Row) -> tuple[Any, ...]:
    names = ("tree", "weights", "prompt", "seed", "budget", "skip", "ease", "bad", "plan")
    return tuple(row[name] for name in names)


def aim_of(row: Row) -> str:
    """In words."""
    return f"ease {row['ease']:g}, quantile {row['bad']:g}"


def summary(rows: list[Row], tree: str) -> str:
    """Mean PSNR in dB over the prompts (worst prompt), every variant at every budget.

    The last lines take, with every aim, the way to skip whose plan was predicted to err least.
    """
    cells: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    ways: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    latest = {key(row): row for row in rows if row["tree"] == tree}
    for row in latest.values():
        cells[f"{row['skip']}, {aim_of(row)}"][row["budget"]].append(row["psnr_frames"])
        ways[row["prompt"], row["seed"], row["budget"], aim_of(row)].append(row)
    for (_, _, budget, aim), found in ways.items():
        best = min(found, key=lambda row: row["predicted"])
        cells[f"{CHOSEN}, {aim}"][budget].append(best["psnr_frames"])
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
    parser.add_argument(
        "--told", action="store_true", help="measured over predicted, from the rows"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""What a closed-loop refit of forecast weights is worth, on held-out prompts of the miniatures.

At every budget: the search's choice, the reuse mode that its solver has alone (`corrected` for
Euler, `jump` for UniPC), its forecast `linear`, and refits of 2 and 3 anchors along the cached runs
of the six calibration prompts, one pass each; with Euler also a refit whose correction is left out.
Every plan runs on the held-out prompts, in fp32. Plans go to out/refit, rows to
results/refit.jsonl; what is there is not made again:

    python -m benchmarks.search.refit --threads 1 --prompts 8
    python -m benchmarks.search.refit --table --prompts 8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare.samplers import (
    Planned,
    Reference,
    References,
    measured,
    plan_hash,
    weights_hash,
)
from benchmarks.lib.calibrate import held_out, profile_of
from benchmarks.lib.clips import Tree, load
from benchmarks.lib.command_line import Parser, log
from benchmarks.lib.rows import (
    Rows,
    append_row,
    default_device,
    environment,
    load_rows,
    spread,
    table,
)
from miniatures.clips import held_out_prompts
from profiling_core.plan import CachePlan
from profiling_core.refit.refit import Form, forms, one_pass, rollouts_of, with_facts
from profiling_core.refit.rollout import Rollout
from profiling_core.search.search import Budget, PlanSearch, Point

BUDGETS = (1.5, 1.9, 2.3, 3.0)
NAME = "refit"
OF_RUN, OF_ROW = ("tree", "weights", "prompt", "seed", "plan"), ("policy", "budget")
POLICIES = (
    "search",
    "corrected",
    "jump",
    "linear",
    "refit, 2 anchors",
    "refit, 3 anchors",
    "refit, 3 anchors, no correction",
)


class Refits:
    """The plans of one tree; calibration prompts run in full when the first refit is made."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        self.tree, self.folder = tree, folder
        self.search = PlanSearch(profile_of(tree))

    @cached_property
    def rollouts(self) -> list[Rollout]:
        steps = range(self.tree.steps)
        return rollouts_of(self.search.profile, self.tree, steps, log)

    def plans(self, budget: float) -> Iterator[tuple[str, CachePlan]]:
        """Policies and their plans at a budget; PlanError where the profile cannot be searched."""
        search, count = self.search, max(1, round(self.tree.steps / budget))
        asked = Budget(speedup=self.tree.steps / count)
        best = search.exactly(count)
        yield "search", search.plan_of(best, asked)
        for skip in ("corrected", "jump", "linear"):
            if skip in search.skips:
                yield skip, search.plan_of(search.point_of(skip, count), asked)
        for name, form in self.forms(best, asked).items():
            yield name, self.refitted(name, form, count)

    def forms(self, best: Point, budget: Budget) -> dict[str, Form]:
        """The first form of either number of anchors; where it corrects, also without that."""
        found = {form.anchors: form for form in reversed(forms(self.search, best, budget))}
        named = {f"refit, {anchors} anchors": found[anchors] for anchors in sorted(found)}
        if self.search.trajectories.solver == "euler":
            named["refit, 3 anchors, no correction"] = replace(found[3], corrects=False)
        return named

    def refitted(self, name: str, form: Form, count: int) -> CachePlan:
        """The plan of a form, from its file where it was fitted before."""
        words = "-".join(name.replace(",", "").split())
        path = self.folder / f"{words}-{count}-{plan_hash(form.plan)}.json"
        if not path.exists():
            found = one_pass(self.rollouts, form)
            log(f"{self.tree.name} {name}, {count} steps: measured {found.error:.4f}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with_facts(found.plan, name, refit=form.words, measured_error=found.error).save(path)
        return CachePlan.load(path)


def main() -> int:
    args = build_parser().parse_args()
    if not args.table:
        torch.set_num_threads(args.threads)
        for name in args.trees:
            run_tree(name, args)
    sys.stdout.write(summary(load_rows(NAME), args) + "\n")
    return 0


def run_tree(name: str, args: argparse.Namespace) -> None:
    """The missing rows of a tree, budget after budget."""
    tree = load(name, fp32=True)
    weights = weights_hash(tree)
    refits = Refits(tree, args.out / f"{name}-{weights}")
    references = References(tree, args.references / f"{name}-{weights}")
    known = Rows(load_rows(NAME), OF_RUN, OF_ROW)
    for budget, (prompt, seed) in product(args.budgets, held_out(args.prompts)):
        for policy, plan in refits.plans(budget):
            row = {"tree": name, "weights": weights, "prompt": prompt, "seed": seed}
            row |= {"policy": policy, "budget": budget, "plan": plan_hash(plan)}
            if row in known:
                continue
            if (same := known.same_run(row)) is None:  # no policy has had this plan yet
                same = figures(tree, plan, references.get("held-out", seed, prompt, seed))
            row = {**same, **row}
            append_row(NAME, row)
            known.add(row)
            log(f"{name} {budget:g}x {policy}, seed {seed}: {row['psnr_frames']:.1f} dB")


def figures(tree: Tree, plan: CachePlan, reference: Reference) -> dict[str, Any]:
    """What a row says of one run."""
    facts = {
        "skip": plan.prediction.skip,
        "calibration_error": plan.provenance.settings.get("measured_error"),
        "precision": "fp32",
    }
    return {**facts, **measured(tree, Planned(plan), reference), **environment(default_device())}


def summary(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """PSNR of the newest plans by tree, policy, budget: mean, deviation, worst prompt, prompts."""
    prompts = held_out_prompts(args.prompts)
    newest = {(r["tree"], r["policy"], r["budget"]): (r["weights"], r["plan"]) for r in rows}
    cells: dict[tuple[str, str, float], dict[str, float]] = {}
    for row in rows:
        place = (row["tree"], row["policy"], row["budget"])
        if newest[place] == (row["weights"], row["plan"]) and row["prompt"] in prompts:
            cells.setdefault(place, {})[row["prompt"]] = row["psnr_frames"]
    lines = []
    for tree in args.trees:
        for policy in POLICIES:
            found = [cells.get((tree, policy, budget), {}) for budget in args.budgets]
            if any(found):
                lines.append([tree, policy, *(_cell(list(of.values())) for of in found)])
    return table(["tree", "policy", *(f"{budget:g}x" for budget in args.budgets)], lines)


def _cell(psnr: list[float]) -> str:
    return f"{spread(psnr)} n={len(psnr)}" if psnr else "-"


def build_parser() -> Parser:
    parser = Parser(__doc__, prompts=8, budgets=BUDGETS, out="out/refit", table=True)
    help = "full runs, of compare.py too"
    parser.add_argument("--references", type=Path, default=Path("out/compare"), help=help)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Plans from magnitude ratios against plans from the Gram matrices, on the miniatures.

The model of `profiling_core.published` plans for models that were not profiled here. Both
miniatures have a profile, which holds the ratios as well: their plans from the ratios alone are
judged here by what the whole profile says of them, and with --prompts by real runs.

`change`  of which relative change per step a search is told, by what it is named after:
    ratios    |1 - gamma_s|, what the ratios alone say
    levels    the turn of (2) alone, no ratio
    both      the law of cosines (3): what is shipped for the official models
    both, snr the same with ln SNR for ln alpha in (2)
    true      the profile's own changes: the least that a model of the changes could leave

Rows go to results/published_model.jsonl, a Markdown table to the terminal.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import cached_property
from itertools import product

import numpy as np
import torch

import calibrate
from common import TREES, append_row, default_device, environment, quiet_log
from miniatures.clips import held_out_prompts
from pipelines import BUILD, Tree
from profiling_core.flow_solvers import Levels
from profiling_core.importers import from_magnitude_ratios
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.profile import Profile
from profiling_core.published import TURN, changes, gram, step_search
from profiling_core.search import PlanSearch
from profiling_core.solvers import skips_of
from schedules import protected

SPEEDUPS = (1.3, 1.5, 1.7, 2.0, 2.5, 3.0)
MEASURED = (1.5, 2.0, 3.0)
TURNS = (0.125, 0.25, 0.5, 1.0)
CHOSEN, FULL = f"both, turn {TURN:g}", "profile"
THRESHOLDS = np.geomspace(0.003, 1.0, 120)  # of MagCache's rule, with its K from 1 to 8
Steps = tuple[int, ...]


class Miniature:
    """One miniature's profile: what the model of the errors is told of it, and what is true."""

    def __init__(self, profile: Profile) -> None:
        self.profile, self.subject = profile, profile.recorded
        self.skip = skips_of(self.subject.solver)[-1]
        self.full = PlanSearch(profile, (self.skip,))
        self.levels: Levels = self.full.paths.levels
        self.ratios = profile.arrays["magnitude"].mean(axis=(0, 1)).astype(np.float64)

    @cached_property
    def models(self) -> dict[str, np.ndarray]:
        """Relative changes per step, (S - 1,), by the name of what they come from."""
        levels, ratios, one = self.levels, self.ratios, np.ones_like(self.ratios)
        v = self.full.paths.predictions
        moved = np.linalg.norm(np.diff(v, axis=0), axis=-1) / np.linalg.norm(v[:-1], axis=-1)
        found = {"ratios": changes(levels, ratios, 0.0)}
        for turn in TURNS:
            found[f"both, turn {turn:g}"] = changes(levels, ratios, turn)
        for turn in TURNS:
            found[f"levels, turn {turn:g}"] = changes(levels, one, turn)
        for turn in TURNS:
            angle = turn * self._log_snr_steps
            found[f"both, snr, turn {turn:g}"] = np.sqrt(1 + ratios**2 - 2 * ratios * np.cos(angle))
        return found | {"true": moved.mean(axis=1)}

    @property
    def _log_snr_steps(self) -> np.ndarray:
        """Of one step to the next; the first is at most twice the second."""
        found = np.diff(self.levels.log_snr[:-1])
        return np.append(min(found[0], 2 * found[1]), found[1:])

    def policies(self) -> dict[str, Callable[[int], Steps | None]]:
        """For every policy the compute steps that it takes when it may take so many."""
        found: dict[str, Callable[[int], Steps | None]] = {
            FULL: lambda count: self.full.choice(self.skip, count).steps,
            "by hand": by_hand,
            "MagCache's rule": self.magcache,
        }
        for name, change in self.models.items():
            search = step_search(gram(change), self.levels, self.subject.solver, self.skip)
            found[name] = lambda count, search=search: search.best(count).steps
        return found

    def magcache(self, count: int) -> Steps | None:
        """The steps of MagCache's rule, its threshold and K tuned to compute so many."""
        ratios = [1.0, *self.ratios]
        for most, threshold in product(range(1, 9), THRESHOLDS):
            site = from_magnitude_ratios({"cond": ratios}, threshold=threshold, most_skips=most)[0]
            if len(site["compute_steps"]["cond"]) == count:
                return tuple(site["compute_steps"]["cond"])
        return None

    def true_error(self, steps: Steps) -> float:
        """What the profile's Gram matrices and sensitivity predict."""
        return self.full.predicted(self.plan(steps))

    def plan(self, steps: Steps) -> CachePlan:
        site = {
            "kind": "prediction",
            "compute_steps": dict.fromkeys(self.subject.branches, steps),
            "skip": self.skip,
        }
        return CachePlan.build(
            name=f"{len(steps)} steps",
            **self.subject.plan_fields,
            sites=[site],
            provenance={"made_by": "benchmarks", "source": "published_model"},
        )


def by_hand(count: int) -> Steps:
    """As `balanced` was once made: the first 10 of 26, the last 4, evenly between."""
    first, last = round(count * 10 / 26), round(count * 4 / 26)
    return protected(50, first=first, last=last, between=count - first - last)


def count_of(miniature: Miniature, speedup: float) -> int:
    return int(miniature.subject.steps / speedup + 1e-9)


def scales(miniature: Miniature) -> list[float]:
    """What the profile predicts of the chosen model's plans over what the model itself does."""
    change = changes(miniature.levels, miniature.ratios)
    search = step_search(gram(change), miniature.levels, miniature.subject.solver, miniature.skip)
    choices = [search.best(count_of(miniature, speedup)) for speedup in MEASURED]
    return [miniature.true_error(choice.steps) / choice.error for choice in choices]


def main() -> int:
    args = build_parser().parse_args()
    quiet_log()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.trees:
        tree = BUILD[name](default_device(), fp32=True)
        miniature = Miniature(calibrate.record(tree, calibrate.profile_path(tree)))
        rows += predicted_rows(name, miniature)
        found_scales = " ".join(f"{scale:.2f}" for scale in scales(miniature))
        sys.stderr.write(f"{name}: true over predicted error of {CHOSEN}: {found_scales}\n")
        if args.prompts:
            rows += measured_rows(tree, miniature, args)
    found = environment(default_device())
    for row in rows:
        append_row("published_model", {**row, **found})
    sys.stdout.write("\n\n".join(tables(rows)) + "\n")
    return 0


def predicted_rows(tree: str, miniature: Miniature) -> list[dict]:
    """Every policy at every budget, by the true Gram matrices."""
    rows = []
    for policy, steps_for in miniature.policies().items():
        for speedup in SPEEDUPS:
            count = count_of(miniature, speedup)
            steps = steps_for(count)
            if steps is None:
                continue
            row = {"tree": tree, "policy": policy, "speedup": speedup, "compute_steps": steps}
            rows.append({**row, "error": round(miniature.true_error(steps), 6), "by": "gram"})
    return rows


def measured_rows(tree: Tree, miniature: Miniature, args: argparse.Namespace) -> list[dict]:
    """The policies that matter at three budgets, on held-out prompts: relative latent errors."""
    policies, rows = miniature.policies(), []
    kept = {name: policies[name] for name in (FULL, CHOSEN, "ratios", "by hand", "MagCache's rule")}
    for number, prompt in enumerate(held_out_prompts(args.prompts)):
        inputs = tree.inputs(prompt, args.seed + number)
        reference = tree.denoise(inputs).cpu()
        for speedup, (policy, steps_for) in product(MEASURED, kept.items()):
            steps = steps_for(count_of(miniature, speedup))
            if steps is None:
                continue
            latent = tree.denoise(inputs, miniature.plan(steps)).cpu()
            error = round(latent_error(latent, reference), 6)
            row = {"tree": tree.name, "policy": policy, "speedup": speedup, "error": error}
            rows.append({**row, "by": "run", "prompt": prompt, "seed": args.seed + number})
        sys.stderr.write(f"{tree.name} {number + 1}/{args.prompts}: {prompt}\n")
    return rows


def tables(rows: list[dict]) -> list[str]:
    """Markdown: errors by the Gram matrices, the cross-check of TURN, errors of real runs."""
    predicted = [row for row in rows if row["by"] == "gram"]
    measured = [row for row in rows if row["by"] == "run"]
    found = [_table(predicted, SPEEDUPS), *cross_check(predicted)]
    return found + ([_table(measured, MEASURED)] if measured else [])


def cross_check(rows: list[dict]) -> list[str]:
    """TURN chosen on one miniature, judged on the other."""
    over = {(r["tree"], r["policy"]): excess(rows, r["tree"], r["policy"]) for r in rows}
    trees, lines = sorted({row["tree"] for row in rows}), []
    for tree, other in product(trees, trees):
        if tree != other:
            turns = [f"both, turn {turn:g}" for turn in TURNS]
            best = min(turns, key=lambda policy: over[tree, policy])
            lines.append(
                f"{best}: best on {tree} ({over[tree, best]:.2f}), {over[other, best]:.2f} on "
                f"{other}, whose own best is {min(over[other, turn] for turn in turns):.2f}"
            )
    return lines


def excess(rows: list[dict], tree: str, policy: str) -> float:
    """Error over that of the plan from the whole profile, geometric mean over budgets, prompts."""
    errors = {
        (row["policy"], row["speedup"], row.get("prompt")): row["error"]
        for row in rows
        if row["tree"] == tree
    }
    own = [key[1:] for key in errors if key[0] == policy]
    ratios = [errors[(policy, *key)] / errors[(FULL, *key)] for key in own]
    return float(np.exp(np.mean(np.log(ratios))))


def _table(rows: list[dict], speedups: tuple[float, ...]) -> str:
    """Policies by budgets, errors (mean over prompts), and the excess."""
    head = ["tree", "steps from", *(f"{speedup:g}x" for speedup in speedups), "over the profile's"]
    lines = [head, ["---"] * len(head)]
    for tree, policy in dict.fromkeys((row["tree"], row["policy"]) for row in rows):
        cells = []
        for speedup in speedups:
            key = (tree, policy, speedup)
            own = [r["error"] for r in rows if (r["tree"], r["policy"], r["speedup"]) == key]
            cells.append(f"{np.mean(own):.4f}" if own else "-")
        lines.append([tree, policy, *cells, f"{excess(rows, tree, policy):.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--prompts", type=int, default=0, help="run so many held-out prompts too")
    parser.add_argument("--seed", type=int, default=100, help="of the first prompt's noise")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Fitted jumps beside plain ones, on held-out prompts of the Wan miniature, by latents alone.

At every budget the search's best `jump` and its best `fitted` run in fp32 against the full run.
Rows go to results/fitted_jump.jsonl, full latents to out/compare, beside those of
benchmarks.compare; what is there is not made again:

    python -m benchmarks.search.fitted_jump --threads 1 --budgets 4 5
    python -m benchmarks.search.fitted_jump --table     # from the rows alone
"""

from __future__ import annotations

import argparse
import sys
from math import log10, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from benchmarks.compare.samplers import plan_hash, save_array, weights_hash
from benchmarks.lib.calibrate import held_out, profile_of
from benchmarks.lib.clips import Inputs, Tree, load
from benchmarks.lib.command_line import Parser, log
from benchmarks.lib.rows import (
    Row,
    Rows,
    append_row,
    default_device,
    environment,
    load_rows,
    markdown,
)
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.search.search import Budget, PlanSearch, Point

NAME, TREE, STEPS = "fitted_jump", "wan", 50
BUDGETS = (1.5, 1.9, 2.3, 3.0)
MODES = ("jump", "fitted")
KEY = ("weights", "prompt", "seed", "plan")


def main() -> int:
    args = build_parser().parse_args()
    if not args.table:
        torch.set_num_threads(args.threads)
        measure(args)
    sys.stdout.write(summary(load_rows(f"compare_{TREE}") + load_rows(NAME)) + "\n")
    return 0


def measure(args: argparse.Namespace) -> None:
    """The missing rows, prompt after prompt."""
    tree = load(TREE, fp32=True)
    search = PlanSearch(profile_of(tree))
    plans = [planned(search, mode, budget) for budget in args.budgets for mode in MODES]
    known, weights = Rows(load_rows(NAME), KEY, ("policy", "budget")), weights_hash(tree)
    for prompt, seed in held_out(args.prompts):
        of_prompt = {"tree": TREE, "weights": weights, "prompt": prompt, "seed": seed}
        rows = [({**of_prompt, **facts}, plan) for facts, plan in plans]
        missing = [(row, plan) for row, plan in rows if row not in known]
        if not missing:
            continue
        inputs, folder = tree.inputs(prompt, seed), args.out / f"{TREE}-{weights}"
        full = full_latent(tree, inputs, folder, seed)
        for row, plan in missing:
            latent = tree.denoise(inputs, plan).cpu()
            row["latent_error"] = round(latent_error(latent, full), 6)
            row["seconds"] = round(tree.last_run.denoise_seconds, 3)
            append_row(NAME, {**row, "precision": "fp32", **environment(default_device())})
            log(f"seed {seed} {row['policy']} {row['budget']:g}x: {decibels(row):.1f} dB")


def planned(search: PlanSearch, mode: str, budget: float) -> tuple[Row, CachePlan]:
    """The best plan of a mode at a budget, and what its rows say of it."""
    count = max(1, round(search.steps / budget))
    point: Point = search.exactly(count, (mode,))
    plan = search.plan_of(point, Budget(speedup=search.steps / count))
    facts = {"solver": plan.solver, "policy": f"search {mode}", "budget": budget}
    facts |= {"plan": plan_hash(plan), "steps": list(point.steps), "predicted": point.error}
    return {**facts, "speedup": round(point.speedup, 4)}, plan


def full_latent(tree: Tree, inputs: Inputs, folder: Path, seed: int) -> torch.Tensor:
    """The full run's latent, kept in a file."""
    path = folder / f"held-out-{seed}.npy"
    if not path.exists():
        save_array(path, tree.denoise(inputs).cpu().numpy())
    return torch.from_numpy(np.load(path))


def decibels(row: Row) -> float:
    """PSNR of the clip up to an offset that differs between prompts."""
    return 16 - 20 * log10(row["latent_error"])


def summary(rows: list[Row]) -> str:
    """Mean (worst) of both modes at every budget, and the gain; of the newest plans with UniPC."""
    found: dict[float, dict[str, dict[Any, Row]]] = {}
    newest: dict[tuple[float, str], Any] = {}
    policies = [f"search {mode}" for mode in MODES]
    rows = [r for r in rows if r["policy"] in policies and r.get("solver", "unipc") == "unipc"]
    for row in rows:
        newest[row["budget"], row["policy"]] = _plan(row)
    for row in rows:
        if newest[row["budget"], row["policy"]] == _plan(row):
            of = found.setdefault(row["budget"], {}).setdefault(row["policy"], {})
            of[row["prompt"], row["seed"]] = row
    lines = []
    for budget, by_policy in sorted(found.items()):
        if len(by_policy) == len(MODES):
            lines.append(_line(budget, *(by_policy[f"search {mode}"] for mode in MODES)))
    header = ["budget", "computed", "`jump`", "`fitted`", "predicted gain", "measured gain"]
    return markdown([*header, "better on"], lines)


def _plan(row: Row) -> str:
    return row["plan"] if "plan" in row else row["settings"]["plan"]


def _line(budget: float, jump: dict[Any, Row], fitted: dict[Any, Row]) -> list[str]:
    prompts = [prompt for prompt in jump if prompt in fitted]
    plain, ours = ([decibels(of[prompt]) for prompt in prompts] for of in (jump, fitted))
    gains = [b - a for a, b in zip(plain, ours, strict=True)]
    error = stdev(gains) / sqrt(len(gains)) if len(gains) > 1 else float("nan")
    guesses = [of[prompts[0]].get("predicted") for of in (jump, fitted)]
    guess = f"{20 * log10(guesses[0] / guesses[1]):+.1f}" if all(guesses) else "-"
    cells = [f"{budget:g}x", str(round(STEPS / fitted[prompts[0]]["speedup"]))]
    cells += [f"{fmean(values):.1f} ({min(values):.1f})" for values in (plain, ours)]
    cells += [guess, f"{fmean(gains):+.1f} +-{error:.1f}"]
    return [*cells, f"{sum(gain > 0 for gain in gains)} of {len(gains)}"]


def build_parser() -> Parser:
    return Parser(__doc__, prompts=24, budgets=BUDGETS, out="out/compare", table=True)


if __name__ == "__main__":
    sys.exit(main())

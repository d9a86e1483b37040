"""What the drift guard buys: searched plans with and without it, and with one more planned step.

Per tree, speed-up and held-out prompt, quality of the decoded clip against the full run:

    plan      as searched on the shipped profile
    guard     the same plan, one extra step where an old forecast is off by more than the threshold
    planned   as searched with one more compute step: the same compute as a guard that triggers

Thresholds come from the profile: at every compared step a factor times the median calibration run's
deviation, the factor being the 90th percentile of what the calibration runs reach. Where the guard
does not trigger its latent is the plan's, bit for bit (tests/test_guard.py), and is not run twice.
Full runs are kept with those of compare.py. Rows go to results/guard.jsonl; rows that are there
already are not repeated.

`--overhead N` measures instead what a guard costs that never triggers: N rounds in turn with the
bare plan, and the processor's time inside the guard. `--table` only prints what the rows say.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibrate import profile_path
from common import (
    RESULTS,
    ROOT,
    TREES,
    alternate,
    append_row,
    default_device,
    environment,
    paired_ratio,
    quiet_log,
    table,
)
from compare_ways import plan_hash, save_array, weights_hash
from miniatures.clips import held_out_prompts
from pipelines import BUILD, Inputs, Tree
from profiling_core.drift import DriftGuard
from profiling_core.metrics import compare, latent_error
from profiling_core.plan import CachePlan
from profiling_core.profile import Profile
from profiling_core.search import Budget, PlanSearch
from profiling_core.usual_drift import thresholds, worst_ratios

SEED = 100  # of the first held-out prompt's noise, as in compare.py
QUANTILE = 0.9
Row = dict[str, Any]


def main() -> int:
    args = build_parser().parse_args()
    quiet_log()
    torch.set_num_threads(args.threads)
    for name in () if args.table else args.trees:
        tree = BUILD[name](default_device(), fp32=True)
        if args.overhead:
            append_row("guard", overhead(tree, args.speedups[0], args.overhead))
        else:
            run_tree(tree, args)
    sys.stdout.write(summary(rows_of("guard")) + "\n")
    return 0


def run_tree(tree: Tree, args: argparse.Namespace) -> None:
    """All rows of one tree that are not there yet."""
    weights, profile = weights_hash(tree), Profile.load(profile_path(tree))
    found = [plans(profile, speedup) for speedup in args.speedups]
    keys = ("tree", "weights", "prompt", "seed", "plan")
    known = {tuple(row.get(key) for key in keys) for row in rows_of("guard")}
    for number, prompt in enumerate(held_out_prompts(args.prompts)):
        seed = SEED + number
        for of in found:
            facts = {"tree": tree.name, "weights": weights, "prompt": prompt, "seed": seed}
            facts["plan"] = plan_hash(of["plan"])
            if tuple(facts[key] for key in keys) in known:
                continue
            inputs = tree.inputs(prompt, seed)
            folder = args.out / f"{tree.name}-{weights}"
            full = full_run(tree, inputs, folder / f"held-out-{seed}.npy")
            for row in one_prompt(tree, of, inputs, full):
                append_row("guard", {**facts, **row, **environment(default_device())})
        sys.stderr.write(f"{tree.name} {number + 1}/{args.prompts}: {prompt}\n")


def plans(profile: Profile, speedup: float) -> dict[str, CachePlan]:
    """The three policies at one speed-up."""
    search, budget = PlanSearch(profile), Budget(speedup=speedup)
    point = search.point(budget)
    plan = search.plan_of(point, budget, f"{speedup:g}x")
    factor = float(np.quantile(worst_ratios(profile, plan), QUANTILE))
    more = search.point_of(point.skip, len(point.steps) + 1)
    return {
        "guard": plan.guarded(thresholds(profile, plan, factor), extra=True),
        "plan": plan,
        "planned": search.plan_of(more, budget, f"{speedup:g}x and one"),
    }


def one_prompt(
    tree: Tree, policies: dict[str, CachePlan], inputs: Inputs, full: Tensor
) -> list[Row]:
    """A row of every policy."""
    reference, rows = tree.decode(full), []
    for policy, plan in policies.items():
        if policy == "plan" and rows[0]["extra_step"] is None:
            rows.append({**rows[0], "policy": policy})  # what the guard left alone
            continue
        latent = tree.denoise(inputs, plan).cpu()
        run, quality = tree.last_run, compare(tree.decode(latent), reference)
        rows.append(
            {
                "policy": policy,
                "asked": float(policies["plan"].name.removesuffix("x")),
                "skip": plan.prediction.skip,
                "model_calls": run.model_calls,
                "extra_step": run.extra_step,
                "deviation": run.deviation,
                "deviation_step": run.deviation_step,
                "deviation_share": run.deviation_share,
                "latent_error": round(latent_error(latent, full), 6),
                **{key: round(value, 4) for key, value in quality.as_row().items()},
            }
        )
    return rows


def full_run(tree: Tree, inputs: Inputs, path: Path) -> Tensor:
    """The latent of the full run, made once."""
    if not path.exists():
        save_array(path, tree.denoise(inputs).cpu().numpy())
    return torch.from_numpy(np.load(path))


def overhead(tree: Tree, speedup: float, rounds: int) -> Row:
    """A guard that never triggers against none."""
    plan = plans(Profile.load(profile_path(tree)), speedup)["plan"]
    guarded, inputs = plan.guarded(1e6, extra=True), tree.inputs(tree.prompt, SEED)
    calls = {
        "plan": lambda: tree.denoise(inputs, plan),
        "guard": lambda: tree.denoise(inputs, guarded),
    }
    seconds = alternate(calls, rounds, default_device())
    spent, see = [0.0], DriftGuard.see

    def timed(self: DriftGuard, *told: Any) -> Any:
        start = time.process_time()
        try:
            return see(self, *told)
        finally:
            spent[0] += time.process_time() - start

    DriftGuard.see, start = timed, time.process_time()
    try:
        tree.denoise(inputs, guarded)
    finally:
        DriftGuard.see = see
    whole = time.process_time() - start
    return {
        "tree": tree.name,
        "policy": "overhead",
        "asked": speedup,
        "rounds": rounds,
        "seconds": round(median(seconds["plan"]), 3),
        "ratio": round(paired_ratio(seconds["guard"], seconds["plan"]), 4),
        "in_guard_ms": round(1000 * spent[0], 3),
        "in_guard_share": round(spent[0] / whole, 6),
        **environment(default_device()),
    }


def rows_of(name: str) -> list[Row]:
    path = RESULTS / f"{name}.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def summary(rows: list[Row]) -> str:
    """Per tree and speed-up: all prompts, the worst quarter, those that the guard acted on."""
    lines = []
    for tree, asked in sorted({(r["tree"], r["asked"]) for r in rows if r["policy"] == "plan"}):
        own = [r for r in rows if (r["tree"], r["asked"]) == (tree, asked)]
        psnr = {
            policy: {r["prompt"]: r["psnr_frames"] for r in own if r["policy"] == policy}
            for policy in ("plan", "guard", "planned")
        }
        prompts = sorted(psnr["plan"], key=psnr["plan"].get)
        acted = [r["prompt"] for r in own if r["policy"] == "guard" and r["extra_step"] is not None]
        groups = {"all": prompts, "worst quarter": prompts[: -(-len(prompts) // 4)]}
        groups |= {"acted on": acted} if acted else {}
        for group, of in groups.items():
            means = [mean(values[p] for p in of) for values in psnr.values()]
            least = [min(values[p] for p in of) for values in psnr.values()]
            cells = [f"{m:.2f} ({w:.2f})" for m, w in zip(means, least, strict=True)]
            gains = [_gain(psnr[policy], psnr["plan"], of) for policy in ("guard", "planned")]
            lines.append([tree, f"{asked:g}x", group, str(len(of)), *cells, *gains])
        lines.append([tree, f"{asked:g}x", "rank correlation, share and PSNR", _rank(own)])
    header = ["tree", "asked", "prompts", "n", "plan", "guard", "one more planned"]
    header += ["guard - plan", "one more - plan"]
    return table(header, [line + [""] * (len(header) - len(line)) for line in lines])


def _gain(one: dict[str, float], other: dict[str, float], prompts: list[str]) -> str:
    """Mean paired difference and its standard error."""
    gains = [one[p] - other[p] for p in prompts]
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    return f"{mean(gains):+.2f} +-{error:.2f}"


def _rank(rows: list[Row]) -> str:
    """Between the mean deviation over the threshold, and PSNR without an extra step."""
    quality = {r["prompt"]: r["psnr_frames"] for r in rows if r["policy"] == "plan"}
    pairs = [(r["deviation_share"], quality[r["prompt"]]) for r in rows if r["policy"] == "guard"]
    if len(pairs) < 3:
        return "-"
    ranks = np.argsort(np.argsort(np.array(pairs), axis=0), axis=0)
    return f"{np.corrcoef(ranks.T)[0, 1]:.2f}"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--speedups", nargs="+", type=float, default=[2.0, 3.0], metavar="X")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "compare", help="of full runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--overhead", type=int, default=0, metavar="N", help="rounds")
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())

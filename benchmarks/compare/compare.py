"""Every policy that a user would pick, at equal compute, on held-out prompts of the miniatures.

Peers are calibrated and tuned on the calibration prompts alone, which share no prompt with the
held-out ones. A row is one tree, policy, budget and prompt; rows go to results/compare_TREE.jsonl,
what was tuned to results/tuning, and what is there is not made again, so that a run that was
stopped goes on. Everybody computes in fp32: the packages' transformers then equal ours to 1e-4, and
rows of different processors can stand side by side. Two processes, each with a part of the prompts,
are faster on two cores than one with two threads:

    python -m benchmarks.compare --threads 1 --parts 2 --part 0 &
    python -m benchmarks.compare --threads 1 --parts 2 --part 1
    python -m benchmarks.compare --table        # table and figures from the rows alone
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare.plot import draw
from benchmarks.compare.policies import (
    ALL,
    BUDGETS,
    OURS,
    Given,
    Policy,
    chosen_names,
    policies_of,
)
from benchmarks.compare.samplers import Reference, References, Sampler, measured, weights_hash
from benchmarks.compare.table import latest, summary, tables
from benchmarks.compare.tuning import Tuning, UnreachableError
from benchmarks.compare.validity import validity
from benchmarks.lib import rows as row_files
from benchmarks.lib.calibrate import PROMPTS, SEED, calibration_prompts, held_out, profile_of
from benchmarks.lib.clips import Tree, load
from benchmarks.lib.command_line import Parser, at_least, log
from benchmarks.lib.rows import TREES, Rows, append_row, default_device, environment, load_rows

NAME = "compare"
OF_RUN, OF_ROW = ("tree", "weights", "prompt", "seed", "settings"), ("policy", "budget")


@dataclass(frozen=True)
class Settled:
    """One policy at one budget; None: at its own speed."""

    policy: str
    budget: float | None
    sampler: Sampler


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 after one line on stderr for bad input."""
    try:
        args = build_parser().parse_args(arguments)
        names = chosen_names(args.policies)
        if not 0 <= args.part < args.parts:
            raise ValueError(f"--part {args.part} of {args.parts} parts: expected 0 to parts - 1")
        if args.table:
            sys.stdout.write(show(args.trees, args.out))
            return 0
        torch.set_num_threads(args.threads)
        for name in args.trees:
            compare_tree(name, args, names)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if args.parts == 1:
        sys.stdout.write(show(args.trees, args.out))
    return 0


def all_rows(trees: Sequence[str]) -> list[dict[str, Any]]:
    """Those of these trees, every tree's oldest first."""
    return [row for tree in trees for row in load_rows(f"{NAME}_{tree}")]


def show(trees: Sequence[str], out: Path) -> str:
    """Tables as Markdown; figures are drawn into `out`. ValueError without rows."""
    rows = latest(all_rows(trees))
    if not rows:
        raise ValueError(f"no rows of {', '.join(trees)} in {row_files.RESULTS} yet")
    for path in draw(rows, out):
        log(f"drew {path}")
    return f"{validity(rows)}\n{summary(rows)}\n{tables(rows)}"


def compare_tree(name: str, args: argparse.Namespace, names: Sequence[str]) -> None:
    """Settle all policies, then run them on this part of the held-out prompts."""
    tree = load(name, fp32=True)
    profile = profile_of(tree)
    weights = weights_hash(tree)
    references = References(tree, args.out / f"{name}-{weights}")
    tuned = row_files.RESULTS / "tuning" / references.folder.name
    tuning = Tuning(tree, tuning_references(references, args), tuned)
    given = Given(tree, profile, tuning, args.calibration_prompts)
    policies = [policy for policy in policies_of(given) if policy.name in names]
    settled = settle_all(policies, tuning, args)
    rows = Rows(all_rows(TREES), OF_RUN, OF_ROW)
    for number, (prompt, seed) in enumerate(held_out(args.prompts)):
        if number % args.parts == args.part:
            title = f"{name} {number + 1}/{args.prompts}"
            of_row = {"weights": weights, "prompt": prompt, "seed": seed}
            run_prompt(tree, references, settled, rows, {"tree": name, **of_row}, title)


def tuning_references(references: References, args: argparse.Namespace) -> list[Reference]:
    prompts = calibration_prompts(args.calibration_prompts)[: args.tune_prompts]
    return [references.get("calibration", n, p, SEED + n) for n, p in enumerate(prompts)]


def settle_all(
    policies: Sequence[Policy], tuning: Tuning, args: argparse.Namespace
) -> list[Settled]:
    """Every policy at every budget; what is left out is said on stderr.

    Each process begins elsewhere, so that several share the tuning.
    """
    start, found = len(policies) * args.part // args.parts, {}
    for policy in (*policies[start:], *policies[:start]):
        found[policy.name] = settle(policy, tuning, args.budgets)
    return [one for policy in policies for one in found[policy.name]]


def settle(policy: Policy, tuning: Tuning, budgets: Sequence[float]) -> list[Settled]:
    """One policy at every budget that it reaches."""
    tree, found = tuning.tree.name, []
    if policy.missing:
        log(f"{tree} {policy.name} left out: {policy.missing}")
        return []
    with tuning.locked(policy.name):
        for budget in [None] if policy.one_point else budgets:
            try:
                sampler = policy.settle(budget)
            except UnreachableError as error:
                log(f"{tree} {policy.name} left out: {error}")
                continue
            log(f"{tree} {policy.name} {label(budget)}: {sampler.key}")
            found.append(Settled(policy.name, budget, sampler))
    return found


def run_prompt(
    tree: Tree,
    references: References,
    settled: Sequence[Settled],
    rows: Rows,
    of_prompt: dict[str, Any],
    title: str,
) -> None:
    """The missing rows of one prompt; samplers that several policies share run once."""
    planned = [(one, one_row(one, of_prompt)) for one in settled]
    missing = [(one, row) for one, row in planned if row not in rows]
    if not missing:
        log(f"{title}: all {len(planned)} rows are there")
        return
    prompt, seed = of_prompt["prompt"], of_prompt["seed"]
    reference = references.get("held-out", seed, prompt, seed)
    found = {"precision": "fp32", **environment(default_device())}
    for done, (one, row) in enumerate(missing, 1):
        same = rows.same_run(row)
        figures = {**measured(tree, one.sampler, reference), **found} if same is None else same
        row = {**figures, **row}
        append_row(f"{NAME}_{row['tree']}", row)
        rows.add(row)
        log(
            f"{title}, {done} of {len(missing)}: {one.policy} {label(one.budget)}: "
            f"{row['speedup']:.2f}x {row['psnr_frames']:.1f} dB {row['seconds']:.1f} s"
        )


def one_row(one: Settled, of_prompt: dict[str, Any]) -> dict[str, Any]:
    """What a row is of; the figures follow."""
    settings = one.sampler.settings
    return {**of_prompt, "policy": one.policy, "budget": one.budget, "settings": settings}


def label(budget: float | None) -> str:
    return "at its own speed" if budget is None else f"{budget:g}x"


def build_parser() -> Parser:
    parser = Parser(__doc__, prompts=24, budgets=BUDGETS, parts=True, out="out/compare", table=True)
    parser.add_argument(
        "--policies",
        nargs="+",
        default=list(ALL),
        help=f"names or groups (policies.GROUPS); the others are compared with {OURS!r}",
    )
    parser.add_argument(
        "--tune-prompts", type=at_least(1), default=2, help="of the calibration prompts"
    )
    parser.add_argument("--calibration-prompts", type=at_least(1), default=PROMPTS)
    return parser

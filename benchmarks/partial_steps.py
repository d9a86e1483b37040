"""Do partial steps pay? Whole steps alone against every part of the model, at equal compute.

For every part (profiling_core.partial_steps) the best plan that the search predicts with it, run on
calibration and held-out prompts of both miniatures; rows go to results/partial_steps.jsonl, and a
row that is there is not made again.

    python benchmarks/partial_steps.py --prompts 2
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import common
from calibrate import SEED, calibration_prompts, profile_path
from common import TREES, append_row, default_device, environment, quiet_log, table
from compare_ways import Planned, Reference, References, measured, weights_hash
from miniatures.clips import held_out_prompts
from pipelines import BUILD, Tree
from profiling_core.partial_steps import parts_of
from profiling_core.profile import Profile
from profiling_core.search import Budget, PlanSearch, Point

NAME = "partial_steps"
HELD_OUT_SEED = 100
BUDGETS = (1.5, 1.9, 3.0)
OF_ROW = ("tree", "weights", "budget", "part", "skip", "plan", "prompt", "seed")


def main() -> int:
    args = build_parser().parse_args()
    quiet_log()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.trees:
        rows += run_tree(name, args)
    sys.stdout.write(shown(rows))
    return 0


def run_tree(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one tree, those included that were there."""
    tree = BUILD[name](default_device(), fp32=True)
    weights = weights_hash(tree)
    references = References(tree, args.out / f"{name}-{weights}")
    profile = Profile.load(profile_path(tree))
    chosen = [(b, *each) for b in args.budgets for each in plans(profile, b)]
    known, rows = load(), []
    for kind, number, prompt, seed in prompts(args.prompts):
        reference = None
        for budget, point, way in chosen:
            row = {
                **{"tree": name, "weights": weights, "budget": budget, "part": point.part},
                **{"skip": point.skip, **way.settings, "prompt": prompt, "seed": seed},
            }
            if (found := known.get(key(row))) is None:
                reference = reference or references.get(kind, number, prompt, seed)
                found = run_row(tree, row, point, way, reference)
            rows.append(found)
        sys.stderr.write(f"{name}: {prompt}\n")
    return rows


def plans(profile: Profile, budget: float) -> Iterator[tuple[Point, Planned]]:
    """The best plan without partial steps, then the best of every part."""
    search = PlanSearch(profile, parts=tuple(parts_of(profile)))
    asked = Budget(speedup=budget)
    found = search.candidates(asked, 10**6)  # sorted by predicted error
    for part in (None, *search.parts):
        if (own := next((p for p in found if p.part == part), None)) is not None:
            yield own, Planned(search.plan_of(own, asked))


def prompts(count: int) -> Iterator[tuple[str, int, str, int]]:
    """Kind, number, prompt and seed: `count` that the profile knows, `count` that it does not."""
    for number, prompt in enumerate(calibration_prompts(count)):
        yield "calibration", number, prompt, SEED + number
    for number, prompt in enumerate(held_out_prompts(count)):
        seed = HELD_OUT_SEED + number
        yield "held-out", seed, prompt, seed


def run_row(
    tree: Tree, row: dict[str, Any], point: Point, way: Planned, reference: Reference
) -> dict[str, Any]:
    facts = {
        "steps": list(point.steps),
        "partial": list(point.partial),
        "predicted": round(point.error, 6),
    }
    row = {**row, **facts, **measured(tree, way, reference)}
    append_row(NAME, {**row, "precision": "fp32", **environment(default_device())})
    return row


def load() -> dict[str, dict[str, Any]]:
    path = common.RESULTS / f"{NAME}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {key(row): row for row in map(json.loads, lines)}


def key(row: dict[str, Any]) -> str:
    return json.dumps([row[name] for name in OF_ROW])


def shown(rows: list[dict[str, Any]]) -> str:
    """A line per plan: predicted error, mean PSNR, and its difference from whole steps."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["tree"], row["budget"], row["part"]), []).append(row)
    header = ["tree", "budget", "left out", "steps", "partial", "speed-up", "predicted", "measured"]
    lines = []
    for (tree, budget, part), own in groups.items():
        whole = {(r["prompt"], r["seed"]): r for r in groups[tree, budget, None]}
        more = [r["psnr_frames"] - whole[r["prompt"], r["seed"]]["psnr_frames"] for r in own]
        first = own[0]
        lines.append(
            [
                *(tree, f"{budget:g}x", f"{part or 'nothing'} ({first['skip']})"),
                *(str(len(first["steps"])), str(len(first["partial"]))),
                *(f"{first['speedup']:.2f}x", f"{first['predicted']:.4f}"),
                f"{fmean(r['latent_error'] for r in own):.4f}",
                f"{fmean(r['psnr_frames'] for r in own):.1f}",
                f"{fmean(more):+.1f}",
            ]
        )
    return table([*header, "PSNR dB", "more dB"], lines) + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--prompts", type=int, default=2, help="calibration and held-out each")
    parser.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/compare"))
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Fits the law of the official models (profiling_core/search/law.py) to public lists of steps.

Every case fits the parameters to some of the evidence (`law_scores`) and is judged by all of it, so
a case that leaves a source, a model or a budget out shows what the law says of lists that it has
not seen. A fit moves a pool of points by the differences of others and towards the best one
(differential evolution), then walks among the laws that are nearly as good: these give the
intervals of the parameters. The miniatures' own held lists go through the same fit, where the truth
is known. Rows go to results/law.jsonl; what is there is not fitted again. The second command prints
the tables, the third writes the worlds that presets are made from:

    python -m benchmarks.search.law --threads 1
    python -m benchmarks.search.law --table
    python -m benchmarks.search.law --save
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks.lib import ROOT
from benchmarks.lib.command_line import Parser, at_least, log
from benchmarks.lib.rows import Rows, append_row, default_device, environment, load_rows, table
from benchmarks.search.law_scores import COUNTS, I2V, displacements, judged, minimax
from profiling_core.files import write_whole
from profiling_core.plan.solvers import skips_of
from profiling_core.profile.profile import Profile
from profiling_core.search.flow_solvers import Levels
from profiling_core.search.law import FILE, Law, LawSearch
from profiling_core.search.preset_search import PROFILES
from profiling_core.search.search import PlanSearch
from profiling_core.search.segments import Segments, held_lengths
from profiling_core.search.sensitivity import default_law
from profiling_core.search.step_search import SENSITIVITY_EXPONENT, StepSearch

NAME = "law"
POWERS = ("1", "2", "4", "inf")
BOX = {  # what a fit looks in; two by their logarithms
    "early": (-1.0, 3.0),
    "late": (-1.0, 6.0),
    "turn": (np.log(5e-4), np.log(0.5)),
    "growth": (0.0, 4.0),
    "largest": (np.log(3.0), np.log(1e6)),
}
LOGARITHMS = ("turn", "largest")
LOW, HIGH = np.array(list(BOX.values())).T
ASSUMED = "nothing: assumed before"
CASES = {  # what a fit sees: the cells of FITTED that match
    ASSUMED: "",
    "everything": "",
    "everything, turn 0.05": "",  # fixed: held lists hardly say how smooth predictions are
    "LeMiCa alone": "lemica",
    "LeMiCa alone, i2v too": r"lemica (14B|1\.3B|i2v 480p)",
    "Golden Path alone": "golden",
    "FLUX alone": "flux",
    "without LeMiCa": "golden|flux",
    "without Golden Path": "lemica|flux",
    "without FLUX": "lemica|golden",
    "without LeMiCa's 14B": "lemica 1.3B|golden|flux",
    "without LeMiCa's 1.3B": "lemica 14B|golden|flux",
    "without LeMiCa's 25 and 17": "lemica .* (20|14)|golden|flux",
    "without LeMiCa's 20 and 14": "lemica .* (25|17)|golden|flux",
    "without Golden Path's HunyuanVideo": "lemica|golden wan|flux",
    "without Golden Path's Wan": "lemica|golden hunyuan|flux",
}
# 9 computed steps are reported alone; so is i2v, but for one case, since its shift is not published
FITTED = r"lemica (14B|1\.3B)|golden \w+ (21|13)|flux"
NEAR, WORLDS = 1.1, 1.2  # times the least loss: for the intervals, for what may be a world
DRAWS, POOL, ROUNDS, WALK = 400, 24, 60, 300  # of a fit
OWN_COUNTS, PLANNED = (25, 20, 17, 14), (33, 25, 20, 17, 16, 14)  # of the miniatures
STEP = 0.06  # of the box, in the walk among near laws


class Assumed(Law):
    """The law before any fit: alpha^-1, and the sensitivity of both miniatures."""

    def sensitivity(self, levels: Levels) -> np.ndarray:
        return default_law(levels.sigma)


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.save:
        save_worlds(load_rows(NAME))
    elif not args.table:
        for case, power in product(args.cases, args.powers):
            run_case(case, power, args)
        for name in args.trees:
            run_miniature(name, args)
    sys.stdout.write(summary(load_rows(NAME)) + "\n")
    return 0


def run_case(case: str, power: str, args: argparse.Namespace) -> None:
    """Fit and append the row of a case, unless it is there."""
    row: dict[str, Any] = {"case": case, "power": power, "seed": args.seed}
    if row in Rows(load_rows(NAME), tuple(row), ()):
        return
    if case == ASSUMED:
        law = Assumed(early=1.0, late=0.0, turn=0.5, growth=0.0, largest=1.0, power=float(power))
        figures = judged(law)
        row |= {"law": rounded(law), "loss": loss(figures, ""), "figures": figures}
        append_row(NAME, {**row, **environment(default_device())})
        return
    turn = case.partition("turn ")[2]

    def law_at(point: np.ndarray) -> Law:
        law = law_of(point, power)
        return replace(law, turn=float(turn)) if turn else law

    seen = CASES[case]
    found = fit(lambda point: loss(judged(law_at(point), "i2v" in seen), seen), args.seed)
    best, near = found.pop("point"), found.pop("near")
    law = law_at(best)
    row |= {"law": rounded(law), **found, "figures": judged(law)}
    row["interval"] = {
        name: [float(f"{f(column.min()):.3g}"), float(f"{f(column.max()):.3g}")]
        for name, column in zip(BOX, near.T, strict=True)
        for f in [np.exp if name in LOGARITHMS else float]
    }
    near = np.array([best, *near])
    row["near"] = [rounded(law_at(near[k])) for k in apart(near, 4)]
    append_row(NAME, {**row, **environment(default_device())})
    log(f"{case}, power {power}: loss {row['loss']:.3f}")


def run_miniature(name: str, args: argparse.Namespace) -> None:
    """Fit a miniature's own held lists; append how far, and what its plans lose, unless there."""
    row: dict[str, Any] = {"case": f"{name} miniature", "power": "any", "seed": args.seed}
    if row in Rows(load_rows(NAME), tuple(row), ()):
        return
    model = next(model for model in PROFILES if model.startswith(name))
    profiled = PlanSearch(Profile.load(ROOT / PROFILES[model]))
    runs, skip = profiled.trajectories, skips_of(profiled.trajectories.solver)[-1]
    held = held_lengths(runs) * profiled.sensitivity.values
    lists = {str(k): steps for k, steps in minimax(held.mean(axis=-1), OWN_COUNTS).items()}

    def far(point: np.ndarray) -> dict[str, Any]:
        table = law_of(point, "1").held(runs.levels, runs.solver)
        return dict(displacements(table, {"own": lists}))

    found = fit(lambda point: float(np.mean(list(far(point).values()))), args.seed, walk=0)
    search = StepSearch(Segments(runs, skip).table, profiled.sensitivity.values)
    own = {count: search.best(count) for count in PLANNED}
    lost: dict[str, dict[str, list[float]]] = {"error": {}, "score": {}}  # (9) and (7)
    for power, exponent in product(POWERS, (1.0, SENSITIVITY_EXPONENT)):
        law = LawSearch(law_of(found["point"], power), runs.levels, runs.solver, exponent)
        plans = [(search.evaluate(law.best(count)), own[count]) for count in PLANNED]
        for by, of in lost.items():
            ratios = [getattr(plan, by) / getattr(best, by) for plan, best in plans]
            of[f"{power}, S^{exponent:g}"] = [round(20 * float(np.log10(r)), 2) for r in ratios]
    figures = {**far(found["point"]), "lost": lost}
    row |= {"law": rounded(law_of(found["point"], "1")), "loss": found["loss"], "figures": figures}
    append_row(NAME, {**row, **environment(default_device())})
    log(f"{name} miniature: {found['loss']:.2f} steps from its own lists")


def save_worlds(rows: list[dict[str, Any]]) -> None:
    """Of the laws fitted to everything the best, then some that are near it and far apart.

    A last one is fitted to the video models alone.
    """
    fits = [row for row in rows if row["case"].startswith("everything")]
    laws = [
        Law(**{name: float(value) for name, value in fields.items()})
        for row in fits
        for fields in (row["law"], *row["near"])
    ]
    losses = np.array([loss(judged(law, i2v=False), "") for law in laws])
    kept = [laws[i] for i in np.argsort(losses) if losses[i] <= WORLDS * losses.min()]
    worlds = [kept[0], *(kept[i] for i in apart(np.array([point_of(k) for k in kept]), 3))]
    video = next(row["law"] for row in rows if row["case"] == "without FLUX")
    document = {
        "what": "Laws that explain the public lists about equally well (docs/research/law.md).",
        "made_by": "python -m benchmarks.search.law --save",
        "worlds": {f"all-{n}": rounded(law) for n, law in enumerate(worlds, 1)} | {"video": video},
    }
    text = json.dumps(document, indent=1) + "\n"
    write_whole(ROOT / "profiling_core" / "search" / FILE, text.encode())


def law_of(point: np.ndarray, power: str) -> Law:
    """The law of a point of the box."""
    fields = dict(zip(BOX, map(float, point), strict=True))
    fields |= {name: float(np.exp(fields[name])) for name in LOGARITHMS}
    return Law(**fields, power=float(power))


def point_of(law: Law) -> np.ndarray:
    """The reverse of `law_of`."""
    fields = asdict(law)
    return np.array([np.log(fields[n]) if n in LOGARITHMS else fields[n] for n in BOX])


def rounded(law: Law) -> dict[str, float | str]:
    """The fields of a law for a file; JSON has no infinity."""
    fields = {name: float(f"{value:.5g}") for name, value in asdict(law).items()}
    return {**fields, "power": f"{law.power:g}"}


def loss(figures: dict[str, Any], seen: str) -> float:
    """How far a law is from what a fit sees, 1 for a law that is just good enough in all of it.

    The mean over the sources: LeMiCa's displacement over 1.5 steps, Golden Path's root mean square
    of 1 - correlation over 0.25, of FLUX half the logarithm of the percentile (0.2 % count 1) and
    half the distance of the own list over 2 steps.
    """
    fitted = f"{FITTED}|{seen}" if "i2v" in seen else FITTED
    cells = {name: v for name, v in figures.items() if re.match(fitted, name)}
    cells = {name: v for name, v in cells.items() if re.match(seen, name)}
    of = {source: [v for name, v in cells.items() if source in name] for source in ("lem", "gold")}
    parts = []
    if of["lem"]:
        parts.append(float(np.mean(of["lem"])) / 1.5)
    if of["gold"]:
        short = 1 - np.nan_to_num(np.array(of["gold"]), nan=-1.0)
        parts.append(float(np.sqrt((short**2).mean())) / 0.25)
    if "flux median" in cells:
        percent = np.log2(1 + cells["flux median"] / 0.2)
        parts.append(float(percent + cells["flux from best"] / 2) / 2)
    return float(np.mean(parts))


def fit(
    loss: Callable[[np.ndarray], float], seed: int, rounds: int = ROUNDS, walk: int = WALK
) -> dict[str, Any]:
    """The point of the least loss, that loss, and all points met that are near it."""
    rng, points, losses = np.random.default_rng(seed), [], []

    def tried(point: np.ndarray) -> float:
        inside = bool(((LOW <= point) & (point <= HIGH)).all())
        points.append(point)
        losses.append(loss(point) if inside else np.inf)
        return losses[-1]

    drawn = LOW + rng.random((DRAWS, len(LOW))) * (HIGH - LOW)
    values = np.array([tried(point) for point in drawn])
    kept = np.argsort(values)[:POOL]
    pool, values = drawn[kept], values[kept]
    for _, k in product(range(rounds), range(POOL)):
        one, other = pool[rng.choice(POOL, 2, replace=False)]
        towards = pool[values.argmin()] - pool[k]
        point = pool[k] + rng.uniform(0.3, 0.9) * (towards + one - other)
        if (value := tried(point)) <= values[k]:
            pool[k], values[k] = point, value
    here = pool[values.argmin()]
    for _ in range(walk):
        there = here + STEP * (HIGH - LOW) * rng.normal(size=len(LOW))
        if tried(there) <= NEAR * min(losses):
            here = there
    least, tries = int(np.argmin(losses)), len(losses)
    near = np.array(points)[np.array(losses) <= NEAR * losses[least]]
    return {"point": points[least], "loss": losses[least], "tries": tries, "near": near}


def apart(points: np.ndarray, count: int) -> list[int]:
    """`count` points that lie far from the first one and from each other, by their numbers."""
    kept = [0]
    for _ in range(min(count, len(points) - 1)):
        away = [np.linalg.norm((points - points[k]) / (HIGH - LOW), axis=1) for k in kept]
        kept.append(int(np.min(away, axis=0).argmax()))
    return kept[1:]


def summary(rows: list[dict[str, Any]]) -> str:
    """A line per case and power: means of LeMiCa and Golden Path, then its cells, FLUX, the law.

    Then the intervals of the parameters, and for the miniatures what plans of their law lose.
    """
    fits, intervals, own = [], [], []
    for row in rows:
        figures, law = row["figures"], row["law"]
        numbers = [f"{law[name]:.3g}" for name in BOX]
        if row["power"] == "any":
            own += [
                [
                    row["case"],
                    f"{row['loss']:.2f}",
                    by,
                    how,
                    f"{np.mean(lost):.1f}",
                    *map(str, lost),
                ]
                for by, of in figures["lost"].items()
                for how, lost in of.items()
            ]
            continue
        lemica = [_mean(figures, f"lemica {name} ") for name in ("14B", "1.3B", *I2V)]
        golden = [figures[f"golden {m} {n}"] for n in COUNTS for m in ("hunyuan", "wan")]
        fits.append(
            [
                *(row["case"], row["power"], f"{row['loss']:.2f}"),
                " ".join(f"{value:.2f}" for value in lemica),
                f"{np.mean(golden[:4]):.2f}: " + " ".join(f"{value:.2f}" for value in golden),
                f"{figures['flux median']:.2f} ({figures['flux worst']:.1f})",
                f"{figures['flux from best']:.1f}",
                ",".join(map(str, figures["flux own list"])),
                *numbers,
            ]
        )
        if "interval" in row and row["case"].startswith("everything"):
            spans = (f"{low:g} to {high:g}" for low, high in row["interval"].values())
            intervals.append([row["case"], row["power"], *spans])
    scores = ["LeMiCa", "Golden Path", "FLUX %", "from", "own list"]
    tables = [
        table(["fitted to", "power", "loss", *scores, *BOX], fits),
        table(["near laws of", "power", *BOX], intervals),
        table(["fitted to", "far", "lost by", "power", "mean dB", *map(str, PLANNED)], own),
    ]
    return "\n\n".join(tables)


def _mean(figures: dict[str, Any], start: str) -> float:
    return float(np.mean([value for name, value in figures.items() if name.startswith(start)]))


def build_parser() -> Parser:
    parser = Parser(__doc__, table=True)
    parser.add_argument("--save", action="store_true", help="write the worlds, fit nothing")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--powers", nargs="+", choices=POWERS, default=["4"])
    parser.add_argument("--seed", type=at_least(0), default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Does a plan do what was predicted: error, speed-up, and the seconds that its search takes?

errors  10 plans a reuse mode on calibration and held-out prompts: relative error of the final
        latent beside the predicted one, rank correlations, a figure. Every plan reuses the whole
        prediction: "searched", the best of every reuse mode and speed-up; "exchanged", the same
        with a few steps moved at random; "hand", a protected start and end; "uniform", even steps.
        Runs that have a row already are not made again.
speed   the denoising loop with searched plans and without, in alternation. By block FLOPs a plan
        of the whole prediction is as fast as its share of computed steps says; "with the loop"
        adds what every visited step costs beside the model, got from a run that computes one step.
        Wants a quiet machine.
search  a fresh process that loads the profile and plans for 2x, with one and with two threads.

Rows go to results/prediction.jsonl; the figures in docs/research/prediction.md are made of them:

    python -m benchmarks.search.prediction --threads 1
    python -m benchmarks.search.prediction --parts errors --table    # from the rows alone, no runs
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.compare.samplers import Planned, plan_hash, save_array, weights_hash
from benchmarks.lib import ROOT
from benchmarks.lib import rows as row_files
from benchmarks.lib.calibrate import (
    PROMPTS,
    SEED,
    calibration_prompts,
    held_out,
    profile_of,
    profile_path,
)
from benchmarks.lib.clips import EXAMPLES, Inputs, Tree, load
from benchmarks.lib.command_line import Parser, log
from benchmarks.lib.ranks import spearman
from benchmarks.lib.rows import (
    TITLES,
    Row,
    append_row,
    default_device,
    environment,
    save_figure,
    table,
)
from benchmarks.lib.schedules import even, plan_on, protected_ends
from benchmarks.lib.timing import alternate, paired_ratio
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.importers import from_steps
from profiling_core.search.search import Budget, PlanSearch, Point
from profiling_core.search.step_search import QUANTILE

PARTS = ("errors", "search", "speed")
NAME = "prediction"
SPEEDUPS = (1.5, 2.0, 3.0)  # of the part speed
SEARCHED, EXCHANGED, HAND, UNIFORM = (1.25, 1.5, 2.0, 3.0, 4.0), (2.0, 3.0), (2.0,), (1.5, 3.0)
MOST_MOVED = 5  # steps of an exchanged plan
COLOURS = {
    "hold": "C7",
    "linear": "C0",
    "corrected": "C3",
    "fitted": "C4",
    "jump": "C2",
}
MARKERS = {"searched": "o", "exchanged": "^", "hand": "s", "uniform": "x"}
TIMED = """
import json, os, sys, time
began, spent = time.perf_counter(), time.process_time()
from profiling_core.profile.profile import Profile
from profiling_core.search.search import Budget, PlanSearch
start, cpu = time.perf_counter(), time.process_time()
PlanSearch(Profile.load(sys.argv[1])).plan(Budget(speedup=float(sys.argv[2])))
print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, start - began]))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 after one line on stderr for bad input."""
    try:
        args = build_parser().parse_args(arguments)
        torch.set_num_threads(args.threads)
        parts = {"errors": errors, "search": search_seconds, "speed": speed}
        for part in (part for part in PARTS if part in args.parts):
            parts[part](args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


# -- errors: plans of many kinds


@dataclass(frozen=True)
class Kind:
    """What a plan is: one of "searched", "exchanged", "hand", "uniform", and its settings."""

    kind: str
    skip: str
    speedup: float  # as asked for

    @property
    def name(self) -> str:
        return f"{self.kind} {self.skip} {self.speedup:g}x"


def plans_of(search: PlanSearch) -> dict[Kind, CachePlan]:
    """All plans of a profile: 10 of every reuse mode."""
    plans, total = {}, search.trajectories.steps
    for kind, steps in _all(search):
        point = Point(kind.skip, steps, total / len(steps), 0.0)
        plans[kind] = search.plan_of(point, Budget(speedup=kind.speedup), kind.name)
    return plans


def _all(search: PlanSearch) -> Iterator[tuple[Kind, tuple[int, ...]]]:
    total = search.trajectories.steps
    count = {speed: max(1, int(total / speed + 1e-9)) for speed in (*SEARCHED, *HAND, *UNIFORM)}
    for skip in search.skips:
        for speed in SEARCHED:
            found = search.point_of(skip, count[speed]).steps
            yield Kind("searched", skip, speed), found
            if speed in EXCHANGED:
                kind = Kind("exchanged", skip, speed)
                yield kind, exchanged(found, total, zlib.crc32(kind.name.encode()))
        for speed in HAND:
            yield Kind("hand", skip, speed), protected_ends(total, count[speed])
        for speed in UNIFORM:
            yield Kind("uniform", skip, speed), tuple(even(total, count[speed]))


def exchanged(steps: tuple[int, ...], total: int, seed: int) -> tuple[int, ...]:
    """1 to MOST_MOVED of the compute steps, but not step 0, moved to others at random."""
    rng = np.random.default_rng(seed)
    free = sorted(set(range(total)) - set(steps))
    moved = min(int(rng.integers(1, MOST_MOVED + 1)), len(steps) - 1, len(free))
    gone = rng.choice(steps[1:], moved, replace=False).tolist()
    new = rng.choice(free, moved, replace=False).tolist()
    return tuple(sorted({*steps, *new} - set(gone)))


# -- errors: runs


@dataclass(frozen=True)
class Prompt:
    """run: the prompt's place in the profile; None for a held-out one."""

    text: str
    seed: int
    run: int | None

    @property
    def label(self) -> str:
        return "held out" if self.run is None else "calibration"


def errors(args: argparse.Namespace) -> None:
    """Run what is missing, then ranks and a figure of every tree."""
    for name in args.trees:
        tree = load(name, fp32=True)
        search = PlanSearch(profile_of(tree))
        plans = plans_of(search)
        prompts = prompts_of(search, args.calibration_prompts, args.held_out_prompts)
        if not args.table:
            measure_all(tree, plans, prompts, args.out)
        pairs = pairs_of(search, plans, prompts, weights_hash(tree))
        if not pairs:
            raise ValueError(
                f"no plan of {name} has rows of all {len(prompts)} prompts yet: run without --table"
            )
        rows = ranks(pairs, prompts)
        for row in () if args.table else rows:
            facts = {"what": "ranks", "tree": name, "prompts": len(prompts), **asdict(row)}
            append_row(NAME, {**facts, **environment(default_device())})
        header = ["plans", "n", "rank correlation", "of calibration prompts"]
        header += ["of held-out prompts", "measured / predicted"]
        shown = table(header, [row.cells for row in rows])
        sys.stdout.write(f"{name}, {len(pairs)} plans, {len(prompts)} prompts\n{shown}\n")
        for path in draw(name, pairs, args.out):
            log(f"drew {path}")


def prompts_of(search: PlanSearch, calibration: int, others_count: int) -> list[Prompt]:
    """Prompts of both sorts by turns; ValueError for a profile of other prompts."""
    places = {(run.prompt, run.seed): place for place, run in enumerate(search.profile.runs)}
    own = []
    for number, text in enumerate(calibration_prompts(PROMPTS)[:calibration]):
        if (text, SEED + number) not in places:
            raise ValueError(f"the profile has no run of {text!r}, seed {SEED + number}")
        own.append(Prompt(text, SEED + number, places[text, SEED + number]))
    others = [Prompt(text, seed, None) for text, seed in held_out(others_count)]
    turns = [(n, prompt) for each in (own, others) for n, prompt in enumerate(each)]
    return [prompt for _, prompt in sorted(turns, key=lambda turn: turn[0])]


def error_rows() -> list[Row]:
    """Rows of measured errors, oldest first; ValueError names a line that is none."""
    return [row for row in row_files.load_rows(NAME) if row["what"] == "error"]


def measure_all(
    tree: Tree, plans: dict[Kind, CachePlan], prompts: Sequence[Prompt], folder: Path
) -> None:
    """Run every plan on every prompt that has no row yet."""
    weights, found = weights_hash(tree), environment(tree.pipeline.device)
    done = {(row["weights"], row["plan"], row["prompt"], row["seed"]) for row in error_rows()}
    for number, prompt in enumerate(prompts, 1):
        inputs = tree.inputs(prompt.text, prompt.seed)
        full = full_latent(tree, inputs, folder / f"{weights}-{prompt.seed}.npy")
        for kind, plan in plans.items():
            key = (weights, plan_hash(plan), prompt.text, prompt.seed)
            if key in done:
                continue
            done.add(key)
            error = latent_error(Planned(plan).run(tree, inputs).latent, full)
            row = {
                **{"what": "error", "tree": tree.name, "weights": weights, "plan": key[1]},
                **{"kind": kind.kind, "skip": kind.skip, "speedup": kind.speedup},
                "steps": list(plan.prediction.compute_steps["cond"]),
                **{"prompt": prompt.text, "seed": prompt.seed, "of": prompt.label},
                "measured": round(error, 7),
            }
            append_row(NAME, {**row, **found})
            log(f"{tree.name} {number}/{len(prompts)} {kind.name}: {error:.4f}")


def full_latent(tree: Tree, inputs: Inputs, path: Path) -> Tensor:
    """The full run's latent, kept in a file."""
    if not path.exists():
        save_array(path, tree.denoise(inputs).cpu().numpy())
    return torch.from_numpy(np.load(path))


# -- errors: predicted beside measured


@dataclass(frozen=True)
class Pair:
    """One plan; predicted: the quantile over the profile's runs; by seed: (predicted, measured).

    The quantile is the prediction for a held-out prompt.
    """

    kind: Kind
    predicted: float
    by_seed: dict[int, tuple[float, float]]

    @property
    def measured(self) -> float:
        """The same quantile over the prompts that were run."""
        return float(np.quantile([measured for _, measured in self.by_seed.values()], QUANTILE))


def pairs_of(
    search: PlanSearch, plans: dict[Kind, CachePlan], prompts: Sequence[Prompt], weights: str
) -> list[Pair]:
    """What the rows say of the plans; a plan that some prompt lacks is left out."""
    rows = [row for row in error_rows() if row["weights"] == weights]
    measured = {(row["plan"], row["prompt"], row["seed"]): row["measured"] for row in rows}
    found = []
    for kind, plan in plans.items():
        of_run, name = search.predicted_errors(plan), plan_hash(plan)
        whole, by_seed = float(np.quantile(of_run, QUANTILE)), {}
        for prompt in prompts:
            predicted = whole if prompt.run is None else float(of_run[prompt.run])
            if (error := measured.get((name, prompt.text, prompt.seed))) is not None:
                by_seed[prompt.seed] = (predicted, error)
        if len(by_seed) == len(prompts):
            found.append(Pair(kind, whole, by_seed))
    return found


@dataclass(frozen=True)
class Ranks:
    """Spearman's rank correlation of some pairs, and the median of measured / predicted."""

    group: str
    count: int
    overall: float  # quantiles over prompts and runs
    ratio: float
    calibration: float | None  # mean over prompts of the correlation over plans
    held_out: float | None

    @property
    def cells(self) -> list[str]:
        means = ("-" if m is None else f"{m:.3f}" for m in (self.calibration, self.held_out))
        return [self.group, str(self.count), f"{self.overall:.3f}", *means, f"{self.ratio:.2f}"]


def ranks(pairs: Sequence[Pair], prompts: Sequence[Prompt]) -> list[Ranks]:
    """All pairs, then those of every reuse mode, every speed-up and every kind of plan."""
    groups = {"all": list(pairs)}
    for words in (lambda k: k.skip, lambda k: f"{k.speedup:g}x", lambda k: k.kind):
        for name in sorted({words(pair.kind) for pair in pairs}):
            groups[name] = [pair for pair in pairs if words(pair.kind) == name]
    return [_ranks(name, group, prompts) for name, group in groups.items() if len(group) > 3]


def _ranks(group: str, pairs: Sequence[Pair], prompts: Sequence[Prompt]) -> Ranks:
    predicted, measured = _errors(pairs)
    by_label: dict[str, list[float]] = {"calibration": [], "held out": []}
    for prompt in prompts:
        both = np.array([pair.by_seed[prompt.seed] for pair in pairs])
        by_label[prompt.label].append(spearman(both[:, 0], both[:, 1]))
    means = [float(np.mean(found)) if found else None for found in by_label.values()]
    ratio = float(np.median(measured / predicted))
    return Ranks(group, len(pairs), spearman(predicted, measured), ratio, *means)


def _errors(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p.predicted for p in pairs]), np.array([p.measured for p in pairs])


def draw(tree: str, pairs: Sequence[Pair], out: Path) -> list[Path]:
    """prediction_<tree>.png and .svg in `out`; a point is a plan, both errors 80th percentiles."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(6.6, 5.8), layout="tight")
    axis, (predicted, measured) = figure.subplots(), _errors(pairs)
    for pair in pairs:
        style = {"c": COLOURS[pair.kind.skip], "marker": MARKERS[pair.kind.kind]}
        axis.scatter(pair.predicted, pair.measured, s=36, alpha=0.85, **style)
    ratio, ends = float(np.median(measured / predicted)), np.sort(predicted)[[0, -1]]
    axis.plot(ends, ends, color="#bbbbbb", lw=1, label="as predicted")
    axis.plot(ends, ends * ratio, color="#bbbbbb", lw=1, ls="--", label=f"{ratio:.2f} times")
    axis.set(xscale="log", yscale="log", ylabel="measured")
    axis.set_xlabel("predicted relative error of the final latent")
    axis.grid(True, which="major", color="#eeeeee")
    words = f"{len(pairs)} plans, rank correlation {spearman(predicted, measured):.2f}"
    axis.set_title(f"{TITLES[tree]}: {words}", loc="left", fontsize=11)
    skips = [skip for skip in COLOURS if any(pair.kind.skip == skip for pair in pairs)]
    marks = [Line2D([], [], color=COLOURS[s], marker="o", ls="", label=s) for s in skips]
    marks += [Line2D([], [], color="#444", marker=m, ls="", label=k) for k, m in MARKERS.items()]
    axis.legend(handles=[*marks, *axis.get_lines()], fontsize=8, loc="upper left")
    return save_figure(figure, out / f"prediction_{tree}")


# -- speed


def speed(args: argparse.Namespace) -> None:
    """Loop seconds in alternation, for one plan at every speed-up."""
    lines = []
    for name in args.trees:
        tree = load(name, fp32=True)
        search = PlanSearch(profile_of(tree))
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
    inputs, taken = tree.inputs(EXAMPLES[tree.name], 0), {}
    like = next(iter(plans.values()))
    alone = plan_on(like, "one step", from_steps(like.steps, [0], like.branches), "step 0 alone")

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


# -- search


def search_seconds(args: argparse.Namespace) -> None:
    """Wall and CPU seconds of a search in a fresh process, medians."""
    lines = []
    for name in args.trees:
        path = profile_path(load(name, fp32=True))
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
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **dict.fromkeys(names, str(threads))}
    command = [sys.executable, "-c", TIMED, str(path), "2.0"]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def build_parser() -> Parser:
    parser = Parser(__doc__, rounds=5, out="out/prediction", table=True)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--calibration-prompts", type=int, default=2)
    add("--held-out-prompts", type=int, default=2)
    add("--search-rounds", type=int, default=3)
    add("--search-threads", type=int, nargs="+", default=[1, 2])
    return parser


if __name__ == "__main__":
    sys.exit(main())

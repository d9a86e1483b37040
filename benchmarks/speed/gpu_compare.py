"""What the policies of compare.py cost in seconds on the full-size models, on one GPU.

Random weights: time and memory only, no quality. Models and clips are those of gpu_step.py. Of
every policy single calls are timed (computed, reused, the decision alone), and the seconds of the
denoising loop at each budget are put together from them: the model's calls alone; guidance and the
solver's step, the same latent-sized work for all, are left out. Where a rule decides at run time
its answer is forced, so many reused calls as the budget wants, but the decision is made and paid
for. Needs torch, NumPy and pydantic alone; the packages of compare.py need diffusers and are left
out. Rows go to results/gpu_compare.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from math import log
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.baselines import PEERS, MagCache, Peer, Variant
from benchmarks.lib.rows import append_row, environment, table
from benchmarks.lib.schedules import even, protected_ends
from benchmarks.lib.timing import Subject, peak_memory, reset_peak, timed
from benchmarks.speed.gpu_policies import Costs, FewerSteps, Planned, Policy, Ruled
from benchmarks.speed.gpu_step import MODELS
from profiling_core.plan import CachePlan
from profiling_core.plan.importers import from_shrinking, from_steps
from profiling_core.plan.presets import STEPS, build_preset
from profiling_core.plan.schedule import stepwise

BUDGETS = (1.5, 1.9, 2.3, 3.0)
WARMUPS = (6, 4, 2, 1)  # of the paper's plan: the release's first
LONGEST = 24
TMAX, TMIN = 12, 2  # the release's
TREE_OF = {"wan2.1": "wan", "hunyuan-video": "hunyuan"}
NAMES = ("fewer steps", "uniform hold", "uniform linear", "ours jump", "ours linear")
NAMES += ("ours corrected", "paper", "release", *(peer.name for peer in PEERS))


def main() -> int:
    args = build_parser().parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device: this benchmark measures a GPU\n")
        return 2
    device = torch.device("cuda")
    for name in args.models:
        subject = MODELS[name].subject(name, device)
        rows = compare(subject, args.budgets, args.policies, args.rounds, device)
        facts = {"weights": str(MODELS[name].dtype).removeprefix("torch."), **environment(device)}
        for row in rows:
            append_row("gpu_compare", {**row, **facts})
        sys.stdout.write(f"{name}\n{shown(rows)}\n")
        del subject
        torch.cuda.empty_cache()
    return 0


def compare(
    subject: Subject,
    budgets: Sequence[float],
    names: Sequence[str],
    rounds: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """A row for every policy and budget."""
    subject.call()  # warm-up
    reset_peak(device)
    seconds = timed(subject.call, device)
    bare = peak_memory(device)
    sys.stderr.write(f"{subject.name}: a full call takes {seconds:.3f} s\n")
    rows = []
    for policy in policies(subject):
        if policy.name in names:
            costs = policy.costs(rounds, device)
            found = [None] if policy.own_speed else budgets
            rows += [one_row(subject, policy, costs, budget, bare) for budget in found]
            sys.stderr.write(f"{subject.name} {policy.name} done\n")
    return rows


def policies(subject: Subject) -> Iterator[Policy]:
    """Those that the subject's tree and solver have, in the order of NAMES."""
    planned = subject.planned
    tree, euler = TREE_OF[planned.fingerprint.family], planned.family.solver == "euler"
    yield FewerSteps(subject, STEPS)
    for skip in ("hold", "linear"):
        yield Planned(subject, f"uniform {skip}", partial(whole, subject, skip, True))
    for skip in ("linear", "corrected") if euler else ("jump", "linear"):
        yield Planned(subject, f"ours {skip}", partial(whole, subject, skip, False))
    yield Planned(subject, "paper", partial(paper, subject))
    release = build_preset(planned, "release")
    yield Planned(subject, "release", lambda budget: release, own_speed=True)
    for build in PEERS:
        peer = build()
        yield Ruled(subject, tree, STEPS, peer, first_variant(tree, peer))


def first_variant(tree: str, peer: Peer) -> Variant:
    """The authors' own settings; of MagCache the K that reaches every budget."""
    variants = peer.variants(SimpleNamespace(name=tree))  # all that they depend on
    return variants[-1 if isinstance(peer, MagCache) else 0]


def whole(subject: Subject, skip: str, uniform: bool, budget: float) -> CachePlan:
    """The whole prediction reused: even steps, or a protected start and end like `balanced`."""
    count = max(1, round(STEPS / budget))
    computed = even(STEPS, count) if uniform else protected_ends(STEPS, count)
    sites = from_steps(STEPS, computed, subject.planned.family.branches, skip)
    return _plan(subject, f"{skip} {count}", sites, f"{count} computed steps")


def paper(subject: Subject, budget: float) -> CachePlan:
    """The released background blocks of all lists on one shrinking list of steps.

    Warm-up, Tmax and Tmin: of those that come within 1 % of the budget the nearest to the
    release's, else those that come nearest to the budget.
    """
    planned = subject.planned
    runs = {n: r.background_at(planned.depth(n)) for n, r in planned.family.released.items()}
    reused = sum(last - first + 1 for each in runs.values() for first, last in each)
    share = reused / sum(planned.fingerprint.block_lists.values())

    def misses(settings: tuple[int, int, int]) -> tuple[float, float]:
        computed = len(stepwise(STEPS, *settings))
        off = abs(log(budget * (1 - share * (1 - computed / STEPS))))
        warmup, tmax, tmin = settings
        far = abs(log(tmax / TMAX)) + abs(log(tmin / TMIN)) + abs(warmup - WARMUPS[0]) / STEPS
        return max(off, 0.01), far

    found = product(WARMUPS, range(2, LONGEST + 1), range(1, LONGEST + 1))
    warmup, tmax, tmin = min((each for each in found if each[2] <= each[1]), key=misses)
    sites = [
        site
        for name, intervals in runs.items()
        for site in from_shrinking(
            name,
            intervals,
            steps=STEPS,
            warmup=warmup,
            longest=tmax,
            shortest=tmin,
            branches=planned.family.branches,
        )
    ]
    words = f"warm-up {warmup}, Tmax {tmax}, Tmin {tmin}"
    return _plan(subject, f"paper {budget:g}x", sites, words)


def _plan(subject: Subject, name: str, sites: list[dict], source: str) -> CachePlan:
    planned = subject.planned
    return CachePlan.build(
        name=name,
        model=planned.fingerprint,
        steps=STEPS,
        sigmas=planned.sigmas(STEPS),
        solver=planned.family.solver,
        shift=planned.family.shift,
        sites=sites,
        provenance={"made_by": "benchmarks/speed/gpu_compare.py", "source": source},
    )


def one_row(
    subject: Subject, policy: Policy, costs: Costs, budget: float | None, bare: int
) -> dict[str, Any]:
    """Seconds of the calls, and of the loop that the budget's schedule makes of them."""
    schedule = policy.schedule(budget or 1.0)
    full = STEPS * len(subject.planned.family.branches) * costs.seconds["run"]
    loop = costs.loop(schedule)
    return {
        "model": subject.name,
        "policy": policy.name,
        "budget": budget,
        "tokens": subject.planned.clip.tokens,
        "seconds": rounded(costs.seconds),
        "parts": rounded(costs.parts),
        "calls": schedule.counts,
        "full_seconds": round(full, 4),
        "loop_seconds": round(loop, 4),
        "ideal": round(schedule.ideal, 4),
        "achieved": round(full / loop, 4),
        "achieved_over_ideal": round(full / loop / schedule.ideal, 4),
        "bytes_held": costs.held,
        "peak_over_bare": costs.peak - bare,
    }


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """One line per row: milliseconds of calls, seconds of loops."""
    lines = []
    for row in rows:
        calls = {**row["seconds"], **row["parts"]}
        computed = max((calls[k] for k in ("keep", "compute", "correct") if k in calls), default=0)
        cells = (calls["run"], computed or calls["run"], calls.get("reuse"), calls.get("decision"))
        lines.append(
            [
                row["policy"],
                "own" if row["budget"] is None else f"{row['budget']:g}x",
                *("-" if cell is None else f"{1000 * cell:.1f}" for cell in cells),
                f"{row['loop_seconds']:.1f}",
                f"{row['ideal']:.2f}x",
                f"{row['achieved']:.2f}x",
                f"{row['achieved_over_ideal']:.3f}",
                *(f"{row[key] / 2**30:.3f}" for key in ("bytes_held", "peak_over_bare")),
            ]
        )
    header = ["policy", "budget", "ms full", "ms compute", "ms reuse", "ms decision", "s loop"]
    header += ["ideal", "achieved", "achieved/ideal", "GiB extra", "GiB peak over bare"]
    return table(header, lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = ["wan2.1-t2v-14B", "hunyuan-video-540p"]
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=shipped)
    parser.add_argument("--policies", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--rounds", type=int, default=2)
    return parser


if __name__ == "__main__":
    sys.exit(main())

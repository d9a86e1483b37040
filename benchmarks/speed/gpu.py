"""What plans and policies cost on full-size models with random weights, on one GPU.

Wan2.1 T2V at 832x480, 81 frames (32,760 tokens; the 14B as bf16, its fp32 weights are 57 GB), and
HunyuanVideo (HYVideo-T/2-cfgdistill, bf16) at 960x544 and 1280x720, 129 frames, 256 text tokens
(67,576 and 119,056 tokens). Time and memory only, no quality; needs torch, NumPy and pydantic
alone, so that the packages of the comparison are left out.

plans     seconds per kind of call, bytes, peak memory and achieved speed-up of every shipped plan;
          rows go to results/gpu_step.jsonl
policies  single calls of every policy of the comparison are timed (computed, reused, the decision
          alone), and the seconds of the loop at each budget are put together from them: the model's
          calls alone, without guidance and the solver's step. The rules of the peers are asked at
          every step and pay for their decision (signals, norms, host reads, the probe of DiCache),
          but the answer is forced, as many reused calls as the budget wants: random weights give no
          decisions worth counting; rows go to results/gpu_compare.jsonl
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import log
from statistics import median
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines import PEERS, DiCache, EasyCache, MagCache, Peer, TeaCache, Variant
from benchmarks.baselines.base import BRANCHES, Call, standing_before, storage_bytes
from benchmarks.baselines.dicache import LIMIT, PROBE_DEPTH, DiBranch
from benchmarks.baselines.easycache import EasyRule
from benchmarks.baselines.magcache import MagBranch
from benchmarks.baselines.residual import Branch, Entry, ResidualRule
from benchmarks.baselines.teacache import DEGREE, TeaBranch
from benchmarks.lib.rows import append_row, environment, table
from benchmarks.lib.schedules import even, plan_on, protected_ends
from benchmarks.lib.subjects import hunyuan_subject, random_model, wan_subject
from benchmarks.lib.timing import Subject, cost_row, kinds, peak_memory, reset_peak, timed, visit
from hyvideo.config import CONFIGS
from hyvideo.model import HYVideoDiffusionTransformer
from profiling_core.engine.anchors import tensors_of
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.importers import from_shrinking, from_steps
from profiling_core.plan.presets import STEPS, build_preset
from profiling_core.plan.schedule import stepwise
from profiling_core.plan.site_schedule import corrections
from wan.model import WanModel

PARTS = ("plans", "policies")
BUDGETS = (1.5, 1.9, 2.3, 3.0)
TIMED_AT = 3.0  # budget of the plan whose calls are timed: long stretches of skipped steps
WARMUPS, LONGEST = (6, 4, 2, 1), 24  # of the paper's plan, the release's warm-up first
TMAX, TMIN = 12, 2  # the release's
FIRST_ASKED = 20  # a step at which every rule decides
THRESHOLD = 0.1  # of the rules; their answers are forced
TREE_OF = {"wan2.1": "wan", "hunyuan-video": "hunyuan"}
NAMES = ("fewer steps", "uniform hold", "uniform linear", "ours jump", "ours linear")
NAMES += ("ours corrected", "paper", "release", *(peer.name for peer in PEERS))
CallCounts = dict[str, int]  # calls of every kind in one clip


@dataclass(frozen=True)
class FullWan:
    """Transformer arguments, type of the weights, latent of the clip."""

    sizes: dict[str, int]
    dtype: torch.dtype
    latent: tuple[int, ...] = (16, 21, 60, 104)

    def subject(self, name: str, device: torch.device) -> Subject:
        model = random_model(lambda: WanModel(**self.sizes), self.dtype, device)
        return wan_subject(name, model, self.latent, autocast=True)


@dataclass(frozen=True)
class FullHunyuan:
    """The same with as many text tokens as a long prompt has."""

    sizes: dict[str, object]
    latent: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    text_tokens: int = 256

    def subject(self, name: str, device: torch.device) -> Subject:
        model = random_model(lambda: HYVideoDiffusionTransformer(**self.sizes), self.dtype, device)
        return hunyuan_subject(name, model, self.latent, self.text_tokens, autocast=True)


WAN_1_3B = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
WAN_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
HUNYUAN = CONFIGS["HYVideo-T/2-cfgdistill"]
MODELS = {
    "wan2.1-t2v-1.3B": FullWan(WAN_1_3B, torch.float32),
    "wan2.1-t2v-14B": FullWan(WAN_14B, torch.bfloat16),
    "hunyuan-video-540p": FullHunyuan(HUNYUAN.transformer, HUNYUAN.latent_shape((544, 960), 129)),
    "hunyuan-video-720p": FullHunyuan(HUNYUAN.transformer, HUNYUAN.latent_shape((720, 1280), 129)),
}
COMPARED = ("wan2.1-t2v-14B", "hunyuan-video-540p")


def main() -> int:
    args = build_parser().parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device: this benchmark measures a GPU\n")
        return 2
    device = torch.device("cuda")
    for part, run in (("plans", run_plans), ("policies", run_policies)):
        for name in args.models or (MODELS if part == "plans" else COMPARED):
            if part in args.parts:
                run(name, args, device)
                torch.cuda.empty_cache()
    return 0


def run_plans(name: str, args: argparse.Namespace, device: torch.device) -> None:
    """A row for every plan of one model."""
    subject, lines = MODELS[name].subject(name, device), []
    for preset in subject.presets:
        facts = {"model": name, "weights": weights_of(name), "plan": preset}
        row = {**facts, **cost_row(subject, subject.plan(preset), args.rounds, device)}
        if name in args.whole_loop:
            row["loop"] = whole_loop(subject, preset, device)
        append_row("gpu_step", {**row, **environment(device)})
        sys.stderr.write(f"{name} {preset} done\n")
        lines.append(cells(row))
    header = ["model", "plan", "s bare", "s keeping", "s reusing", "ideal", "achieved"]
    sys.stdout.write(table([*header, "achieved/ideal", "extra memory", "peak"], lines) + "\n")


def run_policies(name: str, args: argparse.Namespace, device: torch.device) -> None:
    """A row for every policy and budget on one model."""
    subject = MODELS[name].subject(name, device)
    rows = compare(subject, args.budgets, args.policies, args.policy_rounds, device)
    for row in rows:
        append_row("gpu_compare", {**row, "weights": weights_of(name), **environment(device)})
    sys.stdout.write(f"{name}\n{shown(rows)}\n")


def weights_of(name: str) -> str:
    return str(MODELS[name].dtype).removeprefix("torch.")


# -- plans


def cells(row: dict) -> list[str]:
    """The row's line of the table."""
    return [
        row["model"],
        row["plan"],
        *(f"{row[key]:.3f}" for key in ("bare", "keeping", "reusing")),
        f"{row['ideal']:.3f}x",
        f"{row['achieved']:.3f}x",
        f"{row['achieved_over_ideal']:.3f}",
        f"{row['bytes'] / 2**30:.3f} GiB",
        f"{row['peak_bytes'] / 2**30:.2f} GiB",
    ]


def whole_loop(subject: Subject, preset: str, device: torch.device) -> dict[str, float]:
    """Seconds of all model calls of a 50-step clip, without and with the plan, in one go each."""
    plan = subject.plan(preset)
    cache = DeltaCache(plan)

    def full() -> None:
        for _ in range(plan.steps * len(plan.branches)):
            subject.call()

    def planned() -> None:
        with cache.attached(subject.model):
            for step in plan.solver_steps:
                for branch in plan.branches:
                    cache.begin(step, branch)
                    subject.call()

    seconds = {"full": timed(full, device), "planned": timed(planned, device)}
    return {**seconds, "ratio": seconds["full"] / seconds["planned"]}


# -- policies


@dataclass(frozen=True)
class Costs:
    """Median seconds of a call in the first branch; 'run' is a bare one.

    parts: of those, 'decision' and 'keep' where a rule has them. held: bytes between calls of all
    branches; peak: most bytes allocated, over the model's weights and inputs alone.
    """

    seconds: dict[str, float]
    parts: dict[str, float] = field(default_factory=dict)
    held: int = 0
    peak: int = 0


@dataclass(frozen=True)
class FewerSteps:
    subject: Subject
    name: str = "fewer steps"
    own_speed: ClassVar[bool] = False

    def schedule(self, budget: float) -> tuple[CallCounts, float]:
        """Calls at the budget, or as near to it as it comes, and their ideal speed-up by FLOPs."""
        count = max(1, round(STEPS / budget))
        return {"run": count * len(self.subject.planned.family.branches)}, STEPS / count

    def costs(self, rounds: int, device: torch.device) -> Costs:
        """Measured in rounds, a bare call in each."""
        reset_peak(device)
        seconds = [timed(self.subject.call, device) for _ in range(rounds)]
        return Costs({"run": median(seconds)}, peak=peak_memory(device))


@dataclass(frozen=True)
class Planned:
    """at: the plan of a budget; own_speed: it has one plan, budgets do not apply."""

    subject: Subject
    name: str
    at: Callable[[float], CachePlan]
    own_speed: bool = False

    def schedule(self, budget: float) -> tuple[CallCounts, float]:
        plan = self.at(budget)
        counts = Counter(k for branch in plan.branches for k in kinds_of(plan, branch).values())
        return dict(counts), speedup_flops(plan)

    def costs(self, rounds: int, device: torch.device) -> Costs:
        plan = self.at(TIMED_AT)
        first, *others = plan.branches
        kind_of, steps = kinds_of(plan, first), walked(plan, first)
        if not steps:  # no other kind of call
            return FewerSteps(self.subject).costs(rounds, device)
        found: dict[str, list[float]] = {"run": []}
        held = 0
        reset_peak(device)
        for number in range(rounds):
            found["run"].append(timed(self.subject.call, device))
            cache = DeltaCache(plan)
            with cache.attached(self.subject.model):
                for step in steps:
                    cache.begin(step, first)
                    taken = timed(self.subject.call, device)
                    found.setdefault(kind_of[step], []).append(taken)
                    for branch in others if number == 0 else ():  # their anchors count as well
                        cache.begin(step, branch)
                        self.subject.call()
            held = max(held, cache.stats.peak_bytes)
        return Costs(medians(found), held=held, peak=peak_memory(device))


@dataclass(frozen=True)
class Ruled:
    """A peer whose answers are forced; calls are timed in the first branch."""

    subject: Subject
    tree: str
    peer: Peer
    variant: Variant
    own_speed: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return self.peer.name

    def schedule(self, budget: float) -> tuple[CallCounts, float]:
        depth = sum(self.subject.planned.fingerprint.block_lists.values())
        probe = PROBE_DEPTH / depth if isinstance(self.peer, DiCache) else 0.0
        protected = PROTECTED[type(self.peer)](self.variant)
        reused = min(STEPS - protected, round(STEPS * (1 - 1 / budget) / (1 - probe)))
        each = {"protected": protected, "compute": STEPS - protected - reused, "reuse": reused}
        calls = {kind: count * len(BRANCHES[self.tree]) for kind, count in each.items()}
        return calls, 1 / (1 - reused / STEPS * (1 - probe))

    def costs(self, rounds: int, device: torch.device) -> Costs:
        clock, subject = Clock(device), self.subject
        driven = Driven(subject, forced_rule(self, clock))
        found: dict[str, list[float]] = {"run": [], "compute": [], "reuse": []}
        reset_peak(device)
        for step in range(2):  # what a rule compares with and the line of DiCache
            for branch in BRANCHES[self.tree]:
                driven.call(step, branch, reusing=False)
        clock.found.clear()
        for number in range(rounds):
            found["run"].append(timed(subject.call, device))
            step = FIRST_ASKED + 3 * number
            for kind in ("reuse", "reuse", "compute"):
                call = driven.caller(step, reusing=kind == "reuse")
                found[kind].append(timed(call, device))
                step += 1
        seconds, parts = medians(found), medians(clock.found)
        seconds["protected"] = seconds["run"] + parts.get("keep", 0.0)
        held = storage_bytes(driven.rule.held())
        return Costs(seconds, parts, held, peak_memory(device))


Policy = FewerSteps | Planned | Ruled


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: median(seconds) for name, seconds in found.items()}


def kinds_of(plan: CachePlan, branch: str) -> dict[int, str]:
    """`timing.kinds`, and 'correct' for a compute step that makes forecasts good."""
    return {**kinds(plan, branch), **dict.fromkeys(corrections(plan, branch), "correct")}


def walked(plan: CachePlan, branch: str) -> list[int]:
    """Steps that show every kind of call but 'run', with all that they build on."""
    kind_of = kinds_of(plan, branch)
    steps = visit(plan, branch, set(kinds(plan, branch).values()) - {"run"})
    if steps and kind_of[steps[-1]] == "reuse" == kind_of.get(steps[-1] + 1):
        steps.append(steps[-1] + 1)
    later = [step for step in corrections(plan, branch) if steps and step > steps[-1]]
    return [*steps, *later[:1]]


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
    yield FewerSteps(subject)
    for skip in ("hold", "linear"):
        yield Planned(subject, f"uniform {skip}", partial(whole, subject, skip, True))
    for skip in ("linear", "corrected") if euler else ("jump", "linear"):
        yield Planned(subject, f"ours {skip}", partial(whole, subject, skip, False))
    yield Planned(subject, "paper", partial(paper, subject))
    release = build_preset(planned, "release")
    yield Planned(subject, "release", lambda budget: release, own_speed=True)
    for build in PEERS:
        peer = build()
        # the authors' own settings; of MagCache the K that reaches every budget
        variants = peer.variants(SimpleNamespace(name=tree))  # all that they depend on
        yield Ruled(subject, tree, peer, variants[-1 if isinstance(peer, MagCache) else 0])


def whole(subject: Subject, skip: str, uniform: bool, budget: float) -> CachePlan:
    """The whole prediction reused: even steps, or a protected start and end like `balanced`."""
    count = max(1, round(STEPS / budget))
    computed = even(STEPS, count) if uniform else protected_ends(STEPS, count)
    sites = from_steps(STEPS, computed, subject.planned.family.branches, skip)
    like = build_preset(subject.planned, "release")
    return plan_on(like, f"{skip} {count}", sites, f"{count} computed steps")


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
    shape = {"steps": STEPS, "warmup": warmup, "longest": tmax, "shortest": tmin}
    shape["branches"] = planned.family.branches
    sites = [site for name, of in runs.items() for site in from_shrinking(name, of, **shape)]
    words = f"warm-up {warmup}, Tmax {tmax}, Tmin {tmin}"
    return plan_on(build_preset(planned, "release"), f"paper {budget:g}x", sites, words)


def one_row(
    subject: Subject, policy: Policy, costs: Costs, budget: float | None, bare: int
) -> dict[str, Any]:
    """Seconds of the calls, and of the loop that the budget's schedule makes of them."""
    counts, ideal = policy.schedule(budget or 1.0)
    full = STEPS * len(subject.planned.family.branches) * costs.seconds["run"]
    loop = sum(count * costs.seconds[kind] for kind, count in counts.items())
    return {
        "model": subject.name,
        "policy": policy.name,
        "budget": budget,
        "tokens": subject.planned.clip.tokens,
        "seconds": rounded(costs.seconds),
        "parts": rounded(costs.parts),
        "calls": counts,
        "full_seconds": round(full, 4),
        "loop_seconds": round(loop, 4),
        "ideal": round(ideal, 4),
        "achieved": round(full / loop, 4),
        "achieved_over_ideal": round(full / loop / ideal, 4),
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


# -- the peers' rules, asked and not followed

PROTECTED: dict[type[Peer], Callable[[Any], int]] = {
    TeaCache: lambda variant: variant.first + variant.last,
    MagCache: lambda variant: int(STEPS * variant.retention),
    EasyCache: lambda variant: variant.warmup + 1,
    DiCache: lambda variant: int(STEPS * variant.retention),
}


@dataclass
class Clock:
    """Seconds of the parts of a call."""

    device: torch.device
    found: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, name: str, call: Callable[[], Any]) -> None:
        self.found.setdefault(name, []).append(timed(call, self.device))


class Forced(Branch):
    """Asks a branch of a rule, and gives the forced answer."""

    reusing: ClassVar[bool] = False

    def __init__(self, real: Branch, clock: Clock) -> None:
        self.real, self.clock = real, clock

    def reuses(self, step: int, entry: Entry) -> bool:
        self.clock("decision", lambda: self.real.reuses(step, entry))
        return self.reusing

    def forecast(self, entry: Entry) -> Tensor:
        return self.real.forecast(entry)

    def keep(self, entry: Entry, residual: Tensor) -> None:
        self.clock("keep", lambda: self.real.keep(entry, residual))


class ForcedRule(ResidualRule):
    branches: dict[str, Forced]

    def force(self, reusing: bool) -> None:
        for branch in self.branches.values():
            branch.reusing = reusing

    def held(self) -> Iterable[Tensor]:
        return tensors_of([vars(branch.real) for branch in self.branches.values()])


class ForcedEasy(EasyRule):
    """The conditional branch decides for both; the other costs no more than it."""

    forced = False
    clock: Clock

    def force(self, reusing: bool) -> None:
        self.forced = reusing

    def _decide(self, step: int, latent: Tensor) -> bool:
        self.clock("decision", lambda: super(ForcedEasy, self)._decide(step, latent))
        return self.forced

    def _update(self, output: Tensor) -> None:
        self.clock("keep", lambda: super(ForcedEasy, self)._update(output))


def forced_rule(policy: Ruled, clock: Clock) -> ForcedRule | ForcedEasy:
    model, variant = policy.subject.model, policy.variant
    if isinstance(policy.peer, EasyCache):
        rule = ForcedEasy(STEPS, variant, THRESHOLD)
        rule.clock = clock
        return rule
    polynomial, ratios = np.ones(DEGREE + 1), [1.0] * STEPS
    build: dict[type[Peer], Callable[[], Branch]] = {
        TeaCache: lambda: TeaBranch(model, polynomial, variant, STEPS, THRESHOLD),
        MagCache: lambda: MagBranch(ratios, variant, THRESHOLD),
        DiCache: lambda: DiBranch(PROTECTED[DiCache](variant), LIMIT[policy.tree], THRESHOLD),
    }
    made = build[type(policy.peer)]
    return ForcedRule({branch: Forced(made(), clock) for branch in BRANCHES[policy.tree]})


class Driven:
    """Calls of a subject that a rule answers."""

    def __init__(self, subject: Subject, rule: ForcedRule | ForcedEasy) -> None:
        self.subject, self.rule, self.position = subject, rule, (0, "cond")
        self.plain = subject.model.forward
        self.signature = inspect.signature(self.plain)
        names = subject.planned.fingerprint.block_lists
        self.walks = rule.walks({name: list(getattr(subject.model, name)) for name in names})

    def call(self, step: int, branch: str, *, reusing: bool) -> None:
        self.position = (step, branch)
        self.rule.force(reusing)
        with standing_before(self.subject.model, {"forward": self._forward}):
            self.subject.call()

    def caller(self, step: int, *, reusing: bool) -> Callable[[], None]:
        """`call` in the first branch, to be timed."""
        return lambda: self.call(step, "cond", reusing=reusing)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            with standing_before(self.subject.model, self.walks):
                return self.plain(*args, **kwargs)

        arguments = dict(self.signature.bind(*args, **kwargs).arguments)
        return self.rule.answer(Call(*self.position, arguments, run))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--models", nargs="+", choices=tuple(MODELS), help="default: all; policies: 14B, 540p")
    add("--rounds", type=int, default=5, help="of plans")
    loops = {"choices": tuple(MODELS), "default": ["wan2.1-t2v-1.3B"], "metavar": "MODEL"}
    add("--whole-loop", nargs="*", **loops)
    add("--policies", nargs="+", choices=NAMES, default=list(NAMES))
    add("--budgets", nargs="+", type=float, default=list(BUDGETS))
    add("--policy-rounds", type=int, default=2)
    return parser


if __name__ == "__main__":
    sys.exit(main())

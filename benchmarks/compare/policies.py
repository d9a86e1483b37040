"""The policies of the comparison: what each runs on a tree at a budget.

`ALL` names them; `policies_of(Given(...))` builds those that a tree has. A policy settles on one
sampler per budget, on calibration prompts alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from math import log as ln

from benchmarks.baselines import PEERS, Peer
from benchmarks.baselines.diffusers_hooks import PACKAGES
from benchmarks.compare.samplers import FewerSteps, Planned, Sampler, plan_hash
from benchmarks.compare.searched_grid import students_of
from benchmarks.compare.tuning import TOLERANCE, Tuning, calibrated, tuned, write_json
from benchmarks.lib.calibrate import SEED, calibration_prompts
from benchmarks.lib.clips import Inputs, Tree
from benchmarks.lib.schedules import even
from benchmarks.search.law_scores import CLASSES
from profiling_core.errors import PlanError, UserError
from profiling_core.plan import CachePlan, importers
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import public_plan
from profiling_core.plan.solvers import SKIPS
from profiling_core.profile.profile import Profile
from profiling_core.search.paper_method import BLOCKS, PATTERNS, paper_plan
from profiling_core.search.search import Budget, PlanSearch, Point

BUDGETS = (1.5, 1.9, 2.3, 3.0)
OURS = "search"  # what the others are compared with
OTHER_SOLVER = {"wan": "dpm++"}  # the best solver beside the tree's own
UNIFORM = ("hold", "linear")
SEARCHED = "fewer steps searched"  # on a searched grid
PRESET = "release"
LISTS_OF = {"wan": "wan2.1-t2v-1.3B", "hunyuan": "hunyuan-video-t2v-720p"}  # public, by model
CLASS_OF = {f"{name}-21": rank for rank, names in enumerate(CLASSES) for name in names}
LISTS = (
    *(f"lemica-{count}" for count in (25, 20, 17, 14)),
    *(f"{name}-{count}" for name in CLASSES[0] for count in (21, 13, 9)),
)
LONGEST = 24  # Tmax of the paper's plans is searched up to here
CHOICES = list(product(BLOCKS, PATTERNS))  # of the paper's plans
GROUPS: dict[str, tuple[str, ...]] = {
    "fewer": ("fewer steps", *(f"fewer steps {s}" for s in OTHER_SOLVER.values()), SEARCHED),
    "uniform": tuple(f"uniform {skip}" for skip in UNIFORM),
    "paper": tuple(f"paper {blocks} {pattern}" for blocks, pattern in CHOICES),
    "release": (PRESET,),
    "peers": tuple(peer.name for peer in PEERS),
    "packages": tuple(peer.name for peer in PACKAGES),
    "lists": LISTS,
    "classes": tuple(name for name in CLASS_OF if name not in LISTS),
    "ours": (OURS, *(f"search {skip}" for skip in SKIPS)),
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
ALL = tuple(GROUP_OF)


@dataclass(frozen=True)
class Given:
    """What policies are made from."""

    tree: Tree
    profile: Profile
    tuning: Tuning
    calibration: int  # prompts that calibrate the peers

    @cached_property
    def search(self) -> PlanSearch:
        return PlanSearch(self.profile)

    @cached_property
    def inputs(self) -> list[Inputs]:
        """Inputs of the calibration prompts."""
        prompts = calibration_prompts(self.calibration)
        return [self.tree.inputs(prompt, SEED + n) for n, prompt in enumerate(prompts)]

    def steps_at(self, budget: float) -> int:
        """Computed steps that come nearest to the budget."""
        return max(1, round(self.tree.steps / budget))


@dataclass(frozen=True)
class Policy:
    """settle: the sampler at a budget; UnreachableError says why there is none."""

    name: str
    settle: Callable[[float], Sampler]
    missing: str | None = None  # why it cannot run here at all
    one_point: bool = False  # it has its own speed, budgets do not apply


def policies_of(given: Given) -> Iterator[Policy]:
    """All policies that the tree has."""
    yield from _plain(given)
    for blocks, pattern in CHOICES:
        yield Policy(f"paper {blocks} {pattern}", _Paper(given, blocks, pattern))
    preset = given.tree.plan(PRESET)
    yield Policy(PRESET, lambda budget: Planned(preset), one_point=True)
    for build in PEERS:
        yield Policy(build.name, _peer(given, build))
    for build in PACKAGES:
        yield Policy(build.name, _peer(given, build), build.missing())
    yield from _public(given)
    yield from _ours(given)


def _plain(given: Given) -> Iterator[Policy]:
    tree = given.tree
    yield Policy("fewer steps", lambda b: FewerSteps(given.steps_at(b), tree.solvers[0]))
    if solver := OTHER_SOLVER.get(tree.name):
        yield Policy(f"fewer steps {solver}", lambda b: FewerSteps(given.steps_at(b), solver))
    yield Policy(SEARCHED, partial(_searched_grid, given))
    for skip in UNIFORM:
        yield Policy(f"uniform {skip}", partial(_uniform, given, skip))


def _uniform(given: Given, skip: str, budget: float) -> Sampler:
    count = given.steps_at(budget)
    computed, source = even(given.tree.steps, count), f"{count} even steps"
    return _listed(given, f"uniform-{skip}-{count}", computed, skip, source)


def _searched_grid(given: Given, budget: float) -> Sampler:
    """The solver on as many of its levels, from the file where they were searched before."""
    path, count = given.tuning.path("levels.json"), given.steps_at(budget)
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if str(count) not in known:
        prompts = [reference.inputs for reference in given.tuning.references]
        counts = {count, *map(given.steps_at, BUDGETS)}
        found = students_of(given.tree, prompts, counts)
        known |= {str(n): list(student.visited) for n, student in found.items()}
        write_json(path, known)
    skip = "hold" if given.tree.solvers[0] == "euler" else "jump"
    return _listed(given, f"searched-grid-{count}", known[str(count)], skip, "a searched grid")


def _public(given: Given) -> Iterator[Policy]:
    """The public lists of the tree's official model, each at its own speed."""
    planned = MODELS[LISTS_OF[given.tree.name]]
    for name in (*GROUPS["lists"], *GROUPS["classes"]):
        try:
            plan = public_plan(planned, name)
        except PlanError:  # a list of another model
            continue
        steps, source = plan.prediction.compute_steps["cond"], plan.provenance.source
        sampler = _listed(given, name, steps, plan.prediction.skip, source)
        yield Policy(name, lambda budget, one=sampler: one, one_point=True)


def _listed(given: Given, name: str, steps: Sequence[int], skip: str, source: str) -> Planned:
    """A list of compute steps for the whole prediction, on the tree's own noise levels."""
    subject = given.profile.recorded
    plan = CachePlan.build(
        name=name,
        **subject.plan_fields,
        sites=importers.from_steps(subject.steps, steps, subject.branches, skip),
        provenance={"made_by": "benchmarks/compare", "source": source},
    )
    return Planned(plan, f"{len(steps)} steps")


class _Paper:
    """The paper's plan with one choice of blocks and pattern (paper_plan.BLOCKS, PATTERNS).

    Searched: the share of background blocks and Tmax; warm-up and Tmin follow from the profile.
    """

    def __init__(self, given: Given, blocks: str, pattern: str) -> None:
        self.given, self.choice = given, {"blocks": blocks, "pattern": pattern}

    @cached_property
    def plans(self) -> list[CachePlan]:
        """Otsu's share first."""
        profile, found = self.given.profile, {}
        count = sum(profile.recorded.model.block_lists.values())
        shares = [None, *(number / count for number in range(1, count))]
        for share, tmax in product(shares, range(2, LONGEST + 1)):
            with suppress(UserError):  # blocks of equal score, too few segments
                plan = paper_plan(profile, share=share, tmax=tmax, **self.choice)
                found.setdefault(plan_hash(plan), plan)  # two shares may split the blocks alike
        return list(found.values())

    def __call__(self, budget: float) -> Sampler:
        """Calibration prompts choose among three plans at the budget, the nearest where none is."""
        off = [abs(ln(plan.expected.speedup_flops / budget)) for plan in self.plans]
        met = [n for n, each in enumerate(off) if each < ln(1 + TOLERANCE)]
        met = met or [off.index(min(off))]
        chosen = [self.plans[met[n]] for n in sorted({0, len(met) // 2, len(met) - 1})]
        return self.given.tuning.best(
            [Planned(plan, _paper_words(plan)) for plan in chosen], budget
        )


def _paper_words(plan: CachePlan) -> str:
    settings = plan.provenance.settings
    share = f"share {settings['share']:.3g}" if "share" in settings else "Otsu"
    steps = f"Tmax {settings['tmax']}, Tmin {settings['tmin']}, warm-up {settings['warmup']}"
    return f"{share}, {steps}"


def _peer(given: Given, build: type[Peer]) -> Callable[[float], Sampler]:
    """The peer, made and calibrated at its first budget."""
    made: list[Peer] = []

    def settle(budget: float) -> Sampler:
        if not made:
            path = given.tuning.path(f"calibration-{given.calibration}.json")
            made.append(calibrated(build(), given.tree, lambda: given.inputs, path))
        return tuned(given.tuning, made[0], budget)

    return settle


def _ours(given: Given) -> Iterator[Policy]:
    yield Policy(OURS, lambda budget: _searched(given, None, budget))
    for skip in given.search.skips:
        yield Policy(f"search {skip}", partial(_searched, given, skip))


def _searched(given: Given, skip: str | None, budget: float) -> Sampler:
    """The best predicted error of one reuse mode, or of all."""
    search, count = given.search, given.steps_at(budget)
    return _planned(given, search.exactly(count, (skip,) if skip else None), count)


def _planned(given: Given, point: Point, count: int) -> Sampler:
    plan = given.search.plan_of(point, Budget(speedup=given.tree.steps / count))
    return Planned(plan, f"{point.skip}, {len(point.steps)} steps")


def chosen_names(asked: Sequence[str]) -> list[str]:
    """Names of policies for names of policies and groups; ValueError for unknown ones."""
    found: list[str] = []
    for name in asked:
        if name not in ALL and name not in GROUPS:
            known = ", ".join([*GROUPS, *(repr(each) for each in ALL)])
            raise ValueError(f"no policy {name!r}: groups and policies are {known}")
        found += [each for each in GROUPS.get(name, (name,)) if each not in found]
    return found

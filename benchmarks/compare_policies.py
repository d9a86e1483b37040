"""The policies of the comparison: what each runs on a tree at a budget.

`ALL` names them; `policies_of(Given(...))` builds those that a tree has. A policy settles on one
way per budget, on calibration prompts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from calibrate import SEED, calibration_prompts
from compare_paper import PaperPlans, all_choices
from compare_tuning import Tuning, calibrated, tell, tuned
from compare_ways import FewerSteps, Planned, Way, plan_hash
from packages import PACKAGES
from peers import PEERS, Peer
from pipelines import Inputs, Tree
from profiling_core import importers
from profiling_core.lockstep import Clip
from profiling_core.plan import CachePlan
from profiling_core.profile import Profile
from profiling_core.refit import clips_of, forms, refit, with_facts
from profiling_core.refit_command import PASSES
from profiling_core.search import Budget, PlanSearch, Point
from profiling_core.solvers import SKIPS

OURS = "search"  # what the others are compared with
CANDIDATES = 4  # plans that calibration prompts choose from in "search validated"
OTHER_SOLVER = {"wan": "dpm++"}  # the best solver beside the tree's own
UNIFORM = ("hold", "linear")
PRESET = "release"

GROUPS: dict[str, tuple[str, ...]] = {
    "fewer": ("fewer steps", *(f"fewer steps {solver}" for solver in OTHER_SOLVER.values())),
    "uniform": tuple(f"uniform {skip}" for skip in UNIFORM),
    "paper": tuple(f"paper {blocks} {pattern}" for blocks, pattern in all_choices()),
    "release": (PRESET,),
    "peers": tuple(peer.name for peer in PEERS),
    "packages": tuple(peer.name for peer in PACKAGES),
    "ours": (OURS, "search validated", "search refit", *(f"search {skip}" for skip in SKIPS)),
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
        """Of the calibration prompts."""
        prompts = calibration_prompts(self.calibration)
        return [self.tree.inputs(prompt, SEED + n) for n, prompt in enumerate(prompts)]

    @cached_property
    def clips(self) -> list[Clip]:
        """The profile's prompts, recorded in full: what a refit plays."""
        return clips_of(self.profile, self.tree, range(self.tree.steps), tell)

    def steps_at(self, budget: float) -> int:
        """Computed steps that come nearest to the budget."""
        return max(1, round(self.tree.steps / budget))


@dataclass(frozen=True)
class Policy:
    """settle: the way at a budget; UnreachableError says why there is none."""

    name: str
    settle: Callable[[float], Way]
    missing: str | None = None  # why it cannot run here at all
    one_point: bool = False  # it has its own speed, budgets do not apply


def policies_of(given: Given) -> Iterator[Policy]:
    """All policies that the tree has."""
    yield from _plain(given)
    for blocks, pattern in all_choices():
        settle = partial(_paper, given, PaperPlans(given.profile, blocks, pattern))
        yield Policy(f"paper {blocks} {pattern}", settle)
    preset = given.tree.plan(PRESET)
    yield Policy(PRESET, lambda budget: Planned(preset), one_point=True)
    for build in PEERS:
        yield Policy(build.name, _peer(given, build))
    for build in PACKAGES:
        yield Policy(build.name, _peer(given, build), build.missing())
    yield from _ours(given)


def uniform_steps(steps: int, count: int) -> list[int]:
    """`count` of the steps, evenly spread from the first."""
    return [number * steps // count for number in range(count)]


def _plain(given: Given) -> Iterator[Policy]:
    tree = given.tree
    names = dict(zip(GROUPS["fewer"], (tree.solvers[0], OTHER_SOLVER.get(tree.name)), strict=True))
    for name, solver in names.items():
        if solver:
            yield Policy(name, lambda b, s=solver: FewerSteps(given.steps_at(b), s))
    for skip in UNIFORM:
        yield Policy(f"uniform {skip}", partial(_uniform, given, skip))


def _uniform(given: Given, skip: str, budget: float) -> Way:
    subject, count = given.profile.recorded, given.steps_at(budget)
    computed = uniform_steps(subject.steps, count)
    sites = importers.from_steps(subject.steps, computed, subject.branches, skip)
    plan = CachePlan.build(
        name=f"uniform-{skip}-{count}",
        **subject.plan_fields,
        sites=sites,
        provenance={"made_by": "benchmarks/compare.py", "source": f"{count} even steps"},
    )
    return Planned(plan, f"{count} steps")


def _paper(given: Given, plans: PaperPlans, budget: float) -> Way:
    # two shares may part the blocks alike: the first one's words stay
    distinct = {plan_hash(plan): plan for plan in reversed(plans.candidates(budget))}
    ways = [Planned(plan, _paper_words(plan)) for plan in distinct.values()]
    return given.tuning.best(ways, budget)


def _paper_words(plan: CachePlan) -> str:
    settings = plan.provenance.settings
    share = f"share {settings['share']:.3g}" if "share" in settings else "Otsu"
    steps = f"Tmax {settings['tmax']}, Tmin {settings['tmin']}, warm-up {settings['warmup']}"
    return f"{settings['lists']}: {share}, {steps}"


def _peer(given: Given, build: type[Peer]) -> Callable[[float], Way]:
    """The peer, made and calibrated at its first budget."""
    made: list[Peer] = []

    def settle(budget: float) -> Way:
        if not made:
            path = given.tuning.path(f"calibration-{given.calibration}.json")
            made.append(calibrated(build(), given.tree, lambda: given.inputs, path))
        return tuned(given.tuning, made[0], budget)

    return settle


def _ours(given: Given) -> Iterator[Policy]:
    yield Policy(OURS, lambda budget: _searched(given, None, budget))
    yield Policy("search validated", partial(_validated, given))
    yield Policy("search refit", partial(_refitted, given))
    for skip in given.search.skips:
        yield Policy(f"search {skip}", partial(_searched, given, skip))


def _searched(given: Given, skip: str | None, budget: float) -> Way:
    """The best predicted error of one way to skip, or of all."""
    search, count = given.search, given.steps_at(budget)
    points = [search.point_of(each, count) for each in ((skip,) if skip else search.skips)]
    return _planned(given, min(points, key=lambda point: point.error), count)


def _validated(given: Given, budget: float) -> Way:
    count = given.steps_at(budget)
    found = given.search.candidates(Budget(speedup=given.tree.steps / count), CANDIDATES)
    return given.tuning.best([_planned(given, point, count) for point in found], budget)


def _refitted(given: Given, budget: float) -> Way:
    """The best of the search's choice and its refits, from its file where it was fitted before."""
    count = given.steps_at(budget)
    asked = Budget(speedup=given.tree.steps / count)
    point = given.search.point(asked)
    start = given.search.plan_of(point, asked)
    path = given.tuning.path(f"{count}-{plan_hash(start)}.json")
    if not path.exists():
        best = refit(given.clips, start, forms(given.search, point, asked)[:PASSES], tell)[0]
        facts = {"refit": best.words, "measured_error": best.error}
        with_facts(best.plan, f"refit-{count}", **facts).save(path)
    plan = CachePlan.load(path)
    return Planned(plan, f"{plan.provenance.settings['refit']}, {count} steps")


def _planned(given: Given, point: Point, count: int) -> Way:
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

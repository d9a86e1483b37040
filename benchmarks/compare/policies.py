"""The policies of the comparison: what each runs on a tree at a budget.

`ALL` names them; `policies_of(Given(...))` builds those that a tree has. A policy settles on one
sampler per budget, on calibration prompts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import log as ln

from benchmarks.baselines import PEERS, Peer
from benchmarks.baselines.diffusers_hooks import PACKAGES
from benchmarks.compare.samplers import FewerSteps, Planned, Sampler, plan_hash
from benchmarks.compare.tuning import TOLERANCE, Tuning, UnreachableError, calibrated, tuned
from benchmarks.lib.calibrate import SEED, calibration_prompts
from benchmarks.lib.clips import Inputs, Tree
from benchmarks.lib.command_line import log
from benchmarks.lib.schedules import even
from profiling_core.errors import UserError
from profiling_core.plan import CachePlan, importers, schedule
from profiling_core.plan.solvers import SKIPS
from profiling_core.profile.block_scores import BlockSplit, default_lists, split_blocks
from profiling_core.profile.profile import Profile
from profiling_core.profile.step_change import Intervals, shrinking_intervals
from profiling_core.refit import PASSES
from profiling_core.refit.refit import forms, refit, rollouts_of, with_facts
from profiling_core.refit.rollout import Rollout
from profiling_core.search.paper_method import BLOCKS, PATTERNS, paper_plan
from profiling_core.search.search import Budget, PlanSearch, Point

OURS = "search"  # what the others are compared with
CANDIDATES = 4  # plans that calibration prompts choose from in "search validated"
OTHER_SOLVER = {"wan": "dpm++"}  # the best solver beside the tree's own
UNIFORM = ("hold", "linear")
PRESET = "release"

WARMUPS = (1, 2, 4, 6, 8, 10, 14, 20)  # beside the profile's own
LONGEST = 24  # Tmax is searched up to here
LOOKED_AT = 24  # plans that are built for a share to know their exact cost
NEAR = 0.12  # of all block FLOPs: a share whose best guess is further off gets one plan


def all_choices() -> list[tuple[str, str]]:
    """Blocks and pattern of every combination."""
    return [(blocks, pattern) for blocks in BLOCKS for pattern in PATTERNS]


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
    def rollouts(self) -> list[Rollout]:
        """The profile's prompts, recorded in full, for refits."""
        return rollouts_of(self.profile, self.tree, range(self.tree.steps), log)

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


def _plain(given: Given) -> Iterator[Policy]:
    tree = given.tree
    names = dict(zip(GROUPS["fewer"], (tree.solvers[0], OTHER_SOLVER.get(tree.name)), strict=True))
    for name, solver in names.items():
        if solver:
            yield Policy(name, lambda b, s=solver: FewerSteps(given.steps_at(b), s))
    for skip in UNIFORM:
        yield Policy(f"uniform {skip}", partial(_uniform, given, skip))


def _uniform(given: Given, skip: str, budget: float) -> Sampler:
    subject, count = given.profile.recorded, given.steps_at(budget)
    computed = even(subject.steps, count)
    sites = importers.from_steps(subject.steps, computed, subject.branches, skip)
    plan = CachePlan.build(
        name=f"uniform-{skip}-{count}",
        **subject.plan_fields,
        sites=sites,
        provenance={"made_by": "benchmarks/compare", "source": f"{count} even steps"},
    )
    return Planned(plan, f"{count} steps")


def _paper(given: Given, plans: PaperPlans, budget: float) -> Sampler:
    # two shares may part the blocks alike: the first one's words stay
    distinct = {plan_hash(plan): plan for plan in reversed(plans.candidates(budget))}
    samplers = [Planned(plan, _paper_words(plan)) for plan in distinct.values()]
    return given.tuning.best(samplers, budget)


def _paper_words(plan: CachePlan) -> str:
    settings = plan.provenance.settings
    share = f"share {settings['share']:.3g}" if "share" in settings else "Otsu"
    steps = f"Tmax {settings['tmax']}, Tmin {settings['tmin']}, warm-up {settings['warmup']}"
    return f"{settings['lists']}: {share}, {steps}"


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
    yield Policy("search validated", partial(_validated, given))
    yield Policy("search refit", partial(_refitted, given))
    for skip in given.search.skips:
        yield Policy(f"search {skip}", partial(_searched, given, skip))


def _searched(given: Given, skip: str | None, budget: float) -> Sampler:
    """The best predicted error of one reuse mode, or of all."""
    search, count = given.search, given.steps_at(budget)
    points = [search.point_of(each, count) for each in ((skip,) if skip else search.skips)]
    return _planned(given, min(points, key=lambda point: point.error), count)


def _validated(given: Given, budget: float) -> Sampler:
    count = given.steps_at(budget)
    found = given.search.candidates(Budget(speedup=given.tree.steps / count), CANDIDATES)
    return given.tuning.best([_planned(given, point, count) for point in found], budget)


def _refitted(given: Given, budget: float) -> Sampler:
    """The best of the search's choice and its refits, from its file where it was fitted before."""
    count = given.steps_at(budget)
    asked = Budget(speedup=given.tree.steps / count)
    point = given.search.point(asked)
    start = given.search.plan_of(point, asked)
    path = given.tuning.path(f"{count}-{plan_hash(start)}.json")
    if not path.exists():
        best = refit(given.rollouts, start, forms(given.search, point, asked)[:PASSES], log)[0]
        facts = {"refit": best.words, "measured_error": best.error}
        with_facts(best.plan, f"refit-{count}", **facts).save(path)
    plan = CachePlan.load(path)
    return Planned(plan, f"{plan.provenance.settings['refit']}, {count} steps")


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


# the paper's plan at a budget: the share of background blocks, the warm-up, Tmax and Tmin are
# searched. For the profile's own share (Otsu) and two others, the schedule is taken that meets the
# budget within TOLERANCE and lies closest to the paper's; calibration prompts choose among them


@dataclass(frozen=True)
class Settings:
    """What paper_plan is asked for, and how far it lies from what the profile says."""

    warmup: int
    tmax: int
    tmin: int
    distance: float


@dataclass(frozen=True)
class PaperPlans:
    """The plans of one choice of blocks and pattern (paper_plan.BLOCKS, PATTERNS)."""

    profile: Profile
    blocks: str
    pattern: str

    def candidates(self, budget: float) -> list[CachePlan]:
        """At most three plans at the budget; UnreachableError with the nearest speed-up."""
        nearest = 1.0
        for lists in self._lists():
            plans = [p for share in self._shares(lists) if (p := self._at(budget, lists, share))]
            speeds = [plan.expected.speedup_flops for plan in plans]
            nearest = min([nearest, *speeds], key=lambda speed: abs(ln(speed / budget)))
            if met := [plan for plan in plans if off(plan, budget) < ln(1 + TOLERANCE)]:
                # the profile's own share is the first where it reaches the budget
                places = sorted({0, len(met) // 2, len(met) - 1})
                return [met[place] for place in places]
        raise UnreachableError(f"{budget:g}x is not reached: the nearest is {nearest:.2f}x")

    def _lists(self) -> Iterator[tuple[str, ...]]:
        """The lists of the model's preset, then all, where those are too few for the budget."""
        default, every = default_lists(self.profile), tuple(self.profile.recorded.model.block_lists)
        yield default
        if set(default) != set(every):
            yield every

    def _shares(self, lists: tuple[str, ...]) -> list[float | None]:
        """Otsu's (None) first, then every number of background blocks."""
        count = sum(self.profile.recorded.model.block_lists[name] for name in lists)
        return [None, *(number / count for number in range(1, count))]

    def _at(self, budget: float, lists: tuple[str, ...], share: float | None) -> CachePlan | None:
        """Of a share: the closest to the paper within TOLERANCE, else the nearest to the budget."""
        try:
            parted = split_blocks(self.profile, share=share, lists=lists)
        except UserError:  # blocks of equal score cannot be parted there
            return None
        wanted, side = 1 - 1 / budget, self._side(parted)

        def missed(one: tuple[Settings, float]) -> float:
            return round(abs(one[1] * side - wanted), 2)

        guessed = sorted(self._schedules, key=lambda one: (missed(one), one[0].distance))
        built = []
        for one in guessed[: LOOKED_AT if missed(guessed[0]) <= NEAR else 1]:
            if (plan := self._plan(one[0], lists, share)) is None:
                continue
            if off(plan, budget) < ln(1 + TOLERANCE):
                return plan
            built.append(plan)
        return min(built, key=lambda plan: off(plan, budget), default=None)

    def _plan(self, one: Settings, lists: tuple[str, ...], share: float | None) -> CachePlan | None:
        try:
            return paper_plan(
                self.profile,
                share=share,
                lists=lists,
                blocks=self.blocks,
                pattern=self.pattern,
                warmup=one.warmup,
                tmax=one.tmax,
                tmin=one.tmin,
            )
        except UserError:  # too few segments for this choice of blocks
            return None

    def _side(self, parted: BlockSplit) -> float:
        """Share of the block FLOPs that a reuse step skips; the mean of both where mixed."""
        total = sum(self.profile.recorded.model.block_lists.values())
        skipped = [
            sum(map(len, side.values())) / total for side in (parted.background, parted.foreground)
        ]
        return {"background": skipped[0], "foreground": skipped[1]}.get(
            self.blocks, sum(skipped) / 2
        )

    @cached_property
    def _schedules(self) -> list[tuple[Settings, float]]:
        """Settings and the share of steps that they reuse; those that reuse none are left out."""
        steps, own = self.profile.recorded.steps, shrinking_intervals(self.profile)
        found = []
        for one in _settings(own, steps):
            computed = PATTERNS[self.pattern](steps, one.warmup, one.tmax, one.tmin)
            if len(computed) < steps:
                found.append((one, 1 - len(computed) / steps))
        return found


def off(plan: CachePlan, budget: float) -> float:
    """Relative distance of its speed-up from the budget, the same in both directions."""
    return abs(ln(plan.expected.speedup_flops / budget))


def _settings(own: Intervals, steps: int) -> Iterator[Settings]:
    warmups = sorted({own.warmup, *(w for w in WARMUPS if w < steps)})
    for warmup in warmups:
        for tmax in range(2, min(LONGEST, steps) + 1):
            for tmin in range(1, tmax + 1):
                distance = abs(ln(tmax / own.tmax)) + abs(ln(tmin / own.tmin))
                distance += abs(warmup - own.warmup) / schedule.round_half_up(steps / 5)
                yield Settings(warmup, tmax, tmin, distance)

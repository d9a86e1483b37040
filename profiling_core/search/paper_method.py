"""From a profile to the paper's plan: equations 6 to 15 of arXiv 2504.03140.

Blocks (equations 6 and 7): `block_scores` splits them into foreground F and background B. Reused
between two compute steps are, by `blocks`:

background   B, the paper's method
foreground   F, its counter-check
split        F in the early segments, B in the later ones; the change is at the compute step that
             halves the reuse steps best
alternate    F and B by turns, F in the first segment

HunyuanVideo's double blocks are split like the single ones, and their background is reused in every
row: the speeds of the paper's tables 3 and 4 follow from that alone, see docs/paper.md.

A segment runs from one compute step to the next and has at least one reuse step. All blocks run at
its first step, so that a reuse always has its anchor there. The blocks that a segment does not
reuse run at all of its steps.

Steps (equations 12 and 15): a schedule of `plan/schedule.py`. Warm-up, Tmax and Tmin are given or
come from the curve of relative L1 between consecutive predictions, see `step_change`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from profiling_core.errors import PlanError, UserError
from profiling_core.plan import CachePlan, schedule
from profiling_core.plan.model_specs import BACKGROUND_ALONE, consecutive
from profiling_core.plan.schedule import BLOCKS, reused_by_side, segments
from profiling_core.plan.schema import Storage, StoragePlace
from profiling_core.profile.block_scores import SCORES, BlockSplit, split_blocks
from profiling_core.profile.profile import Profile
from profiling_core.profile.step_change import shrinking_intervals

PATTERNS = {
    "stepwise": schedule.stepwise,
    "inverse": schedule.inverse,
    "average": schedule.average,
}
ORDERS = ("hold", "linear")
# Rows of the paper's tables 3 and 4: blocks and pattern.
ABLATIONS = {
    "Foreground-focused Block Reuse": ("foreground", "stepwise"),
    "Background-focused Block Reuse": ("background", "stepwise"),
    "Background+Foreground (Split)": ("split", "stepwise"),
    "Background+Foreground (Alternate)": ("alternate", "stepwise"),
    "Foreground+Stepwise": ("foreground", "stepwise"),
    "Foreground+Step Inverse": ("foreground", "inverse"),
    "Foreground+Step Average": ("foreground", "average"),
    "Background+Stepwise": ("background", "stepwise"),
    "Background+Step Inverse": ("background", "inverse"),
    "Background+Step Average": ("background", "average"),
}


def paper_plan(
    profile: Profile,
    *,
    tau: float | None = None,
    share: float | None = None,
    lists: Sequence[str] | None = None,
    blocks: str = "background",
    pattern: str = "stepwise",
    tmax: int | None = None,
    tmin: int | None = None,
    warmup: int | None = None,
    steps: Sequence[int] | None = None,
    order: str = "hold",
    storage: Storage = "stream",
    storage_place: StoragePlace = "device",
    name: str | None = None,
) -> CachePlan:
    """The paper's plan from a profile, as in this module's docstring.

    tau or share (of background blocks) split the blocks, by default Otsu's threshold; lists: the
    block lists to reuse; steps: the compute steps themselves, instead of pattern, tmax, tmin and
    warmup; order: "hold" as published, or "linear" in log-SNR; storage, storage_place: of the
    deltas, see `anchors`.
    """
    _check_choice("blocks", blocks, BLOCKS)
    _check_choice("order", order, ORDERS)
    split = split_blocks(profile, tau=tau, share=share, lists=lists)
    computed, step_settings, step_words = _compute_steps(
        profile, steps, pattern, {"tmax": tmax, "tmin": tmin, "warmup": warmup}
    )
    subject = profile.recorded
    return CachePlan.build(
        name=name or f"paper-{blocks}-{'steps' if steps is not None else pattern}",
        **subject.plan_fields,
        storage=storage,
        storage_place=storage_place,
        sites=_sites(split, blocks, segments(subject.steps, computed), profile, order),
        provenance={
            "made_by": "profiling_core.paper_plan",
            "source": _source(profile, split, blocks, step_words),
            "profile_sha256": profile.sha256(),
            "settings": {
                "tau": split.tau,
                "tau_from": split.found_by,
                **({} if share is None else {"share": share}),
                "blocks": blocks,
                "lists": ", ".join(split.lists),
                **step_settings,
                "order": order,
                "runs": len(profile.runs),
            },
        },
    )


def every_ablation(profile: Profile, **settings: Any) -> dict[str, CachePlan]:
    """Every row of the paper's tables 3 and 4 as a plan, by the row's name.

    Settings as for `paper_plan`, without blocks, pattern, steps and name. Two rows stand in both
    tables (foreground and background, stepwise) and are equal but for the name.
    """
    return {
        row: paper_plan(profile, blocks=blocks, pattern=pattern, name=row, **settings)
        for row, (blocks, pattern) in ABLATIONS.items()
    }


def _compute_steps(
    profile: Profile,
    steps: Sequence[int] | None,
    pattern: str,
    intervals: dict[str, int | None],
) -> tuple[tuple[int, ...], dict[str, str | int], str]:
    """Compute steps, their settings, and a description of both."""
    _check_choice("pattern", pattern, PATTERNS)
    total = profile.recorded.steps
    try:
        if steps is not None:
            _check_alone(pattern, intervals)
            listed = schedule.explicit(total, steps)
            return listed, {"steps": ",".join(map(str, listed))}, "compute steps as given"
        found = shrinking_intervals(profile, **intervals)
        computed = PATTERNS[pattern](total, found.warmup, found.tmax, found.tmin)
    except UserError:
        raise
    except ValueError as error:
        raise PlanError(str(error)) from None
    derived = f" ({' and '.join(found.derived)} from the L1 curve)" if found.derived else ""
    words = (
        f"warm-up {found.warmup}, {pattern} intervals with Tmax {found.tmax} and "
        f"Tmin {found.tmin}{derived}"
    )
    return computed, {"pattern": pattern, **found.settings}, words


def _check_alone(pattern: str, intervals: dict[str, int | None]) -> None:
    others = [name for name, value in intervals.items() if value is not None]
    others += [f"pattern {pattern}"] if pattern != "stepwise" else []
    if others:
        raise PlanError(f"steps and {', '.join(others)} both set the compute steps: give one")


def _sites(
    split: BlockSplit, blocks: str, parts: list[range], profile: Profile, order: str
) -> list[dict]:
    """One site per block list and reused side, computed at all other steps."""
    subject, sites, several = profile.recorded, [], len(split.lists) > 1
    for name in split.lists:
        row = "background" if several and name in BACKGROUND_ALONE else blocks
        for side, reused in reused_by_side(row, parts).items():
            computed = sorted(set(range(subject.steps)).difference(*reused))
            site = {
                "kind": "intervals",
                "block_list": name,
                "intervals": consecutive(getattr(split, side)[name]),
                "compute_steps": dict.fromkeys(subject.branches, computed),
                "skip": order,
            }
            sites += [site] if site["intervals"] else []
    return sites


def _source(profile: Profile, split: BlockSplit, blocks: str, step_words: str) -> str:
    reused = {
        "background": "background blocks reused",
        "foreground": "foreground blocks reused",
        "split": "foreground blocks reused early, background blocks late",
        "alternate": "foreground and background blocks reused by turns",
    }[blocks]
    if blocks != "background" and len(split.lists) > 1:
        alone = " and ".join(name for name in split.lists if name in BACKGROUND_ALONE)
        reused += f", in {alone} the background alone" if alone else ""
    count, runs = sum(map(len, split.background.values())), len(profile.runs)
    number = count + sum(map(len, split.foreground.values()))
    return (
        f"arXiv 2504.03140, equations 6 to 15, on a profile of {runs} run{'s' * (runs > 1)}: "
        f"{count} of {number} {' and '.join(split.lists)} are background "
        f"({SCORES[split.score]} below {split.tau:.4g}, {split.found_by}); {reused}; "
        f"{step_words}"
    )


def _check_choice(what: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise PlanError(f"{what} {value!r} is unknown: take {', '.join(choices)}")

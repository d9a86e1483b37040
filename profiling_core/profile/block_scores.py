"""How much each block attends to the foreground, and the split into F and B (equations 6 and 7).

One threshold serves all the block lists that are looked at together, as equation 7 has one tau; by
default these are all lists of the model. The paper shows the scores of HunyuanVideo's 40 single
blocks alone (its figures 2 and 3), but its released code reuses double blocks too, and only with
them its speed-up is reached (docs/paper.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profiling_core.errors import ProfileError
from profiling_core.plan.schedule import round_half_up
from profiling_core.profile.profile import Profile

SCORES = {"share": "R_attn", "lift": "R_attn over chance"}

Blocks = dict[str, tuple[int, ...]]  # block list -> ascending block numbers


@dataclass(frozen=True)
class BlockSplit:
    """Equation 7: the blocks of some lists below and above tau."""

    score: str
    tau: float
    found_by: str  # "Otsu", "given" or the share
    foreground: Blocks  # score >= tau
    background: Blocks

    @property
    def lists(self) -> tuple[str, ...]:
        return tuple(self.background)

    @property
    def sides(self) -> dict[tuple[str, int], str]:
        """ "F" or "B" by list and number."""
        parts = {"F": self.foreground, "B": self.background}
        return {(name, n): s for s, lists in parts.items() for name in lists for n in lists[name]}


def block_scores(
    profile: Profile, list_name: str | None = None, score: str = "share"
) -> np.ndarray:
    """R_attn per block (equation 6), mean over runs, branches and attention steps; (B,) float64.

    For one block list, or for all in the order of axis B. "lift" divides by the mean chance level.
    Steps with an empty mask are left out. ProfileError without attention, without any foreground,
    for an unknown list or score.
    """
    if score not in SCORES:
        raise ProfileError(f"score {score!r} is unknown: take {', '.join(SCORES)}")
    scores = _mean(profile, "attention_share")
    if score == "lift":
        chance = _mean(profile, "attention_chance")
        scores = np.divide(scores, chance, out=np.full_like(scores, np.nan), where=chance > 0)
    if list_name is None:
        return scores
    check_lists(profile, [list_name])
    return scores[[name == list_name for name, _ in profile.blocks]]


def attention(profile: Profile, name: str = "attention_share") -> np.ndarray:
    """The array `name`, (R, C, A, B) float64; ProfileError when no attention was recorded."""
    if not profile.recorded.attention_steps or not profile.has_attention:
        raise ProfileError(
            "the profile holds no attention: record one with attention_every > 0 "
            "(`profiling-dit profile FILE --attention-every 5` prepares it)"
        )
    return profile.arrays[name].astype(np.float64)


def check_lists(profile: Profile, lists: Sequence[str]) -> None:
    """ProfileError for a list that the model does not have, a list named twice, or none."""
    known = profile.recorded.model.block_lists
    for name in lists:
        if name not in known:
            raise ProfileError(f"block list {name!r} is not one of {', '.join(known)}")
    if not lists or len(set(lists)) != len(lists):
        raise ProfileError(f"block lists {list(lists)}: name one or more of {', '.join(known)}")


def split_blocks(
    profile: Profile,
    *,
    tau: float | None = None,
    share: float | None = None,
    lists: Sequence[str] | None = None,
    score: str = "share",
) -> BlockSplit:
    """Equation 7 with a given tau, the tau that makes `share` of the blocks background, or Otsu's.

    ProfileError when one side is empty.
    """
    lists = tuple(profile.recorded.model.block_lists if lists is None else lists)
    check_lists(profile, lists)
    per_list = {name: block_scores(profile, name, score) for name in lists}
    for name, scores in per_list.items():
        if not np.isfinite(scores).all():
            block = int(np.argmin(np.isfinite(scores)))
            raise ProfileError(f"{name} {block} has no {SCORES[score]}: no token of it ranks high")
    tau, found_by = _tau(np.concatenate(list(per_list.values())), tau, share, SCORES[score])
    return BlockSplit(
        score=score,
        tau=tau,
        found_by=found_by,
        foreground={name: _numbers(scores >= tau) for name, scores in per_list.items()},
        background={name: _numbers(scores < tau) for name, scores in per_list.items()},
    )


def _numbers(chosen: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(chosen).tolist())


def otsu_threshold(values: np.ndarray) -> float:
    """Halfway between the two sorted neighbours whose split has the largest variance between.

    Exact for a small sample: every split of the sorted values is tried. ProfileError when all
    values are equal.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if ordered.size < 2 or ordered[0] == ordered[-1]:
        raise ProfileError(
            f"{ordered.size} blocks of one and the same score cannot be split: "
            "record with another mask or other prompts"
        )
    below = np.arange(1, ordered.size)  # values below each split
    above = ordered.size - below
    sums = np.cumsum(ordered)
    apart = (sums[-1] - sums[:-1]) / above - sums[:-1] / below
    between = np.where(np.diff(ordered) > 0, below * above * apart**2, -1.0)
    return _halfway(ordered, int(np.argmax(between)) + 1)


def _mean(profile: Profile, name: str) -> np.ndarray:
    values = attention(profile, name)
    seen = np.isfinite(values)
    counts = seen.sum(axis=(0, 1, 2))
    if not counts.all():
        raise ProfileError(
            "no foreground in any mask of the profile, so R_attn is undefined: record with another "
            f"mask than {profile.settings.mask!r} or other prompts"
        )
    return np.where(seen, values, 0.0).sum(axis=(0, 1, 2)) / counts


def _tau(
    scores: np.ndarray, tau: float | None, share: float | None, what: str
) -> tuple[float, str]:
    if tau is not None and share is not None:
        raise ProfileError(f"tau {tau:g} and share {share:g} are both given: give one of them")
    if share is not None:
        return _tau_of_share(scores, share), f"share {share:g}"
    if tau is None:
        return otsu_threshold(scores), "Otsu"
    low, high = float(scores.min()), float(scores.max())
    if not low < tau <= high:  # NaN too
        side = "background" if tau <= low else "foreground"
        raise ProfileError(
            f"tau {tau:g} leaves no {side} block: {what} lies between {low:.4g} and {high:.4g}, "
            "expected a tau above the first and not above the second"
        )
    return tau, "given"


def _tau_of_share(scores: np.ndarray, share: float) -> float:
    """The tau with round(share x number) blocks below it."""
    if not (math.isfinite(share) and 0 < share < 1):
        raise ProfileError(f"share {share:g} of background blocks: expected above 0 and below 1")
    ordered, number = np.sort(scores), scores.size
    below = round_half_up(share * number)
    if not 0 < below < number:
        side = "background" if below == 0 else "foreground"
        raise ProfileError(
            f"share {share:g} leaves no {side} block of {number}: expected "
            f"{0.5 / number:.3g} to {1 - 0.5 / number:.3g}"
        )
    if ordered[below - 1] == ordered[below]:
        raise ProfileError(
            f"share {share:g} splits blocks of the same score {ordered[below]:.4g}: "
            "give another share, or tau"
        )
    return _halfway(ordered, below)


def _halfway(ordered: np.ndarray, below: int) -> float:
    """A threshold with `below` values under it, also where no number lies between two floats."""
    low, high = float(ordered[below - 1]), float(ordered[below])
    middle = low + (high - low) / 2
    return middle if middle > low else high


def mean_over(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Mean of what is finite, in float64; NaN where nothing is."""
    seen = np.isfinite(values)
    counts = seen.sum(axis=axes)
    sums = np.where(seen, values, 0.0).sum(axis=axes, dtype=np.float64)
    return np.divide(sums, counts, out=np.full(np.shape(counts), np.nan), where=counts > 0)

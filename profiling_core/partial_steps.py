"""Partial steps: visited steps at which only a part of the model runs.

A plan of `search` runs every block at the steps that it visits. The same FLOPs can be spent in
another way: more steps are visited, and at some of them the deltas of one part of the model are
forecast, linear in sigma, from the last two whole steps. The parts:

    uncond              all blocks of the unconditional branch
    background          the blocks below tau (equation 7); needs attention in the profile
    front, back         the first and the second half of the blocks
    the name of a list  all its blocks, where a model has several (double_blocks, single_blocks)

What a partial step s leaves, with the whole steps i and j before it, v the guided prediction, f its
linear forecast (3) and Delta_b the delta of block b:

    (11) d = phi (f_s - v_s),  phi^2 = |sum over b in the part of (Delta_b,j - Delta_b,s)|^2
                                     / |sum over all b of (Delta_b,j - Delta_b,s)|^2
         d = (1 - guidance) (f^u_s - u_s) for uncond, u being its own prediction
    (12) (sigma_n - sigma_s) d S_n^EASE, n being the next visited step

(12) joins the vectors of the segments in (9) of step_search, as one that ends at n. phi comes from
the profile's products of block deltas, a mean over runs and branches; sums of different lists are
taken as orthogonal. (11) supposes that an error in a part of the deltas turns into an error of the
prediction as one in all of them does, and that a partial step's own prediction serves as an anchor
as well as a whole one: `plan --validate` runs what the search makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from profiling_core.checked import PlanError
from profiling_core.models import consecutive
from profiling_core.paths import Paths
from profiling_core.profile import Profile
from profiling_core.step_search import QUANTILE, StepSearch, aligned, scores

MOST_MORE = 12  # steps that are visited beyond those of a plan without partial steps


@dataclass(frozen=True)
class Part:
    """What is not run at a partial step: blocks of lists, in some of the branches."""

    name: str
    blocks: dict[str, tuple[int, ...]]
    branches: tuple[str, ...]
    share: float  # of a step's block FLOPs, all branches

    def sites(
        self, visited: tuple[int, ...], partial: tuple[int, ...], all_branches: tuple[str, ...]
    ) -> list[dict]:
        """Interval sites of a plan that visits `visited` and leaves the part out at `partial`."""
        whole = tuple(step for step in visited if step not in partial)
        steps = {b: whole if b in self.branches else visited for b in all_branches}
        return [
            {
                "kind": "intervals",
                "block_list": name,
                "intervals": consecutive(blocks),
                "compute_steps": steps,
                "skip": "linear",
            }
            for name, blocks in self.blocks.items()
        ]


@dataclass(frozen=True)
class Partial:
    """Visited steps, those of them that are partial, and the predicted errors of all runs, (R,)."""

    part: Part
    steps: tuple[int, ...]
    partial: tuple[int, ...]
    errors: np.ndarray

    @property
    def error(self) -> float:
        return float(np.quantile(self.errors, QUANTILE))

    @property
    def score(self) -> float:
        return float(scores(self.errors[None])[0])


def parts_of(profile: Profile) -> dict[str, Part]:
    """The parts that a model has, by name."""
    # here: presets, which block_scores reads, are searched themselves
    from profiling_core.block_scores import part_blocks

    subject = profile.recorded
    every = {name: tuple(range(count)) for name, count in subject.model.block_lists.items()}
    both, found = subject.branches, {}
    if "uncond" in both:
        found["uncond"] = _part(profile, "uncond", every, ("uncond",))
    if profile.has_attention and subject.attention_steps:
        background = part_blocks(profile).background
        found["background"] = _part(profile, "background", background, both)
    flat = [(name, block) for name, blocks in every.items() for block in blocks]
    halves = {"front": flat[: len(flat) // 2], "back": flat[len(flat) // 2 :]}
    for name, half in halves.items():
        of_lists = {key: tuple(b for k, b in half if k == key) for key in every}
        blocks = {key: of_list for key, of_list in of_lists.items() if of_list}
        found[name] = _part(profile, name, blocks, both)
    if len(every) > 1:
        for name in every:
            found[name] = _part(profile, name, {name: every[name]}, both)
    return {name: part for name, part in found.items() if part.share > 0}


def _part(
    profile: Profile, name: str, blocks: dict[str, tuple[int, ...]], branches: tuple[str, ...]
) -> Part:
    full = sum(profile.recorded.model.block_lists.values())
    left = sum(len(own) for own in blocks.values())
    share = left / full * len(branches) / len(profile.recorded.branches)
    return Part(name, {key: own for key, own in blocks.items() if own}, branches, share)


class PartialSearch:
    """Plans with partial steps of one part; paths: of the profile's runs."""

    def __init__(self, profile: Profile, paths: Paths, part: Part, weights: np.ndarray) -> None:
        self.part, self.paths = part, paths
        self._profile = profile
        self._weights = weights  # S_n^EASE, (S + 1, R)

    def best(self, search: StepSearch, count: int) -> Partial | None:
        """The best plan with the FLOPs of `count` whole steps; None where no step can be partial.

        search: that of the way to skip which is used between visited steps.
        """
        found = list(self._candidates(search, count))
        return min(found, key=lambda one: one.score, default=None)

    def errors(
        self, search: StepSearch, steps: tuple[int, ...], partial: tuple[int, ...]
    ) -> np.ndarray:
        """(10) of step_search with (12): (R,)."""
        vectors, ends = search.segments(steps)
        if not partial:
            return search.told * aligned(vectors, ends, self.paths.steps)
        more = np.stack([self._added(steps, partial, step) for step in partial])
        vectors = np.pad(vectors, ((0, 0), (0, 0), (0, more.shape[-1] - vectors.shape[-1])))
        after = [self._next(steps, step) for step in partial]
        vectors, ends = np.concatenate([vectors, more]), np.append(ends, after)
        return search.told * aligned(vectors, ends, self.paths.steps)

    # -- parts

    def _candidates(self, search: StepSearch, count: int) -> Iterator[Partial]:
        for visited in range(count + 1, min(count + MOST_MORE, self.paths.steps) + 1):
            needed = ceil((visited - count) / self.part.share - 1e-9)
            if needed > (visited - 2) // 2:
                return
            steps = search.best(visited).steps
            if (chosen := self._chosen(search, steps, needed)) is not None:
                yield chosen

    def _chosen(self, search: StepSearch, steps: tuple[int, ...], needed: int) -> Partial | None:
        """`needed` partial steps, added one by one where each adds least."""
        partial: tuple[int, ...] = ()
        for _ in range(needed):
            free = [k for k in range(2, len(steps)) if self._fits(steps, partial, k)]
            if not free:
                return None
            tried = [tuple(sorted((*partial, steps[k]))) for k in free]
            errors = np.stack([self.errors(search, steps, one) for one in tried])
            partial = tried[int(scores(errors).argmin())]
        return Partial(self.part, steps, partial, self.errors(search, steps, partial))

    @staticmethod
    def _fits(steps: tuple[int, ...], partial: tuple[int, ...], k: int) -> bool:
        """Not partial yet, and between two whole steps or at the end."""
        near = (steps[k - 1], steps[k], *steps[k + 1 : k + 2])
        return not set(near) & set(partial)

    def _added(self, steps: tuple[int, ...], partial: tuple[int, ...], step: int) -> np.ndarray:
        """(12) of one partial step: (R, D) or wider."""
        whole = [s for s in steps if s < step and s not in partial]
        i, j = whole[-2:]
        n = self._next(steps, step)
        width = self.paths.levels.sigma[n] - self.paths.levels.sigma[step]
        return width * self._left(i, j, step) * self._weights[n][:, None]

    def _next(self, steps: tuple[int, ...], step: int) -> int:
        """The next visited step, the run's end after the last."""
        return min((s for s in steps if s > step), default=self.paths.steps)

    def _left(self, i: int, j: int, s: int) -> np.ndarray:
        """d of (11)."""
        new, old = forecast_factors(self.paths.levels.sigma, i, j, s)
        if self.part.name == "uncond":
            u, factor = self._uncond
            return factor[:, None] * (new * u[j] + old * u[i] - u[s])
        v = self.paths.predictions
        return self._phi(j, s) * (new * v[j] + old * v[i] - v[s])

    def _phi(self, j: int, s: int) -> float:
        """Share of the change of all deltas between two steps that lies in the part."""
        every = {name: tuple(range(len(own))) for name, own in self._grams.items()}
        whole = self._change(every, j, s)
        return (self._change(self.part.blocks, j, s) / whole) ** 0.5 if whole > 0 else 1.0

    def _change(self, blocks: dict[str, tuple[int, ...]], j: int, s: int) -> float:
        """|sum of Delta_j - Delta_s over blocks|^2, mean over branches, lists orthogonal."""
        total = 0.0
        for name, own in blocks.items():
            gram = self._grams[name][np.ix_(own, own)].sum(axis=(0, 1))
            total += max(float(gram[j, j] + gram[s, s] - 2 * gram[j, s]), 0.0)
        return total

    @cached_property
    def _grams(self) -> dict[str, np.ndarray]:
        """Products of block deltas by list, mean over branches: (B, B, S, S)."""
        steps, found = self.paths.steps, {}
        for name, count in self._profile.recorded.model.block_lists.items():
            gram = self._profile.arrays[f"delta_gram.{name}"].mean(axis=0)
            found[name] = gram.reshape(count, steps, count, steps).swapaxes(1, 2)
        return found

    @cached_property
    def _uncond(self) -> tuple[np.ndarray, np.ndarray]:
        """Unconditional predictions in the coordinates of `paths`, (S, R, D or more); 1 - guidance.

        What lies outside of the paths' space gets coordinates of its own, behind theirs.
        """
        steps = self.paths.steps
        scales = np.array([run.guidance for run in self._profile.runs])
        inside, outside = [], []
        for run, (gram, scale) in enumerate(zip(self._profile.arrays["gram"], scales, strict=True)):
            rows = np.concatenate([self.paths.predictions[:, run], self.paths.latents[:, run]])
            norm = 1 / np.sqrt(gram[-1, -1])
            u, rest = gram[steps : 2 * steps] * norm**2, slice(2 * steps, None)
            products = np.concatenate(
                [scale * u[:, :steps] + (1 - scale) * u[:, steps : 2 * steps], u[:, rest]], axis=1
            )
            own = np.linalg.lstsq(rows, products.T, rcond=1e-8)[0].T
            left = u[:, steps : 2 * steps] - own @ own.T
            values, vectors = np.linalg.eigh((left + left.T) / 2)
            inside.append(own)
            outside.append(vectors * np.sqrt(np.maximum(values, 0)))
        found = np.concatenate([np.stack(inside, 1), np.stack(outside, 1)], axis=-1)
        return found, 1 - scales


def forecast_factors(sigma: np.ndarray, i: int, j: int, s: int) -> tuple[float, float]:
    """Weights of j and i in the line through both at s, (3)."""
    slope = (sigma[s] - sigma[j]) / (sigma[j] - sigma[i])
    return 1 + slope, -slope


def part_named(profile: Profile, name: str) -> Part:
    """PlanError names the parts there are."""
    parts = parts_of(profile)
    if name not in parts:
        raise PlanError(f"no part {name!r}: this model has {', '.join(parts)}")
    return parts[name]

"""The summary of a profile, as numbers and as lines for a terminal.

Numbers: `ranking` (the blocks by R_attn), `stability` (over steps) and `agreement` (between runs,
prompts and branches); scores and thresholds are in `block_scores`. Rank correlations are
Spearman's, over the blocks of the lists of the paper's plan (see `block_scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from profiling_core.errors import ProfileError
from profiling_core.plan.model_specs import consecutive
from profiling_core.profile.block_scores import (
    attention,
    block_scores,
    mean_over,
    split_blocks,
)
from profiling_core.profile.profile import Profile, Settings
from profiling_core.profile.step_change import l1_curve, shrinking_intervals

Found = TypeVar("Found")

NAN = float("nan")
WIDEST_CURVE, CURVE_ROWS = 75, 6  # characters of the L1 picture


@dataclass(frozen=True)
class RankedBlock:
    """One block of the ranking; NaN where something was not measured."""

    block_list: str
    block: int
    score: float  # R_attn, mean over runs, branches and attention steps
    lift: float  # the same over the mean chance level
    spread: float  # standard deviation over attention steps of R_attn's mean over runs, branches
    side: str  # "F", "B" by Otsu's tau over all lists; "" without a tau


@dataclass(frozen=True)
class Stability:
    """Rank correlation of the blocks' R_attn between attention steps, 1: the same ranking.

    Correlations are taken within a run and branch, then averaged; steps with an empty mask are
    left out.
    """

    mean: float  # over all pairs of attention steps
    early_late: float  # over pairs of a step of the first third and one of the last third
    matrix: np.ndarray  # (A, A)


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of the blocks' R_attn, mean over steps; NaN where there is no pair."""

    runs: float  # over all pairs of runs
    prompts: float  # over pairs of runs with different prompts
    branches: float  # between the guidance branches of a run, mean over runs


def ranking(profile: Profile) -> list[RankedBlock]:
    """All blocks of all lists, the largest R_attn first; ProfileError without attention."""
    scores, lift = block_scores(profile), block_scores(profile, score="lift")
    spread = _step_spread(profile)
    split = _or_error(split_blocks, profile)
    side = {} if isinstance(split, ProfileError) else split.sides
    rows = [
        RankedBlock(*block, float(scores[n]), float(lift[n]), float(spread[n]), side.get(block, ""))
        for n, block in enumerate(profile.blocks)
    ]
    return sorted(rows, key=lambda row: -row.score)


def stability(profile: Profile) -> Stability:
    shares = _shares_of(profile)  # (R, C, A, B)
    matrices = [rank_correlations(steps) for branches in shares for steps in branches]
    matrix = mean_over(np.stack(matrices), (0,))
    third = max(1, len(matrix) // 3)
    pairs = [matrix[a, b] for a, b in combinations(range(len(matrix)), 2)]
    apart = matrix[:third, -third:].ravel() if len(matrix) > 1 else np.empty(0)
    return Stability(_nanmean(pairs), _nanmean(apart), matrix)


def agreement(profile: Profile) -> Agreement:
    shares = _shares_of(profile)
    per_branch = np.stack([[mean_over(a, (0,)) for a in branches] for branches in shares])
    between = rank_correlations(np.stack([mean_over(a, (0,)) for a in per_branch]))  # (R, R)
    pairs = list(combinations(range(len(between)), 2))
    prompts = [run.prompt for run in profile.runs]
    return Agreement(
        runs=_nanmean([between[a, b] for a, b in pairs]),
        prompts=_nanmean([between[a, b] for a, b in pairs if prompts[a] != prompts[b]]),
        branches=_nanmean([m[0, 1] for m in map(rank_correlations, per_branch) if len(m) > 1]),
    )


def rank_correlations(rows: np.ndarray) -> np.ndarray:
    """Spearman's correlation between every two rows of (N, B): (N, N).

    Equal values share their mean rank. NaN for a row that holds NaN or one value alone.
    """
    ranks = np.stack([_ranks(row) for row in np.asarray(rows, dtype=np.float64)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(axis=1))
    norms[norms == 0] = NAN
    return (ranks @ ranks.T) / (norms[:, None] * norms)


def summary_lines(profile: Profile) -> list[str]:
    if profile.subject is None:
        return ["a profile without runs yet", *settings_lines(profile.settings)]
    lines = [*_subject_lines(profile), *settings_lines(profile.settings), "", *_run_lines(profile)]
    ranked = _or_error(ranking, profile)
    if isinstance(ranked, ProfileError):
        lines += ["", *_block_lines(profile, []), "", f"no R_attn, so no F and B: {ranked}"]
    else:
        lines += ["", *_block_lines(profile, ranked), ""]
        lines += [*_side_lines(profile), *_correlation_lines(profile)]
    return [*lines, "", *_curve_lines(profile), *_sensitivity_lines(profile)]


def settings_lines(settings: Settings) -> list[str]:
    high = f"the top {100 * settings.high_share:g} %" if settings.high_share is not None else ""
    if settings.high_threshold is not None:
        high = f"above {settings.high_threshold:g} x the mean"
    source = f" from {_printable(settings.mask_source)}" if settings.mask_source else ""
    lines = [f"predictions and latents at all steps, deltas at {settings.delta_tokens} tokens"]
    if settings.attention_every:
        queries = settings.attention_queries or "by the clip's size"
        steps = "step" if settings.attention_every == 1 else f"{settings.attention_every} steps"
        lines += [
            f"attention every {steps}; queries of a head: {queries}; high tokens: {high}",
            f"foreground mask: {settings.mask}{source}",
        ]
    else:
        lines.append("no attention")
    if settings.sensitivity:
        steps = ", ".join(map(str, settings.sensitivity))
        lines.append(f"sensitivity at steps {steps}: one more run each")
    return ["records", *(f"  {line}" for line in lines)]


def _subject_lines(profile: Profile) -> list[str]:
    subject, runs = profile.recorded, len(profile.runs)
    lists = ", ".join(f"{n} {name}" for name, n in subject.model.block_lists.items())
    change = f"; another model from step {subject.change} on" if subject.change else ""
    latent, grid = (" x ".join(map(str, size)) for size in (subject.latent, subject.grid))
    return [
        f"profile of {subject.model.name}: {runs} run{'s' * (runs > 1)} of {subject.steps} steps",
        f"  {subject.solver}, shift {subject.shift:g}, sigma {subject.sigmas[0]:.4f} to "
        f"{subject.sigmas[-1]:.4f}, branches {', '.join(subject.branches)}{change}",
        f"  {lists} of width {subject.model.width}; latent {latent}, tokens {grid}",
    ]


def _run_lines(profile: Profile) -> list[str]:
    lines = []
    for number, run in enumerate(profile.runs, start=1):
        seed = "-" if run.seed is None else run.seed
        lines.append(f"run {number}: {_printable(run.prompt, 60)!r}, seed {seed}")
        facts = [f"{run.seconds:.1f} s", f"{run.device} {run.dtype}"]
        if run.model_seconds is not None:
            facts.insert(1, f"{run.model_seconds:.3f} s a call")
        if run.foreground is not None:
            facts.append(f"foreground {100 * run.foreground:.1f} %")
        if run.attention_error is not None:
            rows = "" if run.attention_rows is None else f" from {run.attention_rows} rows"
            facts.append(f"attention +-{100 * run.attention_error:.1f} %{rows}")
        lines.append(f"  {', '.join(facts)}")
    return lines


def _block_lines(profile: Profile, ranked: list[RankedBlock]) -> list[str]:
    """A table of the blocks as ranked, else in their order."""
    drift = dict(zip(profile.blocks, _per_block(profile, "drift"), strict=True))
    seconds = _per_block(profile, "block_seconds")
    part = dict(zip(profile.blocks, 100 * seconds / seconds.sum(), strict=True))
    rows = ranked or [RankedBlock(*block, NAN, NAN, NAN, "") for block in profile.blocks]
    width = max(len(f"{name} {block}") for name, block in profile.blocks)
    lines = [f"{'block':<{width}}  R_attn   lift  spread   drift  time %  side"]
    for row in rows:
        block = (row.block_list, row.block)
        numbers = (
            f"{_number(row.score, 6, 3)} {_number(row.lift, 6, 2)} {_number(row.spread, 7, 3)} "
            f"{_number(drift[block], 7, 3)} {_number(part[block], 7, 1)}"
        )
        lines.append(f"{f'{row.block_list} {row.block}':<{width}}  {numbers}  {row.side}".rstrip())
    return [
        *lines,
        "lift: R_attn over chance; spread: over steps; drift: relative change of the delta a step",
    ]


def _side_lines(profile: Profile) -> list[str]:
    split = _or_error(split_blocks, profile)
    if isinstance(split, ProfileError):
        return [f"no F and B: {split}"]
    lines = [f"tau {split.tau:.4f} ({split.found_by}), equation 7:"]
    for name in split.lists:
        for side in ("foreground", "background"):
            blocks = getattr(split, side)[name]
            runs = " ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in consecutive(blocks))
            lines.append(f"  {side} {name} ({len(blocks)}): {runs or 'none'}")
    return lines


def _correlation_lines(profile: Profile) -> list[str]:
    steady, alike = stability(profile), agreement(profile)
    return [
        "rank correlation of R_attn over all blocks:",
        f"  between steps {_number(steady.mean)}, early against late {_number(steady.early_late)}",
        f"  between runs {_number(alike.runs)}, prompts {_number(alike.prompts)}, "
        f"branches {_number(alike.branches)}",
    ]


def _curve_lines(profile: Profile) -> list[str]:
    """The L1 curve as bars from 0 to its largest value, one column a step or a few."""
    curve, steps = l1_curve(profile), profile.recorded.steps
    each = -(-curve.size // WIDEST_CURVE)
    columns = np.array([curve[n : n + each].max() for n in range(0, curve.size, each)])
    top = float(columns.max())
    heights = np.ceil(columns / (top or 1.0) * CURVE_ROWS - 1e-9)
    found = shrinking_intervals(profile)
    lines = ["relative L1 between predictions, step by step, mean over runs and branches:"]
    for row in range(CURVE_ROWS, 0, -1):
        mark = f"{top:.3f}" if row == CURVE_ROWS else ""
        lines.append(f"{mark:>7} |{''.join('#' if h >= row else ' ' for h in heights)}".rstrip())
    last = f"to {steps - 1}"
    return [
        *lines,
        f"{'0':>7} +{'-' * columns.size}",
        f"{'step':>7}  {'1':<{max(2, columns.size - len(last))}}{last}",
        f"  {curve.min():.3f} to {curve.max():.3f}; suggests warm-up {found.warmup}, "
        f"Tmax {found.tmax}, Tmin {found.tmin} of equation 15",
    ]


def _sensitivity_lines(profile: Profile) -> list[str]:
    values = profile.arrays["sensitivity"].astype(np.float64)
    measured = np.flatnonzero(np.isfinite(values).any(axis=0))
    if not measured.size:
        return []
    means = {step: np.exp(_nanmean(np.log(values[:, step]))) for step in measured}
    pairs = ", ".join(f"{mean:.3g} at {step}" for step, mean in means.items())
    return [f"error of the final latent over that injected before a step (geometric mean): {pairs}"]


def _or_error(measure: Callable[[Profile], Found], profile: Profile) -> Found | ProfileError:
    """What is measured, or why not: no attention, no foreground, equal scores."""
    try:
        return measure(profile)
    except ProfileError as error:
        return error


def _shares_of(profile: Profile) -> np.ndarray:
    return attention(profile)


def _step_spread(profile: Profile) -> np.ndarray:
    shares = attention(profile)
    per_step = mean_over(shares.reshape(-1, *shares.shape[2:]), (0,))  # (A, B)
    return per_step[np.isfinite(per_step).all(axis=1)].std(axis=0)


def _per_block(profile: Profile, name: str) -> np.ndarray:
    values = profile.arrays[name].astype(np.float64)
    return mean_over(values, tuple(range(values.ndim - 1)))


def _nanmean(values: Sequence[float] | np.ndarray) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(mean_over(array, (0,))) if array.size else NAN


def _ranks(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        return np.full(values.shape, NAN)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _number(value: float, width: int = 0, digits: int = 2) -> str:
    return f"{value:{width}.{digits}f}" if np.isfinite(value) else f"{'-':>{width}}"


def _printable(text: str, most: int = 200) -> str:
    """One line without control characters: prompts come from anywhere."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= most else f"{clean[: most - 3]}..."

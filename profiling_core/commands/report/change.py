"""Figures of change from step to step, of what holding a result costs, and of the blocks' cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from profiling_core.commands.report.figures import (
    Absent,
    Axis,
    Curves,
    Figure,
    HeatMap,
    Layer,
    Panel,
    View,
    block_axis,
    change_axis,
    series,
    step_axis,
)
from profiling_core.errors import ProfileError
from profiling_core.profile.block_scores import mean_over
from profiling_core.profile.profile import Profile
from profiling_core.profile.step_change import shrinking_intervals

SCALES = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"))
OVER_RUNS = "Line: mean over runs; band: from the smallest to the largest run."


def l1_figure(profile: Profile) -> Figure:
    """L1 between consecutive predictions, as it is and relative (the paper's figure 4)."""
    title = "How much the prediction changes from step to step"
    quantities = {"relative L1": "l1_relative", "L1": "l1"}
    if not _any_finite(profile, "l1", "l1_relative"):
        return Absent("fig-l1", title, "no finite L1 was recorded")
    views = tuple(
        View(name, (_curve(profile, array, _unit(name), from_zero=True),))
        for name, array in quantities.items()
    )
    caption = (
        "Mean absolute difference of the predictions of two consecutive steps; relative: over the "
        "mean absolute value of the earlier one. Low stretches are where reuse is cheap. "
        f"{_range_words(profile)}{_suggestion(profile)}"
    )
    return Curves("fig-l1", title, caption, views)


def direction_figure(profile: Profile) -> Figure:
    """Cosine of consecutive predictions, and the magnitude ratios that MagCache uses."""
    title = "Direction and size of the change"
    if not _any_finite(profile, "cosine", "magnitude"):
        return Absent("fig-direction", title, "no finite cosine or magnitude was recorded")
    panels = (
        _curve(profile, "cosine", "cosine of consecutive predictions"),
        _curve(profile, "magnitude", "magnitude ratio of what the blocks add"),
    )
    caption = (
        "Above: 1 means that the prediction kept its direction. Below: MagCache's ratio, the mean "
        "over tokens of the size of what all blocks together add, over that of the step before; "
        f"1 means no change of size. {_range_words(profile)}"
    )
    return Curves("fig-direction", title, caption, (View("", panels),))


def drift_figure(profile: Profile) -> Figure:
    """Relative change of every block's delta from step to step, and its cosine."""
    title = "How much each block's delta changes from step to step"
    drift = mean_over(profile.arrays["drift"], (0, 1))  # (S-1, B)
    cosine = mean_over(profile.arrays["delta_cosine"], (0, 1))
    if not np.isfinite(drift).any():
        return Absent("fig-drift", title, "no finite drift was recorded")
    caption = (
        "A block's delta is its output minus its input. Each cell: the size of the delta's change "
        "since the step before, over its size there (0.1 is 10 %; colours on a logarithmic "
        "scale), mean over runs and branches. Dark stretches can be reused."
    )
    layers = (
        Layer("relative drift", drift.T, logarithmic=True, means=_row_means(drift.T)),
        Layer("cosine", cosine.T),
    )
    blocks = block_axis(profile.recorded.model)
    return HeatMap("fig-drift", title, caption, change_axis(profile), blocks, layers)


def hold_figure(profile: Profile) -> Figure:
    """Relative error of a step's prediction when an older one is reused, from the Gram matrix."""
    title = "What reusing an older prediction would cost"
    errors, branch = hold_errors(profile), profile.recorded.branches[0]  # (S-1, S-1)
    if not np.isfinite(errors).any():
        return Absent("fig-hold", title, "the Gram matrix of the predictions is not finite")
    caption = (
        "Each cell: the size of the difference between the prediction of step n and the one g "
        f"steps earlier, over the size of the former (branch {branch}, mean over runs, from the "
        "Gram matrix; colours on a logarithmic scale). It is the local error of holding one "
        "prediction for g steps; the plan search sums such errors over a run."
    )
    steps = step_axis(range(1, profile.recorded.steps), "denoising step n")
    gaps = Axis("gap g in steps", "gap", tuple(str(gap) for gap in range(1, len(errors) + 1)))
    layer = Layer("relative error", errors, True, missing="there is no step so early")
    return HeatMap("fig-hold", title, caption, steps, gaps, (layer,))


def hold_errors(profile: Profile) -> np.ndarray:
    """|p_n - p_(n-g)| / |p_n|, mean over runs: row g - 1, column n - 1; NaN where n < g."""
    steps = profile.recorded.steps
    gram = profile.arrays["gram"][:, :steps, :steps].astype(np.float64)
    size = np.einsum("rnn->rn", gram)
    squared = size[:, :, None] - 2 * gram + size[:, None, :]  # (R, n, older step)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.sqrt(np.maximum(squared, 0) / size[:, :, None])
    relative = mean_over(np.where(np.isfinite(squared), relative, np.nan), (0,))
    errors = np.full((steps - 1, steps - 1), np.nan)
    for gap in range(1, steps):
        errors[gap - 1, gap - 1 :] = np.diagonal(relative, -gap)
    return errors


def sensitivity_figure(profile: Profile) -> Figure:
    """Effect on the final latent of a small error before a step, where it was measured."""
    title = "How much an early error matters in the end"
    values = profile.arrays["sensitivity"].astype(np.float64)
    measured = np.flatnonzero(np.isfinite(values).any(axis=0)).tolist()
    if not measured:
        return Absent("fig-sensitivity", title, "the profile was recorded without sensitivity")
    caption = (
        "A small error is injected before a step; the value is the error of the final latent over "
        "the injected one. Above 1 errors grow, below 1 they fade. "
        f"{_range_words(profile).replace('mean', 'geometric mean')}"
    )
    all_runs = series("all runs", values[:, measured])
    middle = np.exp(mean_over(np.log(values[:, measured]), (0,)))  # one run may be 100 x another
    axis = step_axis(measured, "step before which the error is injected")
    panel = Panel(
        "error at the end over error injected",
        axis,
        (replace(all_runs, middle=middle),),
        from_zero=True,
        points=True,
    )
    return Curves("fig-sensitivity", title, caption, (View("", (panel,)),))


def cost_figure(profile: Profile) -> Figure:
    """Time and FLOPs of a run of every block, as bars."""
    title = "What each block costs"
    seconds = profile.arrays["block_seconds"].astype(np.float64)  # (R, B)
    flops = profile.arrays["block_flops"].astype(np.float64)  # (B,)
    if not (np.isfinite(seconds).any() or np.isfinite(flops).any()):
        return Absent("fig-cost", title, "no block time and no FLOPs were recorded")
    blocks = block_axis(profile.recorded.model)
    largest = np.nanmax(flops, initial=0.0)
    scale, unit = next((one for one in SCALES if largest >= one[0]), (1.0, "FLOP"))
    time, work = series("time", seconds * 1e3), series("FLOPs", flops[None] / scale)
    panels = (
        Panel("milliseconds a run", blocks, (time,), bars=True, from_zero=True),
        Panel(f"{unit} a run", blocks, (work,), bars=True, from_zero=True),
    )
    several = "; bar: mean over runs, whisker: from the smallest to the largest run"
    caption = (
        "Above: mean time of one run of the block, without the steps at which attention was "
        f"measured{several if len(profile.runs) > 1 else ''}. Below: floating-point operations of "
        "one run."
    )
    return Curves("fig-cost", title, caption, (View("", panels),))


def _curve(profile: Profile, array: str, label: str, from_zero: bool = False) -> Panel:
    values = profile.arrays[array].astype(np.float64)  # (R, C, S-1)
    branches = profile.recorded.branches
    curves = tuple(series(branch, values[:, n]) for n, branch in enumerate(branches))
    return Panel(label, change_axis(profile), curves, from_zero=from_zero)


def _unit(name: str) -> str:
    return "relative L1 (1 = 100 %)" if name == "relative L1" else "L1 of the predictions"


def _row_means(values: np.ndarray) -> tuple[float, ...]:
    return tuple(mean_over(values, (1,)).tolist())


def _any_finite(profile: Profile, *names: str) -> bool:
    return any(np.isfinite(profile.arrays[name]).any() for name in names)


def _range_words(profile: Profile) -> str:
    return OVER_RUNS if len(profile.runs) > 1 else "One run, so no range over runs."


def _suggestion(profile: Profile) -> str:
    try:
        found = shrinking_intervals(profile)
    except ProfileError as error:
        return f" No intervals are derived: {error}."
    return (
        f" Derived for the paper's plan: warm-up {found.warmup}, "
        f"Tmax {found.tmax}, Tmin {found.tmin}."
    )

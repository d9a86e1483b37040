"""The figure of what each block costs."""

from __future__ import annotations

import numpy as np

from profiling_core.profile import Profile
from profiling_core.report.axes import block_axis
from profiling_core.report.figures import Absent, Curves, Figure, Panel, View, series

SCALES = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"))


def cost_figure(profile: Profile) -> Figure:
    """Time and FLOPs of a run of every block, as bars."""
    title = "What each block costs"
    seconds = profile.arrays["block_seconds"].astype(np.float64)  # (R, B)
    flops = profile.arrays["block_flops"].astype(np.float64)  # (B,)
    if not (np.isfinite(seconds).any() or np.isfinite(flops).any()):
        return Absent("fig-cost", title, "no block time and no FLOPs were recorded")
    blocks = block_axis(profile.recorded.model)
    scale, unit = _scale(flops)
    time, work = series("time", seconds * 1e3), series("FLOPs", flops[None] / scale)
    panels = (
        Panel("milliseconds a run", blocks, (time,), bars=True, from_zero=True),
        Panel(f"{unit} a run", blocks, (work,), bars=True, from_zero=True),
    )
    caption = (
        "Above: mean time of one run of the block, without the steps at which attention was "
        f"measured{_range_words(profile)}. Below: floating-point operations of one run."
    )
    return Curves("fig-cost", title, caption, (View("", panels),))


def _range_words(profile: Profile) -> str:
    if len(profile.runs) == 1:
        return ""
    return "; bar: mean over runs, whisker: from the smallest to the largest run"


def _scale(flops: np.ndarray) -> tuple[float, str]:
    largest = np.nanmax(flops, initial=0.0)
    return next(((s, unit) for s, unit in SCALES if largest >= s), (1.0, "FLOP"))

"""The report: a profile, plans and videos as one HTML page that loads nothing, or as PNGs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from profiling_core.commands.report.attention import maps_figure, share_figure
from profiling_core.commands.report.change import (
    cost_figure,
    direction_figure,
    drift_figure,
    hold_figure,
    l1_figure,
    sensitivity_figure,
)
from profiling_core.commands.report.drawing import files_of
from profiling_core.commands.report.figures import Figure
from profiling_core.commands.report.page import page
from profiling_core.commands.report.plan_picture import plan_figures
from profiling_core.commands.report.videos import read_videos
from profiling_core.files import check_writable, write_whole
from profiling_core.plan import CachePlan
from profiling_core.profile.profile import Profile

FIGURES = (
    share_figure,
    maps_figure,
    l1_figure,
    direction_figure,
    drift_figure,
    hold_figure,
    sensitivity_figure,
    cost_figure,
)


def report_figures(profile: Profile, plans: Sequence[CachePlan] = ()) -> list[Figure]:
    """All figures of the report; ProfileError without a run, or for another model's plan."""
    profile.recorded  # noqa: B018  ProfileError without runs
    pictures = plan_figures(profile, plans)
    return [*(make(profile) for make in FIGURES), *pictures]


def write_report(
    profile: Profile,
    path: str | os.PathLike[str],
    *,
    plans: Sequence[CachePlan] = (),
    videos: Sequence[str | os.PathLike[str]] = (),
    title: str | None = None,
) -> Path:
    """Write the page, whole or not at all, and return its path.

    videos: mp4 or webm files, the full run first; they are embedded. ProfileError for a profile
    without runs, a plan of another model, a video that cannot be embedded.
    InputError where nothing can be written.
    """
    path = Path(path)
    check_writable(path, "page")
    text = page(profile, plans, report_figures(profile, plans), read_videos(videos), title)
    write_whole(path, text.encode())
    return path


def write_pngs(
    profile: Profile, folder: str | os.PathLike[str], *, plans: Sequence[CachePlan] = ()
) -> list[Path]:
    """The same figures as PNG files, one per layer, view or branch.

    The folder is made when it is missing. Figures that the profile cannot fill are left out.
    """
    folder = Path(folder)
    check_writable(folder / "figure.png", "PNG files")
    figures = report_figures(profile, plans)
    written = []
    for name, content in (one for figure in figures for one in files_of(figure)):
        path = folder / f"{name}.png"
        write_whole(path, content)
        written.append(path)
    return written

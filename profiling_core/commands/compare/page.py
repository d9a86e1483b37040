"""A comparison as one HTML page that loads nothing and runs nothing, light or dark."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from profiling_core.commands.compare.folder import Folder
from profiling_core.commands.compare.prompts import Pair
from profiling_core.commands.compare.rows import Clip
from profiling_core.commands.compare.summary import Summary
from profiling_core.commands.compare.table import (
    SPREAD,
    TENSORS,
    clip_table,
    meanings,
    paper_table,
    spread_table,
)
from profiling_core.commands.report.document import document, figure_of
from profiling_core.commands.report.drawing import svgs
from profiling_core.commands.report.figures import Points, Scatter
from profiling_core.commands.report.markup import Markup, table, tag, terms

MOST_STRIPS = 24  # clips
MEANS = "Means over clips against the full run; latency and speed-up are medians."
DOTS = (
    "Large: mean PSNR over clips against the median speed-up of the method. Small: its clips. "
    "Right and above is better; the dotted line is the full run."
)


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    settings: Mapping[str, object],
    summary: Summary,
    pairs: Sequence[Pair],
    folder: Folder,
) -> str:
    """The whole HTML document; `folder` holds the strips of the clips."""
    notes = [tag("p", note, class_="absent") for note in summary.notes]
    methods = [tag("p", TENSORS), *notes, _box(paper_table(summary), MEANS, "whole")]
    sections = {"Methods": methods}
    if summary.plans:
        figure = scatter(summary)
        methods.append(figure_of(figure.id, figure.title, svgs(figure), figure.caption))
        sections["Spread over clips"] = [_box(spread_table(summary), f"{SPREAD.capitalize()}.")]
        sections["Frames"] = _frames(summary, pairs, folder)
    sections["Every clip"] = [_box(clip_table(summary), "In the order of the prompts.", "clips")]
    sections["What is measured"] = [terms(meanings(summary), class_="facts")]
    shown = [(name, str(value)) for name, value in settings.items() if value is not None]
    sections["Settings"] = [terms(shown, class_="facts")]
    return document(title, (), facts, sections)


def scatter(summary: Summary) -> Scatter:
    """PSNR against speed-up: a cloud of clips around the mean of every method."""
    sets = []
    for one in summary.plans:
        psnr = tuple(row.psnr_frames for row in one.rows if row.psnr_frames is not None)
        sets.append(Points(one.label, one.speedups, psnr, (one.speedup, mean(psnr))))
    title, axes = "PSNR against speed-up", ("measured speed-up", "PSNR dB")
    return Scatter("fig-psnr", title, *axes, tuple(sets), line_at=1.0, caption=DOTS)


def _frames(summary: Summary, pairs: Sequence[Pair], folder: Folder) -> list[Markup]:
    """Strips of every clip, or of those with the lowest PSNR of any plan where there are many."""
    worst: dict[Clip, float] = {}
    for one in summary.plans:
        for row in one.rows:
            if row.psnr_frames is not None:
                worst[row.clip] = min(worst.get(row.clip, row.psnr_frames), row.psnr_frames)
    known = [pair for pair in pairs if pair.clip in worst]
    shown = sorted(known, key=lambda pair: worst[pair.clip])[:MOST_STRIPS]
    said = "Four frames of every clip, first to last, as small JPEG."
    if len(shown) < len(known):
        said = f"The {len(shown)} of {len(known)} clips with the lowest PSNR. {said}"
    return [tag("p", said), *(_strips(summary, p, folder) for p in known if p in shown)]


def _strips(summary: Summary, pair: Pair, folder: Folder) -> Markup:
    cells: list[Markup] = []
    for one in (summary.full, *summary.plans):
        row = next((row for row in one.rows if row.clip == pair.clip), None)
        if row is None:
            continue
        path = folder.strip(pair, row.plan_sha256)
        if path.is_file():
            psnr = [] if row.psnr_frames is None else [f"{row.psnr_frames:.2f} dB"]
            under = [tag("br"), tag("span", *psnr)] if psnr else []
            cells += [tag("p", one.label, *under), _picture(path, f"{one.label}: {pair.prompt}")]
    words = [pair.prompt, pair.pictures.names, f"seed {pair.seed}"]
    title = tag("h3", " · ".join(filter(None, words)))
    return tag("figure", title, tag("div", *cells, class_="strips"))


def _picture(path: Path, said: str) -> Markup:
    content = base64.b64encode(path.read_bytes()).decode()
    return tag("img", src=f"data:image/jpeg;base64,{content}", alt=said)


def _box(content: tuple[list[str], list[list[str]]], caption: str, class_: str = "") -> Markup:
    """A table that scrolls in a box of its own on a narrow screen."""
    return tag("div", table(caption, *content), class_=f"wide {class_}".strip(), tabindex="0")

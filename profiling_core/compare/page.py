"""A comparison as one HTML page that loads nothing and runs nothing, light or dark."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from profiling_core.compare.folder import Folder
from profiling_core.compare.prompts import Pair
from profiling_core.compare.scatter import scatter
from profiling_core.compare.summary import Summary
from profiling_core.compare.table import clip_table, meanings, paper_table, spread_table
from profiling_core.compare.words import SPREAD, TENSORS
from profiling_core.report.markup import Markup, table, tag, terms

MOST_STRIPS = 24  # clips
COLOURS = {  # light, dark; told apart by their labels, too
    "m0": ("#1f6fb4", "#62a8e5"),
    "m1": ("#c2571a", "#ee9359"),
    "m2": ("#2f7d4f", "#6cc492"),
    "m3": ("#7a4fb0", "#b795e6"),
    "m4": ("#8a6d2f", "#d3ad5c"),
    "m5": ("#b03a5b", "#ee8aa6"),
}
OWN_STYLE = """
.wide.whole { max-height: none; }
.clips tbody th { white-space: normal; min-width: 230px; }
.clips td:nth-child(3) { text-align: left; }
.wide thead th:first-child { text-align: left; }
.plot svg { width: 100%; max-width: 680px; height: auto; }
.plot svg text { font-size: 9px; }
@media (max-width: 560px) { .plot svg text { font-size: 13px; } }
.clip { opacity: 0.35; }
svg .method { stroke: var(--ground); stroke-width: 1.5; }
.strips { display: grid; grid-template-columns: minmax(70px, max-content) 1fr; gap: 6px 14px; }
.strips { margin-top: 10px; }
.strips p { margin: 0; align-self: center; font-size: 12.5px; overflow-wrap: anywhere; }
.strips img { display: block; width: 100%; max-width: 640px; height: auto; border-radius: 3px; }
.strips .figure { color: var(--muted); }
"""
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
    style = Markup(_style())
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    sections = _sections(settings, summary, pairs, folder)
    links = [tag("a", name, href=f"#{_anchor(name)}") for name in sections]
    header = tag(
        "header",
        tag("h1", title),
        terms(facts, class_="summary"),
        tag("nav", *links, aria_label="Sections"),
    )
    body = [tag("section", tag("h2", n), *parts, id=_anchor(n)) for n, parts in sections.items()]
    main = tag("body", header, tag("main", *body))
    return f"<!DOCTYPE html>\n{tag('html', head, main, lang='en')}\n"


def _sections(
    settings: Mapping[str, object], summary: Summary, pairs: Sequence[Pair], folder: Folder
) -> dict[str, list[Markup]]:
    found = {"Methods": _methods(summary)}
    if summary.plans:
        found["Spread over clips"] = [_box(spread_table(summary), f"{SPREAD.capitalize()}.")]
        found["Frames"] = _frames(summary, pairs, folder)
    found["Every clip"] = [_box(clip_table(summary), "In the order of the prompts.", "clips")]
    found["What is measured"] = [terms(meanings(summary), class_="facts")]
    shown = [(name, str(value)) for name, value in settings.items() if value is not None]
    found["Settings"] = [terms(shown, class_="facts")]
    return found


def _methods(summary: Summary) -> list[Markup]:
    notes = [tag("p", note, class_="absent") for note in summary.notes]
    parts = [tag("p", TENSORS), *notes, _box(paper_table(summary), MEANS, "whole")]
    if summary.plans:
        parts.append(
            tag(
                "figure",
                tag("h3", "PSNR against speed-up"),
                tag("div", scatter(summary), class_="chart plot"),
                tag("figcaption", DOTS),
            )
        )
    return parts


def _frames(summary: Summary, pairs: Sequence[Pair], folder: Folder) -> list[Markup]:
    """Strips of every clip, or of those with the lowest PSNR of any plan where there are many."""
    worst: dict[tuple[str, int], float] = {}
    for one in summary.plans:
        for row in one.rows:
            worst[row.clip] = min(worst.get(row.clip, row.psnr_frames), row.psnr_frames)
    known = [pair for pair in pairs if (pair.prompt, pair.seed) in worst]
    shown = sorted(known, key=lambda pair: worst[pair.prompt, pair.seed])[:MOST_STRIPS]
    said = "Four frames of every clip, first to last, as small JPEG."
    if len(shown) < len(known):
        said = f"The {len(shown)} of {len(known)} clips with the lowest PSNR. {said}"
    return [tag("p", said), *(_strips(summary, p, folder) for p in known if p in shown)]


def _strips(summary: Summary, pair: Pair, folder: Folder) -> Markup:
    cells: list[Markup] = []
    for one in (summary.full, *summary.plans):
        row = next((row for row in one.rows if row.clip == (pair.prompt, pair.seed)), None)
        path = folder.strip(pair, row.plan_sha256) if row is not None else None
        if path is not None and path.is_file():
            psnr = [] if row.psnr_frames is None else [f"{row.psnr_frames:.2f} dB"]
            under = [tag("br"), tag("span", *psnr, class_="figure")] if psnr else []
            cells += [tag("p", one.label, *under), _picture(path, f"{one.label}: {pair.prompt}")]
    title = tag("h3", f"{pair.prompt} · seed {pair.seed}")
    return tag("figure", title, tag("div", *cells, class_="strips"))


def _picture(path: Path, said: str) -> Markup:
    content = base64.b64encode(path.read_bytes()).decode()
    return Markup(f'<img src="data:image/jpeg;base64,{content}" alt="{escape(said)}">')


def _box(content: tuple[list[str], list[list[str]]], caption: str, class_: str = "") -> Markup:
    """A table that scrolls in a box of its own on a narrow screen."""
    return tag("div", table(caption, *content), class_=f"wide {class_}".strip(), tabindex="0")


def _style() -> str:
    """The report's own style, and what only this page has."""
    report = files("profiling_core.report").joinpath("assets", "page.css")
    colours = "".join(
        f"svg .{name} {{ fill: light-dark({light}, {dark}); }}\n"
        for name, (light, dark) in COLOURS.items()
    )
    return report.read_text(encoding="utf-8") + OWN_STYLE + colours


def _policy(style: str) -> str:
    """Nothing from the network and no script at all; pictures that the page itself holds."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")

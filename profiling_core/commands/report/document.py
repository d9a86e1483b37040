"""Pages: one HTML document with a head, an answer, sections and figures, light or dark."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files

from profiling_core.commands.report.markup import Markup, tag, terms


def document(
    title: str,
    answer: Sequence[str],
    facts: Sequence[tuple[str, str]],
    sections: Mapping[str, Sequence[Markup]],
    *,
    script: str = "",
    plays_files: bool = False,
) -> str:
    """The whole page; it loads nothing, or with `plays_files` the clips and pictures beside it."""
    style = files(__package__).joinpath("assets", "page.css").read_text("utf-8")
    policy = None if plays_files else _policy(style, script)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        *([tag("meta", http_equiv="Content-Security-Policy", content=policy)] if policy else []),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    links = [tag("a", name, href=f"#{anchor}") for name, anchor in anchors.items()]
    header = tag(
        "header",
        tag("h1", title),
        *(tag("p", line, class_="answer") for line in answer),
        terms(facts, class_="summary"),
        tag("nav", *links, aria_label="Sections"),
    )
    parts = [
        tag("section", tag("h2", name), *content, id=anchors[name])
        for name, content in sections.items()
    ]
    scripts = [tag("script", Markup(script))] if script else []
    body = tag("body", header, tag("main", *parts), *scripts)
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def figure_of(
    id_: str,
    title: str,
    drawn: Sequence[Markup],
    caption: str,
    *,
    before: Sequence[Markup] = (),
    tables: Sequence[Markup] = (),
    after: Sequence[Markup] = (),
) -> Markup:
    """What is drawn under its title, with a caption and the numbers as tables to unfold."""
    boxes = [tag("div", one, class_="wide", tabindex="0") for one in tables]
    details = [tag("details", tag("summary", "Numbers as a table"), *boxes)] if boxes else []
    return tag(
        "figure",
        tag("h3", title),
        *before,
        tag("div", *drawn, class_="chart"),
        tag("figcaption", caption),
        *details,
        *after,
        id=id_,
    )


def _policy(style: str, script: str) -> str:
    """Nothing from the network; only the page's own style, script, pictures and clips."""
    run = f"script-src {_hash(script)}; media-src blob:; " if script else ""
    return (
        f"default-src 'none'; style-src {_hash(style)}; {run}img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

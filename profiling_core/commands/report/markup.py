"""HTML from Python values: all text is escaped, tags are always closed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

EMPTY = frozenset({"meta", "input", "br", "img"})


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: str | Markup, **attributes: str | bool | None) -> Markup:
    """An element; text among its children is escaped, and so are attribute values.

    A trailing underscore of an attribute name is dropped, other underscores become hyphens; True
    is an attribute without a value, None and False leave it out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in EMPTY:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def joined(parts: Iterable[str | Markup]) -> Markup:
    """The parts one after the other, text escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], class_: str | None = None
) -> Markup:
    """A table whose first column names the rows."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    return tag(
        "table", tag("caption", caption), tag("thead", top), tag("tbody", *body), class_=class_
    )


def terms(pairs: Iterable[tuple[str, str]], class_: str | None = None) -> Markup:
    """A list of terms and what they are."""
    return tag(
        "dl",
        *(tag("div", tag("dt", term), tag("dd", text)) for term, text in pairs),
        class_=class_,
    )


def _attribute(key: str, value: str | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(value)}"'

"""An SVG document of matplotlib's as an element of a page: no inline style, ids of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

from profiling_core.commands.report.markup import Markup

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
LEFT_TO_THE_PAGE = ("font-family", "stroke-linejoin", "stroke-linecap", "stroke-miterlimit")
OUT = ("metadata", "style")  # the first names addresses, the second would style the whole page


def inline_svg(text: str, name: str, title: str, variables: Mapping[str, str]) -> Markup:
    """The <svg> element with a title; these colours become variables of the page's style."""
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.removeprefix(SVG) in OUT:
                parent.remove(child)
    used = set(re.findall(r"(?:#|url\(#)([A-Za-z][\w.-]*)\)?", _references(root)))
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        old = dict(element.attrib)
        element.attrib.clear()
        for key, value in _declared(old):
            if key == "id" and value in used:
                element.set("id", f"{name}-{value}")
            elif value.startswith("url(#") or (key == "href" and value.startswith("#")):
                element.set(key, value.replace("#", f"#{name}-", 1))
            elif key not in ("id", *LEFT_TO_THE_PAGE):
                element.set(key, _plain(key, value, variables))
    box = root.get("viewBox")
    root.attrib.clear()
    root.attrib.update({"viewBox": box or "", "role": "img", "aria-label": title})
    heading = ElementTree.Element("title")
    heading.text = title
    root.insert(0, heading)
    return Markup(re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")))


def _references(root: ElementTree.Element) -> str:
    """Everything that may name an id."""
    return " ".join(value for element in root.iter() for value in element.attrib.values())


def _declared(attributes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Attributes, with the declarations of `style` as attributes of their own.

    A page that allows no inline style ignores the attribute `style`, but not these.
    """
    found = []
    for key, value in attributes.items():
        if key != "style":
            found.append((key.removeprefix(XLINK), value))
            continue
        for declaration in value.split(";"):
            if declaration.strip():
                word, _, what = (part.strip() for part in declaration.partition(":"))
                found += _font(what) if word == "font" else [(word, what)]
    return found


def _font(shorthand: str) -> list[tuple[str, str]]:
    size = re.search(r"([\d.]+)px", shorthand)
    return [("font-size", size[1])] if size else []


def _plain(key: str, value: str, variables: Mapping[str, str]) -> str:
    if key in ("fill", "stroke") and value in variables:
        return f"var(--{variables[value]})"
    if key in ("d", "x", "y"):
        return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
    return value

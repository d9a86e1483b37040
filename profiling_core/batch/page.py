"""The index page of a batch: every clip with its thumbnail, playable, beside what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from profiling_core.report.markup import Markup, joined, table, tag, terms

STYLE = """
:root { color-scheme: light dark; --line: #8884; --muted: #7a7a7a; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 24px; max-width: 1240px; }
h1 { font-size: 22px; margin: 0 0 8px; } h2 { font-size: 17px; margin: 28px 0 10px; }
dl.summary { display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 0; }
dl.summary div { display: flex; gap: 8px; } dt { color: var(--muted); } dd { margin: 0; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 18px; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
video { display: block; width: 100%; background: #000; aspect-ratio: 16 / 10; }
figcaption { padding: 8px 12px 10px; overflow-wrap: anywhere; }
figcaption p { margin: 0; } figcaption .facts { color: var(--muted); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
caption { text-align: left; color: var(--muted); padding-bottom: 6px; }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; }
"""


def index_page(rows: Sequence[dict[str, Any]]) -> str:
    """The HTML document; it plays the clips beside it and loads nothing else."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", "Clips"),
        tag("style", Markup(STYLE)),
    )
    done = [row for row in rows if row["state"] == "done"]
    others = [row for row in rows if row["state"] != "done"]
    parts = [tag("h1", "Clips"), terms(_facts(rows), class_="summary")]
    if done:
        parts += [tag("h2", "Clips"), tag("div", *map(_figure, done), class_="clips")]
    if others:
        cells = [[r["name"], r["state"], str(r["attempts"]), r["error"]] for r in others]
        heads = ["clip", "state", "attempts", "last error"]
        parts += [tag("h2", "Not made"), table("Errors in full: failed/", heads, cells)]
    body = tag("body", *parts)
    return joined([Markup("<!doctype html>"), tag("html", head, body, lang="en")])


def _facts(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    states = Counter(row["state"] for row in rows)
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    facts = [(state, str(count)) for state, count in states.items()]
    return [*facts, ("seconds of all clips", f"{seconds:.1f}")]


def _figure(row: dict[str, Any]) -> Markup:
    stem = f"clips/{quote(row['name'])}"
    video = tag(
        "video", src=f"{stem}.mp4", poster=f"{stem}.jpg", controls=True, loop=True, preload="none"
    )
    share = row["block_runs"] / max(1, row["block_runs_full"])
    facts = [f"{row['tree']}, seed {row['seed']}", f"plan {row['plan']}"]
    facts += [f"{row['denoise_seconds']:.2f} s", f"{100 * share:.0f} % of the blocks"]
    if "psnr" in row:
        facts.append(f"PSNR {row['psnr']:.1f} dB")
    caption = tag("p", row["prompt"]), tag("p", " · ".join(facts), class_="facts")
    return tag("figure", video, tag("figcaption", *caption))

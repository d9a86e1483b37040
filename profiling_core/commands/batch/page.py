"""The index page of a batch: every clip with its thumbnail, playable, beside what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from profiling_core.commands.batch.clips import FULL
from profiling_core.commands.report.document import document
from profiling_core.commands.report.markup import Markup, table, tag


def index_page(rows: Sequence[dict[str, Any]]) -> str:
    """The HTML document; it plays the clips beside it and loads nothing else."""
    done = [row for row in rows if row["state"] == "done"]
    others = [row for row in rows if row["state"] != "done"]
    sections = {}
    if done:
        sections["Made"] = [tag("div", *map(_figure, done), class_="made")]
    if others:
        cells = [[r["name"], r["state"], str(r["attempts"]), r["error"]] for r in others]
        heads = ["clip", "state", "attempts", "last error"]
        content = table("Errors in full: failed/", heads, cells)
        sections["Not made"] = [tag("div", content, class_="wide runs", tabindex="0")]
    return document("Clips", (), _facts(rows), sections, plays_files=True)


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
    blocks = row["block_runs_full"] / max(1, row["block_runs"])
    facts = [f"{row['tree']}, seed {row['seed']}", f"plan {row['plan']}"]
    facts[:0] = filter(None, [row.get("pictures")])
    facts.append(f"{row['denoise_seconds']:.2f} s")
    if row["plan"] != FULL:
        measured = f"{row['speedup']:.2f}x as fast, " if "speedup" in row else ""
        facts.append(f"{measured}{blocks:.2f}x by its blocks")
        psnr = f"{row['psnr']:.1f} dB" if "psnr" in row else "unknown without a full run"
        facts.append(f"PSNR {psnr}")
    caption = tag("b", row["prompt"]), tag("p", " · ".join(facts))
    return tag("figure", video, tag("figcaption", *caption))

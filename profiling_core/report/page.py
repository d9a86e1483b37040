"""The page: figures, tables, facts and scripts in one HTML document that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from profiling_core.models import consecutive
from profiling_core.profile import Profile, ProfileError
from profiling_core.profile_summary import settings_lines
from profiling_core.report.attention import parted_by
from profiling_core.report.data import page_json
from profiling_core.report.figures import Absent, Figure
from profiling_core.report.markup import Markup, table, tag, terms
from profiling_core.report.tables import number, tables_of
from profiling_core.report.videos import Video

SCRIPTS = ("base.js", "scales.js", "pointing.js", "heat.js", "curves.js", "maps.js", "video.js")
SCRIPTS += ("start.js",)
SECTIONS = (  # heading, how the ids of its figures begin
    ("Attention", ("fig-attention", "fig-maps")),
    ("Change over the steps", ("fig-l1", "fig-direction", "fig-drift")),
    ("Cost of reuse", ("fig-hold", "fig-sensitivity", "fig-cost")),
    ("Plans", ("fig-plan",)),
)


def page(
    profile: Profile, figures: Sequence[Figure], videos: Sequence[Video], title: str | None
) -> str:
    """The whole HTML document."""
    title = title or f"Profile of {profile.recorded.model.name}"
    style = Markup(_asset("page.css"))
    script = Markup("\n".join(_asset(name) for name in SCRIPTS))
    data = Markup(page_json(figures, videos))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    body = tag(
        "body",
        _header(profile, title),
        tag("main", *_sections(figures, videos), _recorded(profile)),
        tag("div", id="tip", role="status", aria_live="polite", hidden=True),
        tag("script", data, id="data", type="application/json"),
        *(
            tag("script", Markup(video.base64), id=f"video-{n}", type="text/plain")
            for n, video in enumerate(videos)
        ),
        tag("script", script),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return files("profiling_core.report").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing from the network; only the page's own style and script run."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "media-src blob:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _header(profile: Profile, title: str) -> Markup:
    links = [*(heading for heading, _ in SECTIONS), "Recorded"]
    return tag(
        "header",
        tag(
            "div",
            tag("h1", title),
            tag("button", "Dark", id="theme", type="button", hidden=True),
            class_="top",
        ),
        terms(_summary(profile), class_="summary"),
        tag(
            "nav",
            *(tag("a", heading, href=f"#{_anchor(heading)}") for heading in links),
            aria_label="Sections",
        ),
        tag(
            "noscript",
            tag("p", "The figures are drawn by a script; the tables below hold their numbers."),
        ),
    )


def _summary(profile: Profile) -> list[tuple[str, str]]:
    subject, runs = profile.recorded, profile.runs
    lists = ", ".join(f"{count} {name}" for name, count in subject.model.block_lists.items())
    parted = parted_by(profile, "share") if profile.has_attention else None
    facts = [
        ("Model", subject.model.name),
        ("Blocks", f"{lists}, width {subject.model.width}"),
        ("Runs", f"{len(runs)} of {subject.steps} steps, {subject.solver}"),
        ("Branches", ", ".join(subject.branches)),
    ]
    if parted is None:
        facts.append(("Foreground and background", "no attention was recorded"))
    elif isinstance(parted, ProfileError):
        facts.append(("Foreground and background", str(parted)))
    else:
        for side, blocks in (("F", parted.foreground), ("B", parted.background)):
            facts.append((_SIDES[side], "; ".join(_runs(name, blocks[name]) for name in blocks)))
    return facts


_SIDES = {"F": "F, foreground blocks", "B": "B, background blocks"}


def _runs(name: str, blocks: tuple[int, ...]) -> str:
    runs = ", ".join(f"{a}–{b}" if b > a else f"{a}" for a, b in consecutive(blocks))
    return f"{name} {runs or 'none'}"


def _sections(figures: Sequence[Figure], videos: Sequence[Video]) -> list[Markup]:
    found = []
    for heading, ids in SECTIONS:
        own = [_figure(figure) for figure in figures if figure.id.startswith(ids)]
        if heading == "Plans":
            own = own or [tag("p", "No plan was given (--plan).", class_="absent")]
            own += [_videos(videos)] if videos else []
        found.append(_section(heading, own))
    return found


def _section(heading: str, content: Sequence[Markup]) -> Markup:
    return tag("section", tag("h2", heading), *content, id=_anchor(heading))


def _figure(figure: Figure) -> Markup:
    if isinstance(figure, Absent):
        return tag(
            "figure",
            tag("h3", figure.title),
            tag("p", f"Not shown: {figure.reason}.", class_="absent"),
            id=figure.id,
        )
    facts = getattr(figure, "facts", ())
    return tag(
        "figure",
        tag("h3", figure.title),
        *([terms(facts, class_="facts")] if facts else []),
        tag("div", class_="controls"),
        tag("div", class_="chart"),
        tag("figcaption", figure.caption),
        _details(tables_of(figure)),
        id=figure.id,
    )


def _details(tables: Sequence[Markup]) -> Markup:
    boxes = [tag("div", one, class_="wide", tabindex="0") for one in tables]
    return tag("details", tag("summary", "Numbers as a table"), *boxes)


def _videos(videos: Sequence[Video]) -> Markup:
    rows = [
        [v.name, v.mime, str(v.frames), f"{v.fps:g}", f"{v.frames / v.fps:.2f}"] for v in videos
    ]
    caption = (
        "Left of the line the first video, right of it the other, at the same time. Drag the line, "
        "or use the sliders."
        if len(videos) > 1
        else "One video was given; with a second one a line parts the two."
    )
    return tag(
        "figure",
        tag("h3", "Full and cached, frame by frame"),
        tag("div", class_="controls"),
        tag("div", class_="chart"),
        tag("figcaption", caption),
        _details([table("Videos", ["video", "type", "frames", "fps", "seconds"], rows)]),
        id="fig-videos",
    )


def _recorded(profile: Profile) -> Markup:
    return _section(
        "Recorded",
        [
            tag("div", _run_table(profile), class_="wide runs", tabindex="0"),
            tag("h3", "Subject"),
            terms(_subject(profile), class_="facts"),
            tag("h3", "Settings"),
            tag("ul", *(tag("li", line.strip()) for line in settings_lines(profile.settings)[1:])),
            tag("p", f"Profile sha256 {profile.sha256()}", class_="hash"),
        ],
    )


RUN_HEAD = ("run", "prompt", "seed", "guidance", "foreground", "attention", "seconds")
RUN_HEAD += ("s a call", "device", "dtype", "torch", "made by")


def _run_table(profile: Profile) -> Markup:
    rows = []
    for n, run in enumerate(profile.runs, start=1):
        share = "–" if run.foreground is None else f"{run.foreground:.1%}"
        rows.append(
            [
                str(n),
                run.prompt,
                _maybe(run.seed),
                _maybe(run.guidance),
                share,
                _measured(run.attention_rows, run.attention_error),
                f"{run.seconds:.1f}",
                _maybe(run.model_seconds),
                run.device,
                run.dtype,
                run.torch,
                run.made_by,
            ]
        )
    return table("Runs", RUN_HEAD, rows)


def _maybe(value: float | int | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else number(value)


def _measured(rows: int | None, error: float | None) -> str:
    if rows is None:
        return "all queries"
    return f"{rows} sampled rows" + ("" if error is None else f", ±{error:.1%}")


def _subject(profile: Profile) -> list[tuple[str, str]]:
    subject = profile.recorded
    return [
        ("Family", subject.model.family),
        ("Solver", f"{subject.solver}, shift {subject.shift:g}"),
        ("Noise levels", f"sigma {subject.sigmas[0]:.4f} to {subject.sigmas[-1]:.4f}"),
        ("Latent", " x ".join(map(str, subject.latent))),
        ("Tokens", " x ".join(map(str, subject.grid)) + " (frames, rows, columns)"),
        ("Attention steps", ", ".join(map(str, subject.attention_steps)) or "none"),
        ("Map steps", ", ".join(map(str, subject.map_steps)) or "none"),
    ]


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")

"""The report as a page: answer, figures with their tables, videos, and what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from profiling_core.commands.report.attention import parted_by
from profiling_core.commands.report.document import document, figure_of
from profiling_core.commands.report.drawing import svgs
from profiling_core.commands.report.figures import Absent, Figure, HeatMap
from profiling_core.commands.report.markup import Markup, table, tag, terms
from profiling_core.commands.report.plan_picture import answer
from profiling_core.commands.report.tables import number, tables_of
from profiling_core.commands.report.videos import Video
from profiling_core.errors import ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import consecutive
from profiling_core.profile.profile import Profile
from profiling_core.profile.summary import settings_lines

SECTIONS = (  # heading, how the ids of its figures begin
    ("Plans", ("fig-plan",)),
    ("Attention", ("fig-attention", "fig-maps")),
    ("Change over the steps", ("fig-l1", "fig-direction", "fig-drift")),
    ("Cost of reuse", ("fig-hold", "fig-sensitivity", "fig-cost")),
)


def page(
    profile: Profile,
    plans: Sequence[CachePlan],
    figures: Sequence[Figure],
    videos: Sequence[Video],
    title: str | None,
) -> str:
    """The whole HTML document."""
    script = files(__package__).joinpath("assets", "video.js").read_text("utf-8")
    return document(
        title or f"Profile of {profile.recorded.model.name}",
        [f"{plan.name}: {answer(profile, plan)}" for plan in plans],
        _summary(profile),
        {**_sections(figures, videos), "Recorded": _recorded(profile)},
        script=script if videos else "",
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


def _sections(figures: Sequence[Figure], videos: Sequence[Video]) -> dict[str, list[Markup]]:
    found = {}
    for heading, ids in SECTIONS:
        found[heading] = [_figure(figure) for figure in figures if figure.id.startswith(ids)]
    found["Plans"] = found["Plans"] or [tag("p", "No plan was given (--plan).", class_="absent")]
    found["Plans"] += [_videos(videos)] if videos else []
    return found


def _figure(figure: Figure) -> Markup:
    if isinstance(figure, Absent):
        reason = tag("p", f"Not shown: {figure.reason}.", class_="absent")
        return tag("figure", tag("h3", figure.title), reason, id=figure.id)
    notes = [one.note for one in figure.layers if one.note] if isinstance(figure, HeatMap) else []
    facts = getattr(figure, "facts", ())
    return figure_of(
        figure.id,
        figure.title,
        svgs(figure),
        " ".join([figure.caption, *notes]),
        before=[terms(facts, class_="facts")] if facts else [],
        tables=tables_of(figure),
    )


def _videos(videos: Sequence[Video]) -> Markup:
    """Players without a source: the page's script hands each the content that lies beside it."""
    rows = [
        [v.name, v.mime, str(v.frames), f"{v.fps:g}", f"{v.frames / v.fps:.2f}"] for v in videos
    ]
    players = [
        tag(
            "video",
            aria_label=v.name,
            playsinline=True,
            muted=True,
            data_frames=str(v.frames),
            data_fps=repr(v.fps),
            data_mime=v.mime,
        )
        for v in videos
    ]
    content = [tag("script", Markup(v.base64), type="text/plain", class_="clip") for v in videos]
    longest = max(videos, key=lambda v: v.frames / v.fps)
    controls = [
        tag("button", "Play", type="button"),
        _slider("Frame", "frame", longest.frames - 1, 0),
    ]
    marks = []
    caption = "One video was given; with a second one a line parts the two."
    if len(videos) > 1:
        controls.append(_slider("Line", "line", 100, 50))
        marks = [tag("div", class_="cut")]
        marks += [tag("div", class_=f"name {side}") for side in ("left", "right")]
        caption = (
            "Left of the line the first video, right of it the other, at the same time. Drag the "
            "line, or use the sliders."
        )
    if len(videos) > 2:
        controls += [_choice(side, n, videos) for n, side in enumerate(("Left", "Right"))]
    return figure_of(
        "fig-videos",
        "Full and cached, frame by frame",
        [tag("div", *players, *marks, class_="stage"), tag("div", *controls, class_="controls")],
        caption,
        tables=[table("Videos", ["video", "type", "frames", "fps", "seconds"], rows)],
        after=content,
    )


def _slider(label: str, name: str, most: int, value: int) -> Markup:
    field = {"type": "range", "name": name, "min": "0", "max": str(most), "value": str(value)}
    return tag("label", label, tag("input", **field), tag("output", str(value)), class_="field")


def _choice(label: str, chosen: int, videos: Sequence[Video]) -> Markup:
    options = [
        tag("option", video.name, value=str(n), selected=n == chosen)
        for n, video in enumerate(videos)
    ]
    return tag("label", label, tag("select", *options), class_="field")


def _recorded(profile: Profile) -> list[Markup]:
    return [
        tag("div", _run_table(profile), class_="wide runs", tabindex="0"),
        tag("h3", "Subject"),
        terms(_subject(profile), class_="facts"),
        tag("h3", "Settings"),
        tag("ul", *(tag("li", line.strip()) for line in settings_lines(profile.settings)[1:])),
        tag("p", f"Profile sha256 {profile.sha256()}", class_="hash"),
    ]


RUN_HEAD = (
    *("run", "prompt", "seed", "guidance", "foreground", "attention", "seconds"),
    *("s a call", "device", "dtype", "torch", "made by"),
)


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

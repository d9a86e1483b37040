"""What the page shows of a run, as HTML."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

from profiling_core.commands.app.worker import At, Event, Finished, Planned
from profiling_core.commands.batch.clips import FULL
from profiling_core.commands.report.markup import Markup, table, tag
from profiling_core.plan.describe import format_bytes

PARTS = {
    "checking": "checking what was asked for",
    "loading": "loading the weights",
    "encoding": "encoding the prompt",
    "decoding": "decoding and saving",
}


def message(text: str, kind: str = "note", progress: tuple[int, int] | None = None) -> Markup:
    """The line above the clips. kind: note, error or done; progress: steps done, and all."""
    bar = ""
    if progress is not None:
        done, total = map(str, progress)
        bar = tag("progress", value=done, max=total)
    role = "alert" if kind == "error" else "status"
    return tag("div", tag("p", text), bar, class_=f"message {kind}", role=role)


def waiting(ahead: int) -> Markup:
    others = "one run is" if ahead == 1 else f"{ahead} runs are"
    return message(f"Waiting: {others} before yours.")


@dataclass
class Shown:
    """A run as far as it has come."""

    line: Markup = field(default_factory=lambda: message("Starting."))  # above the clips
    planned: Planned | None = None
    clips: dict[str, Finished] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """An event, the next one."""
        if isinstance(event, At):
            progress = (event.done, event.total) if event.part == "sampling" else None
            self.line = message(_where(event), progress=progress)
        elif isinstance(event, Planned):
            self.planned = event
        elif isinstance(event, Finished):
            self.clips[event.label] = event
        elif event.error is not None:
            self.line = message(event.error, "error")
        else:
            self.line = message("Cancelled.") if event.cancelled else message("Done.", "done")

    def html(self) -> Markup:
        """The clips, what they took, and the plan."""
        if not self.clips and self.planned is None:
            return Markup("")
        parts = []
        if self.clips:
            parts += [tag("div", *map(_figure, self.clips.values()), class_="clips"), self._facts()]
        if self.planned is not None:
            ideal = f"{self.planned.ideal:.2f}x as fast by block FLOPs"
            caption = tag("figcaption", f"The plan's steps: {ideal}")
            parts.append(tag("figure", *self.planned.picture, caption, class_="plan"))
        return tag("div", *parts, class_="run")

    def _facts(self) -> Markup:
        full = self.clips.get(FULL)
        rows = []
        for label, one in self.clips.items():
            faster = ""
            if full is not None and one is not full:
                faster = f"{full.made.denoise_seconds / one.made.denoise_seconds:.2f}x"
            decibels = full.psnr if full is not None and one is not full else None
            rows.append(
                (
                    label,
                    f"{one.made.denoise_seconds:.2f} s",
                    faster or "-",
                    "-" if decibels is None else f"{decibels:.1f} dB",
                    f"{one.made.block_runs} of {one.made.block_runs_full}",
                    format_bytes(one.made.bytes_held),
                )
            )
        heads = ("run", "denoising", "speed-up", "PSNR", "block runs", "memory of the plan")
        first = next(iter(self.clips.values()))
        return tag("div", table(first.made.describe, heads, rows), class_="facts")


def _figure(one: Finished) -> Markup:
    address = f"gradio_api/file={quote(str(one.path.absolute()))}"
    video = tag(
        "video",
        src=address,
        controls=True,
        autoplay=True,
        loop=True,
        muted=True,
        playsinline=True,
    )
    caption = tag("b", _name(one.label)), f" · {one.made.seconds:.1f} s in all"
    link = tag("a", one.path.name, href=address, download=one.path.name)
    return tag("figure", video, tag("figcaption", *caption, link))


def _where(at: At) -> str:
    part = PARTS.get(at.part, f"step {at.done} of {at.total}")
    return f"{_name(at.label)}: {part}" if at.label else part


def _name(label: str) -> str:
    return "full run" if label == FULL else f"plan {label}"


def help_text() -> Markup:
    """Before the first run."""
    return message("Press Generate. The clip and what it took appear here.")

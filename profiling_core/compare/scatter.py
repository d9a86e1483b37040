"""PSNR against speed-up as a picture: a small dot a clip, a large one a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from statistics import mean

from profiling_core.compare.summary import Summary
from profiling_core.report.markup import Markup, tag

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 16, 44
COLOURS = 6  # classes m0 to m5 of the page
LINE, WIDE_LETTER = 14, 7.5  # pixels between two labels, and of a letter at most


@dataclass(frozen=True)
class Scale:
    """Values from low to high on pixels from start to end."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """Round values in the range: steps of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 6
        power = 10 ** floor(log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [round(number * step, 10) for number in range(first, last + 1)]


def scatter(summary: Summary) -> Markup:
    """The picture as inline SVG, and nothing to load."""
    points = [
        [(speed, row.psnr_frames) for speed, row in zip(one.speedups, one.rows, strict=True)]
        for one in summary.plans
    ]
    x = _scale([speed for one in points for speed, _ in one] + [1.0], LEFT, WIDTH - RIGHT)
    y = _scale([psnr for one in points for _, psnr in one], HEIGHT - BOTTOM, TOP)
    means = [
        (x.at(one.speedup), y.at(mean(psnr for _, psnr in own)))
        for one, own in zip(summary.plans, points, strict=True)
    ]
    dots = [
        tag("circle", cx=str(x.at(speed)), cy=str(y.at(psnr)), r="3", class_=f"clip m{n % COLOURS}")
        for n, own in enumerate(points)
        for speed, psnr in own
    ]
    parts = [*_axes(x, y), *dots, *_marks(means), *_labels([m.label for m in summary.plans], means)]
    names = ", ".join(
        f"{one.label} {mean(p for _, p in own):.2f} dB at {one.speedup:.2f}x"
        for one, own in zip(summary.plans, points, strict=True)
    )
    size = {"width": str(WIDTH), "height": str(HEIGHT), "viewBox": f"0 0 {WIDTH} {HEIGHT}"}
    return tag("svg", tag("title", f"PSNR against speed-up: {names}"), *parts, role="img", **size)


def _scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A tenth of room on either side; one value alone stands in the middle."""
    low, high = min(values), max(values)
    room = (high - low) * 0.1 or max(abs(high) * 0.1, 0.1)
    return Scale(low - room, high + room, start, end)


def _axes(x: Scale, y: Scale) -> list[Markup]:
    """Grid lines with their values, the names of the axes, and the full run's time as a line."""
    bottom, found = HEIGHT - BOTTOM, []
    for value in x.ticks():
        at = str(x.at(value))
        found.append(tag("line", x1=at, x2=at, y1=str(TOP), y2=str(bottom), class_="grid"))
        text = {"x": at, "y": str(bottom + 16), "text_anchor": "middle"}
        found.append(tag("text", f"{value:g}x", **text))
    for value in y.ticks():
        at = y.at(value)
        sides = {"x1": str(LEFT), "x2": str(WIDTH - RIGHT), "y1": str(at), "y2": str(at)}
        found.append(tag("line", **sides, class_="grid"))
        text = {"x": str(LEFT - 8), "y": str(at + 4), "text_anchor": "end"}
        found.append(tag("text", f"{value:g}", **text))
    one = str(x.at(1.0))
    found.append(tag("line", x1=one, x2=one, y1=str(TOP), y2=str(bottom), class_="tau"))
    found.append(tag("text", "full", x=str(x.at(1.0) + 5), y=str(TOP + 10)))
    middle = str((LEFT + WIDTH - RIGHT) // 2)
    found.append(tag("text", "speed-up", x=middle, y=str(HEIGHT - 6), text_anchor="middle"))
    turned = f"translate(12 {(TOP + bottom) // 2}) rotate(-90)"
    return [*found, tag("text", "PSNR dB", transform=turned, text_anchor="middle")]


def _marks(means: Sequence[tuple[float, float]]) -> list[Markup]:
    return [
        tag("circle", cx=str(x), cy=str(y), r="7", class_=f"method m{n % COLOURS}")
        for n, (x, y) in enumerate(means)
    ]


def _labels(labels: Sequence[str], means: Sequence[tuple[float, float]]) -> list[Markup]:
    """Names beside the large dots, moved apart where they would touch."""
    found, taken = [], []
    for label, (x, y) in sorted(zip(labels, means, strict=True), key=lambda one: one[1][1]):
        to_the_left = x > WIDTH * 0.7
        width = WIDE_LETTER * len(label)
        span = (x - 12 - width, x - 12) if to_the_left else (x + 12, x + 12 + width)
        while any(abs(y - other) < LINE and span[0] < b and a < span[1] for other, a, b in taken):
            y += 1
        taken.append((y, *span))
        place = {"x": str(x - 12 if to_the_left else x + 12), "y": str(y + 4)}
        anchor = "end" if to_the_left else "start"
        found.append(tag("text", label, **place, text_anchor=anchor, class_="strong"))
    return found

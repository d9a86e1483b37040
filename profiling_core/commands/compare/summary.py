"""What the rows of a comparison say: per method mean, standard deviation, worst, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, pstdev

from profiling_core.commands.compare.methods import Method
from profiling_core.commands.compare.prompts import Pair
from profiling_core.commands.compare.rows import FULL, Row, Rows


@dataclass(frozen=True)
class Metric:
    """A column: its field in the rows, its title, its digits, and what is good."""

    field: str
    title: str
    digits: int
    good: str  # "high", "low", or "one": as in the full run

    @property
    def heading(self) -> str:
        return f"{self.title} {({'high': '↑', 'low': '↓', 'one': '→ 1'})[self.good]}"

    def worst(self, values: Sequence[float]) -> float:
        if self.good == "one":
            return max(values, key=lambda value: abs(value - 1))
        return min(values) if self.good == "high" else max(values)

    def show(self, value: float | None) -> str:
        return "–" if value is None else f"{value:.{self.digits}f}"


METRICS = (
    Metric("psnr_frames", "PSNR dB", 2, "high"),
    Metric("psnr_pooled", "PSNR pooled dB", 2, "high"),
    Metric("ssim", "SSIM", 4, "high"),
    Metric("lpips", "LPIPS", 4, "low"),
    Metric("latent_error", "latent error", 4, "low"),
    Metric("motion", "motion", 3, "one"),
    Metric("flicker", "flicker", 3, "one"),
)
IN_THE_PAPERS_TABLE = ("psnr_frames", "ssim", "lpips")


@dataclass(frozen=True)
class Spread:
    """One metric over clips; the deviation is that of these clips (divided by n)."""

    mean: float
    deviation: float
    worst: float
    count: int


@dataclass(frozen=True)
class Measured:
    """One method: its rows in the order of the clips, and its speed-up of each."""

    label: str
    rows: tuple[Row, ...]
    speedups: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return median(row.seconds for row in self.rows)

    @property
    def speedup(self) -> float:
        return median(self.speedups)

    @property
    def ideal(self) -> float:
        return self.rows[0].ideal

    @property
    def bytes_held(self) -> int:
        return max(row.bytes_held for row in self.rows)

    def spread(self, metric: Metric) -> Spread | None:
        """None when no row has the metric."""
        values = [v for row in self.rows if (v := getattr(row, metric.field)) is not None]
        if not values:
            return None
        return Spread(mean(values), pstdev(values), metric.worst(values), len(values))


@dataclass(frozen=True)
class Summary:
    """The full runs and every plan that has any run; `asked`: clips that there will be."""

    full: Measured
    plans: tuple[Measured, ...]
    asked: int
    notes: tuple[str, ...]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The columns that any row fills."""
        return tuple(m for m in METRICS if any(plan.spread(m) for plan in self.plans))


def summarise(rows: Rows, pairs: Sequence[Pair], methods: Sequence[Method]) -> Summary | None:
    """What is known of these clips and plans; None before the first full run."""
    full = _measured(rows, pairs, FULL, None)
    if full is None:
        return None
    found = (_measured(rows, pairs, m.label, m.sha256) for m in methods)
    plans = tuple(measured for measured in found if measured is not None)
    return Summary(full, plans, len(pairs), tuple(_notes(rows, full, plans, len(pairs))))


def speedup_of(row: Row, rows: Rows) -> float:
    """Seconds of a full run of the same session over the row's.

    That of the same clip where there is one, else the median of the session's full runs: clips of
    one comparison differ in prompt, picture and seed alone, which hardly matter for time.
    """
    full = rows.full_runs(row.session)
    own = [r.seconds for r in full if r.clip == row.clip]
    return (own[-1] if own else median(r.seconds for r in full)) / row.seconds


def _measured(rows: Rows, pairs: Sequence[Pair], label: str, sha256: str | None) -> Measured | None:
    latest = (rows.latest(pair.clip, sha256) for pair in pairs)
    found = tuple(row for row in latest if row is not None)
    if not found:
        return None
    speedups = tuple(1.0 if sha256 is None else speedup_of(row, rows) for row in found)
    return Measured(label, found, speedups)


def _notes(rows: Rows, full: Measured, plans: tuple[Measured, ...], asked: int) -> list[str]:
    """What a reader has to know beside the figures."""
    notes = []
    lacking = [f"{m.label} {len(m.rows)}" for m in (full, *plans) if len(m.rows) < asked]
    if lacking:
        notes.append(
            f"Not complete: of {asked} clips there are so far {', '.join(lacking)}. Rows over "
            "different clips are not to be compared."
        )
    sessions = {row.session for m in (full, *plans) for row in m.rows}
    if len(sessions) > 1:
        notes.append(
            f"Measured in {len(sessions)} sessions; every speed-up is a ratio inside one session."
        )
    changed = [r.repeat_error for r in rows.all if r.again and r.repeat_error]
    if changed:
        notes.append(
            "A full run that was taken again in a later session differs from the kept one by a "
            f"latent error of up to {max(changed):.2g}: that much of later rows is not the plan's."
        )
    return notes

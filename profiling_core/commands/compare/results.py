"""The results of a comparison: table.md and report.html, and what the command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from profiling_core.commands.compare.page import page
from profiling_core.commands.compare.rows import FULL
from profiling_core.commands.compare.summary import Summary, summarise
from profiling_core.commands.compare.table import markdown, paper_table

if TYPE_CHECKING:
    from profiling_core.commands.compare.runs import Comparison


def write_results(work: Comparison, settings: dict[str, Any]) -> None:
    """Both files from the rows that there are; nothing before the first full run."""
    summary = summary_of(work)
    if summary is None:
        return
    title = f"Full and cached: {work.model.plan_model}"
    facts = facts_of(work, summary)
    subject = [f"{name}: {text}" for name, text in facts]
    work.folder.write("table.md", markdown(title, subject, summary))
    work.folder.write("report.html", page(title, facts, settings, summary, work.pairs, work.folder))
    if work.exports is not None:
        work.exports.write_prompts(work.pairs)


def summary_of(work: Comparison) -> Summary | None:
    return summarise(work.folder.rows, work.pairs, work.methods)


def facts_of(work: Comparison, summary: Summary) -> list[tuple[str, str]]:
    """What was run, how often and where."""
    prompts = len({pair.prompt_number for pair in work.pairs})
    seeds = len({pair.seed for pair in work.pairs})
    rows = [row for one in (summary.full, *summary.plans) for row in one.rows]
    days = sorted({row.utc[:10] for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return [
        ("Model", work.model.describe()),
        ("Clips", f"{len(work.pairs)} (prompts: {prompts}, seeds: {seeds})"),
        ("Device", ", ".join(sorted({row.device for row in rows}))),
        ("Made", f"{when}, torch {', '.join(sorted({row.torch for row in rows}))}"),
    ]


def closing_lines(work: Comparison) -> list[str]:
    """The paper's table as plain text, the files, and the commands for the official tools."""
    summary = summary_of(work)
    if summary is None:
        return ["no run is done"]
    lines = [*_columns(*paper_table(summary)), "", *summary.notes]
    path = work.folder.path
    lines.append(f"wrote {path / 'table.md'} and {path / 'report.html'}: open it in a browser")
    if work.exports is not None:
        labels = [FULL, *(method.label for method in work.methods)]
        lines += ["", "VBench and FID, in an environment of their own:"]
        lines += work.exports.commands(labels)
    return lines


def _columns(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, ["-" * width for width in widths], *rows]
    ]

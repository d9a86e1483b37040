"""What `compare` reads and sums up: prompts, seeds, rows, names and the figure; no model."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from profiling_core.commands.compare.exports import file_names
from profiling_core.commands.compare.page import scatter
from profiling_core.commands.compare.prompts import Prompt, pairs_of, read_prompts, read_seeds
from profiling_core.commands.compare.rows import Row, Rows
from profiling_core.commands.compare.summary import METRICS, summarise


def row(prompt: str, method: str, session: str, seconds: float, **more) -> Row:
    cost = {"block_runs": 1, "block_runs_full": 2, "solver_steps": 1, "model_calls": 1}
    made = {"device": "a", "torch": "b", "made_by": "c", "utc": "2026-01-01T00:00:00Z"}
    sha = None if method == "full" else method * 2
    fixed = {"seed": 0, "encode_seconds": 0.0, "decode_seconds": 0.0, "ideal": 2.0}
    fixed |= {"reused_calls": 0, "bytes_held": 0, "plan_sha256": sha, **cost, **made}
    return Row(prompt=prompt, method=method, session=session, seconds=seconds, **{**fixed, **more})


def summary_of(folder: Path, *rows: Row):
    known = Rows(folder / "rows.jsonl")
    for one in rows:
        known.append(one)
    plan = SimpleNamespace(label="paper", sha256="paper" * 2)
    return summarise(
        Rows(known.path), pairs_of([Prompt(prompt=one) for one in ("red", "green")], [0]), [plan]
    )


def test_speedups_are_ratios_inside_a_session(tmp_path):
    found = summary_of(
        tmp_path,
        row("red", "full", "one", 10.0),
        row("red", "paper", "one", 5.0, psnr_frames=20.0, motion=0.9),
        row("green", "full", "one", 20.0),
        row("red", "full", "two", 30.0, again=True, repeat_error=0.25),
        row("green", "paper", "two", 10.0, psnr_frames=40.0, motion=1.2),
    )
    (paper,) = found.plans
    assert paper.speedups == (2.0, 3.0)  # 10 / 5 of one clip; 30 / 10: the second session's run
    assert paper.speedup == 2.5 and found.full.seconds == 15.0 and paper.seconds == 7.5
    psnr = paper.spread(METRICS[0])
    assert (psnr.mean, psnr.deviation, psnr.worst, psnr.count) == (30.0, 10.0, 20.0, 2)
    motion = next(m for m in METRICS if m.field == "motion")
    assert paper.spread(motion).worst == 1.2  # the farthest from 1
    assert [m.field for m in found.metrics] == ["psnr_frames", "motion"]
    assert "latent error of up to 0.25" in " ".join(found.notes)


def test_a_row_whose_session_lost_its_full_runs_does_not_count(tmp_path):
    paper = row("red", "paper", "gone", 5.0, psnr_frames=20.0)
    found = summary_of(tmp_path, paper, row("red", "full", "new", 10.0))
    assert found.plans == () and len(found.full.rows) == 1
    assert found.notes == (
        "Not complete: of 2 clips there are so far full 1. Rows over different clips are not to "
        "be compared.",
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "rows.jsonl").touch()
    assert summary_of(tmp_path / "empty") is None


def test_prompts_are_lines_of_any_script_and_line_end(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# note\r\n  两只猫  \r\n\r\nred #1\r\n".encode())
    assert [one.prompt for one in read_prompts(path).values()] == ["两只猫", "red #1"]


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("7,8,9", [7, 8, 9]), ("42,", [42]), ("0,", [0])]
)
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert read_seeds(text) == seeds


def test_file_names_are_safe_short_and_different():
    names = file_names(["a/b: c?", "A b c", "...", "猫" * 100, "猫" * 99, "tab\tand | pipe."])
    assert names[:3] == ["a b c", "A b c (2)", "prompt"]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(len(name.encode()) <= 200 for name in names)
    assert names[5] == "tab and pipe."


def test_the_figure_has_a_cloud_a_method_around_its_mean(tmp_path):
    found = summary_of(
        tmp_path,
        row("red", "full", "one", 10.0),
        row("red", "paper", "one", 5.0, psnr_frames=20.0),
        row("green", "full", "one", 20.0),
        row("green", "paper", "one", 5.0, psnr_frames=40.0),
    )
    figure = scatter(found)
    (paper,) = figure.sets
    assert (paper.name, paper.x, paper.y) == ("paper", (2.0, 4.0), (20.0, 40.0))
    assert paper.middle == (3.0, 30.0) and figure.line_at == 1.0

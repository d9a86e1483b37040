"""`plan --speedup ...` and its frontier, on the command line."""

from __future__ import annotations

import errno
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest

from made_profiles import made_profile
from profiling_core.commands import plan as plan_module
from profiling_core.commands.arguments import bytes_of
from profiling_core.commands.main import main
from profiling_core.commands.report.frontier import frontier_lines
from profiling_core.plan import CachePlan
from profiling_core.profile.profile import Profile
from profiling_core.search.search import LESS, Budget, PlanSearch, Point, undominated
from tree_paths import ROOT


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiles") / "wan.profile"
    made_profile(runs=2, steps=20).save(path)
    return path


def command(profile: Path, out: Path, *more: str) -> list[str]:
    return ["plan", "--profile", str(profile), "-o", str(out), *more]


def test_a_speed_up_gives_a_plan_and_shows_what_else_could_be_had(recorded, tmp_path, capsys):
    out = tmp_path / "new folder" / "two.json"
    assert main(command(recorded, out, "--speedup", "2.0")) == 0
    plan = CachePlan.load(out)
    assert plan.expected.speedup_flops >= 2.0
    text = capsys.readouterr().out
    assert f"predicted relative error of the latent {plan.expected.predicted_error:.4f}" in text
    assert "speed-up  computed        hold    linear      jump" in text
    (chosen,) = [line for line in text.splitlines() if "<" in line]
    assert chosen.startswith(f"{plan.expected.speedup_flops:.2f}x")
    assert f"{plan.expected.predicted_error:.4f}<" in chosen
    assert main(["show", str(out)]) == 0


def test_a_speed_up_between_the_rows_gets_its_own(recorded, tmp_path, capsys):
    assert main(command(recorded, tmp_path / "a.json", "--speedup", "2.2")) == 0
    assert "2.22x            9" in capsys.readouterr().out


def test_fitted_jumps_are_not_shown_at_a_speed_where_they_did_not_win(tmp_path, capsys):
    made_profile(runs=5, steps=20).save(tmp_path / "wan.profile")
    for speedup, last in (("2", "<"), ("4.4", "-")):
        out = tmp_path / f"{speedup}.json"
        assert main(command(tmp_path / "wan.profile", out, "--speedup", speedup)) == 0
        (row,) = [line for line in capsys.readouterr().out.splitlines() if "<" in line]
        assert row.split()[4].endswith(last)
        assert main(["show", str(out)]) == 0
        assert ("with the plan's weights" in capsys.readouterr().out) == (last == "<")


def test_a_figure_that_cannot_be_written_does_not_cost_the_plan(recorded, tmp_path, monkeypatch):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(plan_module, "save_frontier", full)
    more = ("--speedup", "2", "--frontier", str(tmp_path / "a.svg"))
    assert main(command(recorded, tmp_path / "a.json", *more)) == 2
    assert CachePlan.load(tmp_path / "a.json").steps == 20


@pytest.mark.parametrize("name", ["frontier.svg", "frontier.png"])
def test_the_frontier_is_drawn(recorded, tmp_path, name):
    drawn = tmp_path / name
    more = ("--max-bytes", "0", "--frontier", str(drawn), "--name", "mine")
    assert main(command(recorded, tmp_path / "a.json", *more)) == 0
    head = drawn.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") or b"<?xml" in head
    if drawn.suffix == ".svg":
        words = drawn.read_text()
        assert all(f">{word}</text>" in words for word in ("hold", "jump", "chosen"))
    assert CachePlan.load(tmp_path / "a.json").name == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.json", name])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "no budget: give --speedup, --max-error or --max-bytes"),
        (("--speedup", "0.9"), "--speedup 0.9: expected at least 1"),
        (("--max-error", "0"), "--max-error 0: expected above 0"),
        (("--speedup", "40"), "--speedup 40: 20 steps allow 20x at most"),
        (("--max-bytes", "many"), "--max-bytes 'many': expected bytes such as 100MiB"),
        (("--speedup", "2", "--modes", "leap"), "'leap' is no reuse mode with unipc: hold,"),
        (("--speedup", "2", "--modes", "hold", "--max-bytes", "1k"), "--max-bytes 1000 B: the"),
        (("--speedup", "2", "--share", "0.6"), "--speedup belongs to --method search, not paper"),
        (("--method", "paper", "--max-error", "1"), "--max-error belongs to --method search"),
        (("--method", "search", "--tmin", "1"), "--tmin belongs to --method paper, not search"),
        (("--speedup", "2", "-o", "a.svg", "--frontier", "a.svg"), "a.svg is the plan's file"),
        (("--speedup", "2", "--frontier", "a.pdf"), "--frontier a.pdf: expected a name that ends"),
        (
            ("--speedup", "2", "--frontier", "/proc/no/a.svg"),
            "--frontier /proc/no/a.svg: cannot write into /proc (",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    recorded, tmp_path, capsys, monkeypatch, more, message
):
    monkeypatch.chdir(tmp_path)
    assert main(command(recorded, tmp_path / "a.json", *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_single_search_of_fewer_steps_has_a_clearly_smaller_error():
    profile = Profile.load(ROOT / "HunyuanVideo" / "ckpts" / "HYVideo-mini" / "profile.safetensors")
    search = PlanSearch(profile, ("corrected",))
    counts = range(16, 29)
    exact = [search.point_of("corrected", count).error for count in counts]
    assert exact != sorted(exact, reverse=True)  # of 17 computed steps less than of 18
    chosen = [search.point(Budget(speedup=50 / count)) for count in counts]
    for place, (point, count) in enumerate(zip(chosen, counts, strict=True)):
        assert len(point.steps) == count and LESS * point.error <= min(exact[: place + 1])
    points = search.frontier((1.75, 2.0, 2.5, 3.0))
    assert all(slow.error < fast.error for slow, fast in pairwise(points)) and len(points) == 3


def test_a_cell_of_the_frontier_that_a_faster_plan_beats_stays_empty():
    points = [Point("hold", (0, 1), 2.0, 0.5), Point("hold", (0,), 4.0, 0.7)]
    points += [Point("jump", (0, 1), 2.0, 0.3), Point("jump", (0,), 4.0, 0.2)]
    lines = frontier_lines(undominated(points), points[3])
    assert [line.split()[2:] for line in lines[1:3]] == [["0.5000", "-"], ["0.7000", "0.2000<"]]


@pytest.mark.parametrize(
    "more", [(), ("--speedup", "0.9"), ("--max-error", "0"), ("--max-bytes", "x"), ("-o", "/proc")]
)
def test_budgets_and_outputs_are_checked_before_a_profile_is_loaded(
    tmp_path, capsys, monkeypatch, more
):
    def refuse(path):
        raise AssertionError("a profile was about to be loaded")

    monkeypatch.setattr(plan_module, "load_profile", refuse)
    assert main(command(tmp_path / "a.profile", tmp_path / "a.json", *more)) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in more[:1]) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("100MiB", 100 * 2**20), ("0.5GB", 5 * 10**8), ("64k", 64_000), ("1 TiB", 2**40)],
)
def test_bytes_are_read_with_their_unit(text, count):
    assert bytes_of(text) == count

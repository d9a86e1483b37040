"""`plan --speedup ...` and its frontier, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from made_profiles import made_profile
from profiling_core.commands.arguments import bytes_of
from profiling_core.commands.main import main
from profiling_core.plan import CachePlan


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
    assert plan.expected.speedup_flops == 2.0
    text = capsys.readouterr().out
    assert f"predicted relative error of the latent {plan.expected.predicted_error:.4f}" in text
    assert "speed-up  computed        hold    linear   weights      jump" in text
    (chosen,) = [line for line in text.splitlines() if "<" in line and line.startswith("2.00x")]
    assert f"{plan.expected.predicted_error:.4f}<" in chosen
    assert main(["show", str(out)]) == 0


def test_a_speed_up_between_the_rows_gets_its_own(recorded, tmp_path, capsys):
    assert main(command(recorded, tmp_path / "a.json", "--speedup", "2.2")) == 0
    assert "2.22x            9" in capsys.readouterr().out


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
        ((), "no budget: give a speed-up, a largest error or a number of bytes"),
        (("--speedup", "0.9"), "speed-up 0.9: expected at least 1"),
        (("--max-error", "0"), "largest error 0: expected above 0"),
        (("--max-bytes", "many"), "--max-bytes 'many': expected bytes such as 100MiB"),
        (("--speedup", "2", "--modes", "leap"), "'leap' is no reuse mode with unipc: hold,"),
        (("--speedup", "2", "--modes", "hold", "--max-bytes", "1k"), "1000 B of anchors"),
        (("--speedup", "2", "--share", "0.6"), "--speedup belongs to --method search, not paper"),
        (("--method", "paper", "--max-error", "1"), "--max-error belongs to --method search"),
        (("--method", "search", "--tmin", "1"), "--tmin belongs to --method paper, not search"),
        (("--speedup", "2", "--frontier", "a.pdf"), "--frontier a.pdf: expected a name that ends"),
        (("--speedup", "2", "--frontier", "no/a.svg"), "--frontier no/a.svg: no folder no"),
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


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("100MiB", 100 * 2**20), ("0.5GB", 5 * 10**8), ("64k", 64_000), ("1 TiB", 2**40)],
)
def test_bytes_are_read_with_their_unit(text, count):
    assert bytes_of(text) == count

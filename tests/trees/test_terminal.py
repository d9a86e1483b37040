"""What is printed: to a pipe that closes, to a full device, to a file; and text from anywhere."""

from __future__ import annotations

import csv
import io
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from loguru import logger

from made_profiles import made_profile
from profiling_core.commands.batch.folder import Folder
from profiling_core.commands.main import main
from profiling_core.plan.presets import load_preset
from profiling_core.runtime import terminal
from profiling_core.runtime.command_line import init_logging
from profiling_core.runtime.terminal import csv_cell, printable, steps_bar
from tree_cases import TreeCase
from tree_paths import ROOT

COMMAND = shlex.join([sys.executable, "-m", "profiling_core"])
HOSTILE = "a\x1b[31mred\x07\n\u202eb \x9bc"
PLAIN = r"a\x1b[31mred\x07\n\u202eb \x9bc"


def shell(line: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-o", "pipefail", "-c", line]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    options = {"cwd": cwd, "env": buffered, "capture_output": True, "text": True, "check": False}
    return subprocess.run(command, **options)


@pytest.mark.parametrize("argv", ["show paper", "presets", "--help", "--version", "show --help"])
def test_a_pipe_that_closes_ends_a_command_without_a_word(argv: str) -> None:
    done = shell(f"{COMMAND} {argv} | true")
    assert done.stderr == "" and done.returncode in (0, 141)


@pytest.mark.parametrize("script", ["patches/patch.py", "examples/vbench.py"])
def test_a_pipe_that_closes_ends_our_tools_without_a_word(script: str) -> None:
    assert shell(f"{shlex.join([sys.executable, script])} --help | true").stderr == ""


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("show paper > /dev/full", 2, "error: standard output: No space left on device\n"),
        ("--help > /dev/full", 0, ""),
        ("show nothing 2> /dev/full", 2, ""),
        ("show nothing 2>&-", 2, ""),
        ("show paper >&-", 0, ""),
    ],
)
def test_a_full_or_closed_stream_is_no_traceback(line: str, code: int, says: str) -> None:
    done = shell(f"{COMMAND} {line}")
    assert (done.returncode, done.stderr) == (code, says)


LOGGING = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from loguru import logger
from profiling_core.runtime.command_line import exit_script, run_main
from profiling_core.runtime.terminal import printable, steps_bar

def run(args):
    logger.info(printable("prompt: 一只猫"))
    with steps_bar(20, shown=True) as bar:
        bar.update(20)
    Path("clip.mp4").touch()

exit_script(lambda: run_main(__import__("argparse").ArgumentParser, run))
"""  # as both trees' scripts log and end


@pytest.mark.parametrize("stream", ["| true", "> /dev/full", ">/dev/full 2>&1", ">&- 2>&-"])
def test_a_run_goes_on_when_its_log_is_read_no_more(tmp_path: Path, stream: str) -> None:
    done = shell(f"{shlex.join([sys.executable, '-c', LOGGING])} {stream}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "clip.mp4").exists()


def test_any_prompt_can_be_logged(tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-c", LOGGING])
    done = shell(f"PYTHONIOENCODING=ascii {command}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"prompt: \u4e00\u53ea\u732b" in done.stdout


def test_away_from_a_terminal_progress_is_a_line_a_tenth(capsys) -> None:
    init_logging()
    with steps_bar(50, shown=True) as bar:
        for step in range(0, 50, 2):  # a plan that jumps
            bar.set_postfix_str("reused 40%")
            bar.update(2)
            assert bar.n == step + 2
    with steps_bar(50, shown=False) as bar:
        bar.update(50)
    out, err = capsys.readouterr()
    assert err == "" and len(out.splitlines()) == 10
    assert out.splitlines()[0][22:] == "INFO: step 6 of 50, reused 40%"


def test_on_a_terminal_progress_is_a_bar(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with steps_bar(2, shown=True) as bar:
        bar.update(2)
    assert "2/2" in capsys.readouterr().err


def test_a_start_logs_no_long_line_unless_asked(
    tree: TreeCase, nothing_loads: None, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for level, least, most in (("INFO", 0, 300), ("DEBUG", 600, 10_000)):
        monkeypatch.setenv("LOGURU_LEVEL", level)
        with pytest.raises(AssertionError, match="weights were about to be loaded"):
            tree.script.main(tree.argv())
        assert least <= max(map(len, capsys.readouterr().out.splitlines())) <= most


def test_text_from_files_cannot_steer_the_terminal(tmp_path: Path, capsys) -> None:
    path = tmp_path / "plan.json"
    plan = load_preset("wan2.1-t2v-mini", "paper").replace(name=HOSTILE)
    plan.save(path)
    profile = made_profile(runs=1)
    run = profile.runs[0].model_copy(update={"prompt": HOSTILE})
    replace(profile, runs=(run,)).save(tmp_path / "a.profile")
    assert main(["show", str(path)]) == 0
    assert main(["show", str(tmp_path / "a.profile")]) == 0
    assert main(["show", f"{tmp_path}/{HOSTILE}.json"]) == 2
    init_logging()
    logger.warning(f"plan {HOSTILE}")
    out, err = capsys.readouterr()
    assert f"plan {PLAIN}" in out and f"/{PLAIN}.json" in err
    assert not terminal.RAW.search((out + err).replace("\n", ""))


def test_other_languages_are_printed_as_they_are() -> None:
    text = "一只猫 「cat」\u3000é 👩\u200d👩"
    assert printable(text) == text


def test_no_cell_of_a_table_is_a_formula(tmp_path: Path) -> None:
    for text in ("=1+1", "@SUM(A1)", "+1", "-1", '=HYPERLINK("x")'):
        assert csv_cell(text) == f"'{text}"
    assert [csv_cell(value) for value in ("a=1", 2.5, None)] == ["a=1", 2.5, None]
    Folder(tmp_path).write_summary([{"name": "=1+1", "prompt": HOSTILE, "seed": -1}])
    (row,) = csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text()))
    assert (row["name"], row["prompt"], row["seed"]) == ("'=1+1", PLAIN, "-1")

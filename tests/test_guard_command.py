"""`plan --guard`: thresholds from the profile, in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from made_profiles import made_profile
from profiling_core.__main__ import main
from profiling_core.guard import compared_steps
from profiling_core.plan import CachePlan
from profiling_core.usual_drift import usual_deviations


@pytest.mark.parametrize("extra", [False, True])
def test_a_searched_plan_gets_its_guard(tmp_path: Path, capsys, extra: bool) -> None:
    profile, out = made_profile(runs=2, steps=20), tmp_path / "two.json"
    profile.save(tmp_path / "wan.profile")
    command = ["plan", "--profile", str(tmp_path / "wan.profile"), "-o", str(out)]
    options = ["--speedup", "2", "--guard", "1.5", *(["--guard-extra"] if extra else [])]
    assert main([*command, *options]) == 0
    plan = CachePlan.load(out)
    usual = usual_deviations(profile, plan)
    assert plan.guard.extra is extra and compared_steps(plan) == tuple(usual)
    for step, values in usual.items():
        assert plan.guard.at(step) == pytest.approx(1.5 * float(values.mean()))  # of two runs
    text = capsys.readouterr().out
    assert "guard: the profile's runs reach" in text and "guard: compares 4096 values" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--guard", "0"], "--guard 0: expected a factor above 0, for example 2"),
        (["--guard", "nan"], "--guard nan: expected a factor above 0"),
        (["--guard-extra"], "--guard-extra goes with --guard FACTOR"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, capsys, options: list[str], says: str) -> None:
    made_profile(runs=2, steps=20).save(tmp_path / "wan.profile")
    command = ["plan", "--profile", str(tmp_path / "wan.profile"), "-o", str(tmp_path / "a.json")]
    assert main([*command, "--speedup", "2", *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()

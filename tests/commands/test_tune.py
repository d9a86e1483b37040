"""`plan --tune N`: candidates run on the profile's prompts, on a made model."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from made_profiles import made_profile
from profiling_core.commands.main import main
from profiling_core.plan import CachePlan
from profiling_core.profile.profile import Profile
from profiling_core.refit import halving
from profiling_core.search.search import Budget, PlanSearch

HUNYUAN = "hunyuan-video-t2v-mini"
N, PROMPTS = 6, 3


@pytest.fixture(scope="module")
def profile() -> Profile:
    return made_profile(model=HUNYUAN, runs=PROMPTS, steps=20)


@pytest.fixture
def recorded(profile: Profile, tmp_path: Path) -> Path:
    profile.save(tmp_path / "a.profile")
    return tmp_path / "a.profile"


class MadeModel:
    """A plan with another second compute step than `good` leaves a larger error."""

    runs: list[str]
    stop_after = 10**9
    good = -1  # of the plans' compute steps, the one that the best plan computes

    def __init__(self, request, prompt: str) -> None:
        self.settings = {"size": request.size, "steps": request.steps}

    loaded = staticmethod(nullcontext)

    @property
    def checkpoint(self) -> list[Path]:
        return [self.weights]

    def inputs(self, prompt: str, seed: int) -> tuple[str, int]:
        return prompt, seed

    def denoise(self, inputs: tuple[str, int], plan: CachePlan | None = None) -> torch.Tensor:
        if len(self.runs) == self.stop_after:
            raise KeyboardInterrupt
        self.runs.append("full" if plan is None else plan.name)
        latent = torch.full((16, 9, 16, 16), float(len(inputs[0])))
        return latent if plan is None else latent * (1 + self.errors.get(plan.name, 0.1))


@pytest.fixture
def model(monkeypatch, tmp_path: Path) -> type[MadeModel]:
    (tmp_path / "weights").write_bytes(b"weights")
    fields = {"runs": [], "errors": {}, "weights": tmp_path / "weights"}
    made = type("Made", (MadeModel,), fields)
    monkeypatch.setattr("profiling_core.commands.plan.tree_class", lambda tree: made)
    return made


def command(recorded: Path, *more: str) -> list[str]:
    out = str(recorded.parent / "a.json")
    return ["plan", "--profile", str(recorded), "-o", out, "--speedup", "2", *more]


# -- halving


@pytest.mark.parametrize(("candidates", "prompts"), [(2, 1), (4, 6), (5, 2), (14, 6), (20, 3)])
def test_a_tuning_takes_as_many_runs_as_it_says(candidates: int, prompts: int) -> None:
    seen: list[tuple[str, int]] = []

    def error(name: str, n: int) -> float:
        seen.append((name, n))
        return 1.0 / (1 + int(name))  # the last is the best

    names = [str(n) for n in range(candidates)]
    errors = halving.halved(names, prompts, error)
    assert len(seen) == len(set(seen)) == halving.cost(candidates, prompts)
    complete = {name for name, found in errors.items() if len(found) == prompts}
    best = names[-1]
    assert {names[0], best} <= complete and next(iter(errors)) == best
    assert len(complete) == min(candidates, halving.FINALISTS) or prompts == 1
    assert halving.cost(14, 6) == 40


def test_another_candidate_has_to_be_better_by_the_margin() -> None:
    near, far = 10 ** (-halving.MARGIN / 25), 10 ** (-halving.MARGIN / 15)
    for better, expected in ((near, "search"), (far, "other")):
        errors = halving.halved(
            ["search", "other"], 2, lambda name, n, b=better: {"other": b}.get(name, 1.0)
        )
        assert halving.winner(errors, "search") == expected


def test_candidates_differ_and_the_searchs_own_is_the_first(profile: Profile) -> None:
    search, budget = PlanSearch(profile), Budget(speedup=2.0)
    best = search.point(budget)
    points = search.candidates(best, budget, 9)
    assert next(iter(points.items())) == ("search", best)
    assert len({(point.skip, point.steps) for point in points.values()}) == len(points) == 9
    assert {name.split()[0] for name in points} == {"search", "exponent", "law", "mode"}
    assert {len(point.steps) for name, point in points.items() if name != "search"} == {10}
    assert list(search.candidates(best, budget, 3)) == list(points)[:3]
    law = next(point for name, point in points.items() if name.startswith("law"))
    assert law.skip == "corrected" and law.error == search.predicted(search.plan_of(law, budget))
    limited = search.candidates(best, Budget(speedup=2.0, max_error=best.error * 1.01), 9)
    assert len(limited) < 9


# -- the command


def test_the_best_by_real_runs_becomes_the_plan(recorded, profile, model, capsys) -> None:
    search, budget = PlanSearch(profile), Budget(speedup=2.0)
    points = search.candidates(search.point(budget), budget, N)
    best = list(points)[2]
    model.errors = {best: 0.01, "search": 0.02}
    assert main(command(recorded, "--tune", str(N), "--name", "mine")) == 0
    plan, printed = CachePlan.load(recorded.parent / "a.json"), capsys.readouterr()
    total = halving.cost(N, PROMPTS)
    said = f"{N} candidates at 2x on 3 prompts: {total} runs and 3 full runs, about "
    assert f"{said}{total / 2 + 3:.0f} full runs" in printed.err
    assert len(model.runs) == total + PROMPTS and model.runs.count("full") == PROMPTS
    assert plan.name == "mine" and plan.prediction.compute_steps["cond"] == points[best].steps
    settings = plan.provenance.settings
    assert settings["tuned"] == N
    assert settings["measured_error"] == pytest.approx(0.01, rel=1e-4)
    assert settings["measured_worst"] == pytest.approx(0.01, rel=1e-4)
    (row,) = [line for line in printed.out.splitlines() if line.startswith(f"{best} ")]
    assert row.split()[-3:] == ["0.0100", "0.0100", "3<"]
    assert not (recorded.parent / "a.json.tune").exists()


def test_a_tuning_goes_on_where_it_stopped(recorded, model, capsys) -> None:
    model.stop_after = 5
    with pytest.raises(SystemExit) as ended:
        main(command(recorded, "--tune", str(N)))
    assert ended.value.code == 130
    assert "a.json.tune, the same command goes on" in capsys.readouterr().err
    assert not (recorded.parent / "a.json").exists()
    model.stop_after = 10**9
    assert main(command(recorded, "--tune", str(N))) == 0
    assert len(model.runs) == halving.cost(N, PROMPTS) + PROMPTS


def other_profile(recorded: Path, model) -> str:
    made_profile(model=HUNYUAN, runs=PROMPTS, steps=20, seed=5).save(recorded)
    return "profile"


def other_weights(recorded: Path, model) -> str:
    model.weights.write_bytes(b"others")
    return "weights"


def other_model(recorded: Path, model) -> str:
    path = recorded.parent / "a.json.tune" / "runs.json"
    document = json.loads(path.read_text())
    document["of"]["size"] = "64*64"
    path.write_text(json.dumps(document))
    return "size"


def damaged(recorded: Path, model) -> str:
    (recorded.parent / "a.json.tune" / "runs.json").write_text("[]")
    return "no runs of a tuning"


@pytest.mark.parametrize("change", [other_profile, other_weights, other_model, damaged])
def test_runs_of_something_else_are_refused_by_name(change, recorded, model, capsys) -> None:
    model.stop_after = 5
    with pytest.raises(SystemExit):
        main(command(recorded, "--tune", str(N)))
    capsys.readouterr()
    what = change(recorded, model)
    assert main(command(recorded, "--tune", str(N))) == 2
    error = capsys.readouterr().err
    assert what in error and "remove the folder, or name another plan" in error
    assert error.count("\n") == 1 and len(model.runs) == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--tune", "1"), "--tune: found 1, expected at least 2"),
        (("--tune", "4", "--refit"), "--refit: not allowed with argument --tune"),
        (("--tune", "4", "--method", "paper"), "belongs to --method search"),
        (("--tune", "4", "--speedup", "1"), "--tune: only one plan meets this budget"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(more, message, recorded, model, capsys) -> None:
    assert main(command(recorded, *more)) == 2
    error = capsys.readouterr().err
    assert message in error and model.runs == []
    assert sorted(path.name for path in recorded.parent.iterdir()) == ["a.profile", "weights"]


def test_a_run_without_a_seed_is_refused_before_anything_runs(profile, tmp_path, model, capsys):
    first = profile.runs[0].model_copy(update={"seed": None})
    replace(profile, runs=(first, *profile.runs[1:])).save(tmp_path / "b.profile")
    assert main(command(tmp_path / "b.profile", "--tune", "4")) == 2
    assert "run 1 of the profile has no seed" in capsys.readouterr().err and model.runs == []


def test_latents_that_are_not_finite_lose(recorded, model) -> None:
    model.errors = {"search": 0.02, "exponent 1": float("nan")}
    assert main(command(recorded, "--tune", "2")) == 0
    plan = CachePlan.load(recorded.parent / "a.json")
    assert plan.provenance.settings["measured_error"] == pytest.approx(0.02, rel=1e-4)

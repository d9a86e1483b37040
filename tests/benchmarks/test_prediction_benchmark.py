"""Predicted against measured: the benchmark on a made profile and a made tree."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.lib import rows as row_files
from benchmarks.lib.schedules import protected_ends
from benchmarks.search import fitted_jump, prediction
from benchmarks.search.prediction import MOST_MOVED, exchanged, plans_of
from made_profiles import made_profile
from profiling_core.plan import CachePlan
from profiling_core.search.search import Budget, PlanSearch

WAN, HUNYUAN = "wan2.1-t2v-mini", "hunyuan-video-t2v-mini"
STEPS = 20
STEP, BESIDE = 2.0, 0.1  # seconds of a computed step's model calls, and of every step beside them


@pytest.fixture(scope="module")
def search() -> PlanSearch:
    return PlanSearch(made_profile(model=HUNYUAN, runs=3, steps=STEPS))


@dataclass
class MadeTree:
    """A tree whose final latent is off by twice the predicted error; seconds go by steps."""

    search: PlanSearch
    name: str = "hunyuan"
    steps: int = STEPS
    calls: int = 0
    last_run: SimpleNamespace = field(default_factory=SimpleNamespace)

    @property
    def pipeline(self) -> SimpleNamespace:
        return SimpleNamespace(model=torch.nn.Linear(1, 1), device=torch.device("cpu"))

    def inputs(self, prompt: str, seed: int) -> tuple:
        return (prompt, seed)

    def denoise(self, inputs: tuple, plan: CachePlan | None = None) -> torch.Tensor:
        self.calls += 1
        computed = len(plan.prediction.compute_steps["cond"]) if plan else self.steps
        visited = len(plan.solver_steps) if plan else self.steps
        self.last_run = SimpleNamespace(
            denoise_seconds=computed * STEP + visited * BESIDE,
            block_runs=plan.expected.block_runs if plan else 0,
            peak_bytes=0,
        )
        latent = torch.ones(100)
        if plan is not None:
            latent[0] += 20 * self.search.predicted(plan)
        return latent


@pytest.fixture
def made(search, monkeypatch, tmp_path) -> MadeTree:
    tree = MadeTree(search)
    weights = iter(lambda: "same", None)
    monkeypatch.setattr(prediction, "weights_hash", lambda tree: next(weights))
    monkeypatch.setattr(row_files, "RESULTS", tmp_path)
    monkeypatch.setattr(prediction, "load", lambda name, fp32: tree)
    monkeypatch.setattr(prediction, "profile_of", lambda tree: search.profile)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    run = search.profile.runs[0]
    monkeypatch.setattr(prediction, "calibration_prompts", lambda count: [run.prompt])
    monkeypatch.setattr(prediction, "SEED", run.seed)
    return tree


def rows(path: Path, what: str) -> list[dict]:
    found = [json.loads(line) for line in (path / "prediction.jsonl").read_text().splitlines()]
    return [row for row in found if row["what"] == what]


def test_plans_are_of_every_kind_and_reuse_mode(search: PlanSearch) -> None:
    plans = plans_of(search)
    assert len(plans) == 10 * len(search.skips)
    assert {kind.kind for kind in plans} == {"searched", "exchanged", "hand", "uniform"}
    for kind, plan in plans.items():
        computed = plan.prediction.compute_steps["cond"]
        assert plan.prediction.skip == kind.skip and computed[0] == 0
        assert STEPS / len(computed) == pytest.approx(kind.speedup, rel=0.15)


def test_an_exchange_moves_a_few_steps_and_never_the_first() -> None:
    steps = (0, 1, 2, 5, 8, 11, 14, 17, 19)
    for seed in range(20):
        found = exchanged(steps, STEPS, seed)
        assert len(found) == len(steps) and found[0] == 0
        assert 1 <= len(set(steps) - set(found)) <= MOST_MOVED
    assert exchanged(steps, STEPS, 3) == exchanged(steps, STEPS, 3)


def test_a_plan_by_hand_protects_start_and_end() -> None:
    steps = protected_ends(50, 25)
    assert len(steps) == 25
    assert steps[:10] == tuple(range(10)) and steps[-4:] == (46, 47, 48, 49)


def test_rank_correlation_is_spearmans() -> None:
    rise = np.arange(5.0)
    assert prediction.spearman(rise, np.exp(rise)) == pytest.approx(1)
    assert prediction.spearman(rise, -rise) == pytest.approx(-1)
    assert prediction.spearman(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(0.5)
    tied = prediction.spearman(np.array([1, 1, 2]), np.array([1, 2, 3]))
    assert tied == pytest.approx(np.sqrt(3) / 2)


def test_errors_are_measured_once_and_ranked(made, tmp_path, capsys) -> None:
    few = ("--calibration-prompts", "1", "--held-out-prompts", "1", "--trees", "hunyuan")
    arguments = ["--parts", "errors", "--out", str(tmp_path / "out"), *few]
    assert prediction.main(arguments) == 0
    distinct = {row["plan"] for row in rows(tmp_path, "error")}
    assert made.calls == 2 * len(distinct) + 2
    everything = rows(tmp_path, "ranks")[0]
    assert everything["group"] == "all" and everything["overall"] == pytest.approx(1)
    assert everything["ratio"] == pytest.approx(2, rel=1e-3)
    assert everything["held_out"] == pytest.approx(1)
    for name in ("prediction_hunyuan.png", "prediction_hunyuan.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    calls = made.calls
    assert prediction.main([*arguments, "--table"]) == 0
    assert made.calls == calls
    assert "measured / predicted" in capsys.readouterr().out


@pytest.mark.parametrize("model", [WAN, HUNYUAN])
def test_speed_is_predicted_with_what_steps_cost_beside_the_model(model) -> None:
    search = PlanSearch(made_profile(model=model, runs=1, steps=STEPS))
    plans = {"2x": search.plan(Budget(speedup=2.0))}
    (row,) = prediction.speeds(MadeTree(search), plans, 2)
    assert row["by_flops"] == 2.0
    assert row["beside_seconds"] == pytest.approx(BESIDE)
    assert row["with_loop"] == pytest.approx(row["measured"], rel=1e-4)
    assert (row["measured"] == 2.0) == plans["2x"].jumps


def test_a_search_is_timed_in_a_process_of_its_own(tmp_path) -> None:
    path = tmp_path / "made.profile"
    made_profile(model=HUNYUAN, runs=1, steps=STEPS).save(path)
    wall, cpu, imports = prediction.timed_search(path, 1)
    assert 0 < cpu and 0 < wall and 0 < imports


def test_the_gain_of_fitted_jumps_is_of_the_newest_plans_on_prompts_that_both_ran() -> None:
    def row(mode: str, seed: int, error: float, plan: str = "new", **more: object) -> dict:
        facts = {"policy": f"search {mode}", "budget": 4.0, "speedup": 50 / 12, "predicted": error}
        return {**facts, "prompt": "a", "seed": seed, "plan": plan, "latent_error": error, **more}

    rows = [row("fitted", 1, 9.0, "old"), row("jump", 1, 0.1), row("fitted", 1, 0.01)]
    rows += [row("jump", 2, 0.1), row("fitted", 2, 0.2), row("jump", 3, 0.1)]
    rows += [row("jump", 1, 0.5, solver="dpm++"), row("linear", 1, 0.001)]
    lines = fitted_jump.summary(rows).splitlines()
    cells = "| 4x | 12 | 36.0 (36.0) | 43.0 (30.0) | +20.0 | +7.0 +-13.0 | 1 of 2 |"
    assert lines[2:] == [cells]

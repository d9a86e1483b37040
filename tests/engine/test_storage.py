"""How and where anchors are stored: `storage` and `storage_place`, on toys and by `plan`."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from made_profiles import made_profile
from profiling_core.commands.main import main
from profiling_core.engine.anchors import forecast_delta, forecast_prediction, keep
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.describe import summary_lines
from profiling_core.search.search import Budget, PlanSearch
from toys import PLANS, ToyWan, cached, equal, toy_plan

STORED = list(product(("stream", "bfloat16"), ("device", "host")))
BF16_ROUNDING = 2**-8  # largest relative error of rounding to 8 significant bits


@pytest.fixture
def model() -> ToyWan:
    torch.manual_seed(1)
    return ToyWan()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiles") / "wan.profile"
    made_profile(steps=20).save(path)
    return path


@pytest.mark.parametrize(("storage", "place"), STORED)
@pytest.mark.parametrize("name", PLANS)
def test_bytes_held_are_those_of_the_formula(model, name, storage, place) -> None:
    plan = toy_plan(PLANS[name], storage=storage, storage_place=place)
    _, cache = cached(model, plan)
    sizes = {"tokens": 5, "stream_itemsize": 4, "latent_numel": 5 * 8}
    assert cache.stats.peak_bytes == bytes_held(plan, **sizes) > 0
    plain = bytes_held(toy_plan(PLANS[name]), **sizes)
    assert bytes_held(plan, **sizes) * (2 if storage == "bfloat16" else 1) == plain


@pytest.mark.parametrize("name", PLANS)
def test_the_place_changes_no_bit(model, name) -> None:
    device, host = (toy_plan(PLANS[name], storage_place=place) for place in ("device", "host"))
    assert equal(cached(model, device)[0], cached(model, host)[0])


def test_an_fp32_delta_stored_as_bfloat16_is_off_by_its_rounding_alone() -> None:
    torch.manual_seed(0)
    hidden, delta = torch.randn(64, 32), torch.randn(64, 32)
    kept = keep(delta, [delta], "bfloat16", "device")
    found = forecast_delta("blocks 0-1", hidden, [(kept, 1.0)], 0)
    assert found.dtype == torch.float32 and kept.nbytes * 2 == delta.nbytes
    off = (found.double() - (hidden.double() + delta.double())).abs()
    fp32_sum = found.abs() * 2**-24
    assert (off <= delta.abs() * BF16_ROUNDING + fp32_sum).all() and off.max() > 1e-4


def test_an_fp32_prediction_stored_as_bfloat16_is_off_by_its_rounding_alone() -> None:
    torch.manual_seed(0)
    older, newest = torch.randn(64, 32), torch.randn(64, 32)
    weights = (1.75, -0.75)
    kept = [keep(one, [one], "bfloat16", "device") for one in (newest, older)]
    found = forecast_prediction(list(zip(kept, weights, strict=True)))
    exact = weights[0] * newest.double() + weights[1] * older.double()
    most = weights[0] * newest.abs() - weights[1] * older.abs()
    off = (found.double() - exact).abs()
    assert found.dtype == torch.float32
    assert (off <= most * (BF16_ROUNDING + 2**-22)).all() and off.max() > 1e-4


def test_the_log_says_the_memory(model) -> None:
    plan = toy_plan(PLANS["every block"], storage="bfloat16", storage_place="host")
    cache = DeltaCache(plan)
    assert "of host memory" in cache.stats.lines()[1]
    _, cache = cached(model, plan)
    assert f"at most {cache.stats.peak_bytes} B of host memory" in cache.stats.lines()[1]
    assert (
        "anchors in host memory, as bfloat16 (" in summary_lines(plan, tokens=5, latent_numel=1)[-1]
    )
    assert summary_lines(plan)[-1].endswith("elements in host memory, as bfloat16")
    assert summary_lines(toy_plan(PLANS["every block"]))[-1].endswith("elements in device memory")


@pytest.mark.parametrize(
    "method", [("--share", "0.6"), ("--speedup", "2")], ids=["paper", "search"]
)
def test_plan_writes_what_is_asked(recorded, tmp_path, capsys, method) -> None:
    command = ["plan", "--profile", str(recorded), "-o"]
    plain, half = tmp_path / "plain.json", tmp_path / "half.json"
    assert main([*command, str(plain), *method]) == 0
    capsys.readouterr()
    assert main([*command, str(half), *method, "--store", "bfloat16", "--store-on", "host"]) == 0
    assert "in host memory, as bfloat16" in capsys.readouterr().out
    plans = CachePlan.load(plain), CachePlan.load(half)
    assert [plan.storage for plan in plans] == ["stream", "bfloat16"]
    assert [plan.storage_place for plan in plans] == ["device", "host"]
    assert plans[0].sites == plans[1].sites
    shown = []
    for path in (plain, half):
        assert main(["show", str(path)]) == 0
        shown.append(capsys.readouterr().out)
    assert "anchors in device memory\n" in shown[0]
    assert "anchors in host memory, as bfloat16\n" in shown[1]


def test_a_budget_of_bytes_counts_the_stored_type() -> None:
    profile = made_profile(runs=2, steps=20)
    one = 4 * torch.Size(profile.recorded.latent).numel() * len(profile.recorded.branches)
    budget = Budget(speedup=2.0, max_bytes=one)
    with pytest.raises(PlanError, match=r"the anchors need .* at least"):
        PlanSearch(profile, ("linear",)).plan(budget)
    plan = PlanSearch(profile, ("linear",), storage="bfloat16").plan(budget)
    assert plan.prediction.skip == "linear" and plan.storage == "bfloat16"


def test_what_cannot_be_stored_is_refused(recorded, tmp_path, capsys) -> None:
    command = ["plan", "--profile", str(recorded), "-o", str(tmp_path / "a.json"), "--speedup", "2"]
    assert main([*command, "--store", "int8"]) == 2
    assert "invalid choice: 'int8'" in capsys.readouterr().err

"""The benchmarks run: at toy sizes on the CPU, so that the GPU scripts do not rot unseen."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import calls
import common
import engine
import gpu_step
from profiling_core.plan import CachePlan
from profiling_core.presets import load_preset

CPU = torch.device("cpu")
TINY = {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 12, "text_dim": 16, "text_len": 4}
LATENT = (16, 2, 4, 4)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(gpu_step.SIZES, "1.3B", TINY)
    monkeypatch.setattr(gpu_step, "LATENT", LATENT)
    monkeypatch.setattr(gpu_step, "TOKENS", 8)
    model = gpu_step.random_model("1.3B", torch.float32, CPU)
    plans = {name: engine.plan_for(model, name) for name in gpu_step.PLANS}
    monkeypatch.setattr(gpu_step, "load_preset", lambda _, preset: plans[preset])
    return model


@pytest.mark.parametrize("preset", gpu_step.PLANS)
def test_full_size_benchmark_counts_what_the_plan_says(tiny, preset):
    call = gpu_step.one_call(tiny, CPU)
    row = gpu_step.one_row("1.3B", torch.float32, tiny, call, preset, 1, CPU)
    assert row["bytes"] == row["bytes_formula"]
    assert row["ideal"] == pytest.approx(
        engine.plan_for(tiny, preset).expected.speedup_flops, rel=1e-4
    )
    assert row["bare"] > 0 and row["achieved"] > 0
    assert gpu_step.whole_loop(tiny, call, "1.3B", preset, CPU)["ratio"] > 0


def test_linear_plan_is_measured_with_both_of_its_anchors(tiny):
    base = engine.plan_for(tiny, "paper").model_dump(mode="json", exclude_none=True)
    base["sites"][0]["skip"] = "linear"
    fields = {k: v for k, v in base.items() if k not in ("format", "expected")}
    plan = CachePlan.build(**fields)
    call = gpu_step.one_call(tiny, CPU)
    sizes = {"tokens": 8, "stream_itemsize": 4, "latent_numel": 512}
    held, formula = calls.measured_bytes(tiny, call, plan, CPU, **sizes)
    assert held == formula == 2 * 2 * 2 * 8 * 48 * 4
    assert calls.measure(tiny, call, plan, 1, CPU).reusing > 0


def test_gpu_benchmark_without_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_step.py"])
    assert gpu_step.main() == 2
    assert capsys.readouterr().err == "error: no CUDA device: this benchmark measures a GPU\n"


def test_engine_benchmark_refuses_plans_of_another_depth(tiny):
    del tiny.blocks[-1]
    with pytest.raises(ValueError, match="plans are for another depth than 11"):
        engine.plan_for(tiny, "paper")


def test_alternating_rounds_turn_their_order_and_drop_the_first():
    order = []
    variants = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = common.alternate(variants, 3, CPU)
    assert "".join(order) == "baabbaab" and {len(s) for s in seconds.values()} == {3}
    assert common.paired_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0]) == 2.0


def test_environment_names_commit_device_and_load():
    assert {"commit", "device", "torch", "load_1min", "utc"} <= common.environment(CPU).keys()


def test_table_aligns_its_columns():
    assert common.table(["a", "bb"], [["ccc", "d"]]) == "a    bb\n---  --\nccc  d"


def test_presets_of_the_miniature_have_its_depth():
    assert load_preset("wan2.1-t2v-mini", "paper").model.block_lists == {"blocks": 12}

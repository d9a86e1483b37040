"""A plan's steps in the files of other engines, and back."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from profiling_core.commands.main import main
from profiling_core.errors import PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.exporters import TARGETS, export
from profiling_core.plan.importers import from_document, from_steps
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import available, load_preset, public_plan
from toys import prediction, toy_plan

SHIPPED = [load_preset(model, preset) for model in MODELS for preset in available(model)]
LEMICA = public_plan(MODELS["wan2.1-t2v-14B"], "lemica-25")


def request_for(plan: CachePlan, **changes: Any) -> dict[str, Any]:
    """What SGLang knows of a request with the plan's noise levels."""
    return {
        "pipeline": "WanT2V480PConfig",
        "checkpoint": "revision",
        "num_inference_steps": plan.steps,
        "height": 480,
        "width": 832,
        "guidance_scale": 5.0,
        "do_classifier_free_guidance": True,
        "quality": "lossless",
        "attention_backend": None,
        "dtype": "bfloat16",
        "scheduler": "FlowUniPCMultistepScheduler",
        "scheduler_config_sha256": "0" * 64,
        "timesteps": [1000 * sigma for sigma in plan.sigmas],
        "sigmas": [*plan.sigmas, 0.0],
    } | changes


def exported(plan: CachePlan, target: str) -> Any:
    request = request_for(plan) if target == "sglang-dpcache" else None
    return json.loads(json.dumps(export(plan, target, request=request).document))


def cannot_say(plan: CachePlan, target: str) -> bool:
    """Intervals go nowhere, a jump as steps alone, SGLang needs two steps to begin with."""
    if plan.interval_sites or (plan.jumps and target != "steps"):
        return True
    return target == "sglang-dpcache" and plan.prediction.compute_steps["cond"][1] != 1


@pytest.mark.parametrize("target", TARGETS)
def test_shipped_plans_come_back_with_their_steps_or_are_refused_in_a_line(target: str) -> None:
    refused = 0
    for plan in [*SHIPPED, LEMICA]:
        if cannot_say(plan, target):
            refused += 1
            with pytest.raises(PlanError, match=r"^plan '\w+' [^\n]+: take a plan"):
                exported(plan, target)
            continue
        sites, _ = from_document(exported(plan, target), plan.sigmas, plan.branches, "file")
        back = plan.replace(sites=sites).prediction
        assert back.compute_steps == plan.prediction.compute_steps and back.skip == "hold"
    assert 0 < refused < len(SHIPPED)


def test_every_export_says_how_it_is_used_and_what_is_lost() -> None:
    for target in TARGETS:
        request = request_for(LEMICA) if target == "sglang-dpcache" else None
        notes = export(LEMICA, target, file="my.json", request=request).notes
        assert any("lost: mode 'hold'" in note for note in notes)
        assert target == "steps" or notes[0].startswith("use")
    notes = "\n".join(export(LEMICA, "cache-dit", file="my.json").notes)
    assert 'cache_dit.enable_cache(pipe, **cache_dit.load_configs("my.json"))' in notes
    assert "at most 1.95x instead of 2.00x" in notes  # 50 / (25 + 25 / 40)
    assert "one mask for cond and uncond" in notes and "50 unipc steps at shift 5" in notes


def test_branches_that_differ_go_to_lightx2v_alone() -> None:
    plan = toy_plan([prediction({"cond": [0, 1, 5], "uncond": [0, 1, 8]})])
    lists = exported(plan, "lightx2v")
    assert [step for step, computed in enumerate(lists["caching_records"]) if computed] == [0, 1, 5]
    sites, _ = from_document(lists, plan.sigmas, plan.branches, "file")
    assert sites[0]["compute_steps"]["uncond"] == [0, 1, 8]
    for target in ("cache-dit", "sglang-dpcache", "steps"):
        with pytest.raises(PlanError, match="computes other steps for uncond"):
            exported(plan, target)


def test_a_plan_that_computes_everything_goes_everywhere() -> None:
    for sites in ([], from_steps(12, range(12), ("cond", "uncond"), "hold")):
        plan = toy_plan(sites)
        for target in TARGETS:
            found, _ = from_document(exported(plan, target), plan.sigmas, plan.branches, "file")
            assert list(found[0]["compute_steps"]["cond"]) == list(range(12))


@pytest.mark.parametrize(
    ("request_given", "text"),
    [
        (None, "--request FILE goes with --to sglang-dpcache and only with it"),
        ([1], r"--request: Input should be an object"),
        ({}, r"--request: pipeline: missing"),
        (request_for(LEMICA, dtype="float32"), "dtype: Input should be 'bfloat16'"),
        (request_for(LEMICA, height=0), "height: Input should be greater than or equal to 1"),
        (request_for(LEMICA, own=1), "own: unknown key"),
        (request_for(LEMICA, timesteps=[1.0]), "1 timesteps, expected 50"),
        (request_for(load_preset("wan2.1-i2v-14B", "fast")), "num_inference_steps is 40, the run"),
        (
            request_for(LEMICA, sigmas=[1.0, *LEMICA.sigmas[1:], 0.0]),
            None,  # 1 and 0.9998 are the same level
        ),
        (
            {"request": request_for(LEMICA, sigmas=[*LEMICA.sigmas[:9], 0.5] + [0.4] * 41)},
            r"sigmas\[9\] is 0.5000, of the run 0.9",
        ),
    ],
)
def test_sglangs_request_is_of_the_plans_grid(request_given: Any, text: str | None) -> None:
    if text is None:
        assert export(LEMICA, "sglang-dpcache", request=request_given).document
        return
    with pytest.raises(PlanError, match=text):
        export(LEMICA, "sglang-dpcache", request=request_given)


def test_only_sglang_takes_a_request() -> None:
    with pytest.raises(PlanError, match="only with it"):
        export(LEMICA, "steps", request=request_for(LEMICA))


def sglangs_own() -> ModuleType:
    """SGLang's module of DPCache, from the checkout that SGLANG names."""
    pytest.importorskip("msgspec")
    path = Path(os.environ["SGLANG"], "python/sglang/multimodal_gen/runtime/cache/dpcache.py")
    spec = importlib.util.spec_from_file_location("sglang_dpcache", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif("SGLANG" not in os.environ, reason="SGLANG=PATH names a checkout of SGLang")
def test_sglang_itself_serves_the_schedule(tmp_path: Path) -> None:
    sglang, request = sglangs_own(), request_for(LEMICA)
    (tmp_path / "K25.json").write_text(json.dumps(exported(LEMICA, "sglang-dpcache")))
    served = {name: request[name] for name in ("pipeline", "checkpoint", "attention_backend")}
    schedules = sglang.load_schedule_dir(str(tmp_path), **served)
    lists = {name: tuple(request[name]) for name in ("timesteps", "sigmas")}
    signature = sglang.DPCacheRequestSignature(**request | lists)
    steps = sglang.select_schedule(schedules, 25, signature)
    assert steps == LEMICA.prediction.compute_steps["cond"]


def test_the_command_writes_the_file_whole_or_not_at_all(tmp_path, capsys) -> None:
    out, plan = tmp_path / "mask.json", tmp_path / "plan.json"
    command = ["export", "balanced", "--model", "hunyuan-video-t2v-720p", "--to", "cache-dit"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "lost:" in shown.err and "lost:" not in shown.out
    assert main([*command, "-o", str(out)]) == 0
    assert json.loads(out.read_text()) == json.loads(shown.out)
    assert main([*command, "-o", str(out)]) == 2 and "exists already" in capsys.readouterr().err
    assert main(["import", str(out), "--model", "hunyuan-video-t2v-720p", "-o", str(plan)]) == 0
    there, back = load_preset("hunyuan-video-t2v-720p", "balanced"), CachePlan.load(plan)
    assert back.prediction.compute_steps == there.prediction.compute_steps
    assert back.sigmas == there.sigmas and "config of cache-dit in mask.json" in str(back)
    capsys.readouterr()
    for word in ("balanced", "paper"):
        assert main(["export", word, "--to", "cache-dit", "-o", str(tmp_path / "no.json")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [out, plan]

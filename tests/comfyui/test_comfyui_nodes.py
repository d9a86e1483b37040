"""Bad input to the nodes: a line for ComfyUI's error box, and no silent full run."""

import inspect
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from integrations.comfyui.draw_graph import draw
from integrations.comfyui.intervals import BlockDeltas
from integrations.comfyui.nodes import Plan, Report, Sigmas
from integrations.comfyui.wrappers import calc_cond_batch, outer_sample, predict_noise
from profiling_core.errors import PlanError
from profiling_core.plan.presets import load_preset
from tree_paths import ROOT

STEPS = 14
SOME = [0, 1, 2, 4, 7, 10, 12, 13]
WORKFLOWS = sorted((ROOT / "integrations" / "comfyui" / "workflows").glob("*.json"))


def refused(call: Any, *given: Any, **named: Any) -> str:
    """The error's line."""
    with pytest.raises(PlanError) as caught:
        call(*given, **named)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_plan_of_another_model_is_refused_by_the_node(world: Any, planner: Any) -> None:
    load_preset("hunyuan-video-t2v-720p", "paper").save(planner.file)
    line = refused(Plan().apply, world.model("wan"), plan_file=str(planner.file))
    assert "has 20 double_blocks, this model none" in line
    load_preset("wan2.1-t2v-mini", "balanced").save(planner.file)
    line = refused(Plan().apply, world.model("wan"), plan_file=str(planner.file))
    assert "has 12 blocks, this model 6" in line


def test_a_plan_file_that_is_missing_is_named(world: Any) -> None:
    line = refused(Plan().apply, world.model("wan"), plan_file="/nowhere/plan.json")
    assert line == "plan file /nowhere/plan.json: No such file or directory"
    for file in ("/nowhere", "/dev/zero"):  # which has no end
        assert Plan.IS_CHANGED(plan_file=file) != Plan.IS_CHANGED(plan_file=file)


def test_a_plan_file_that_changed_is_read_again(planner: Any, world: Any) -> None:
    model = world.model("wan")
    planner(model, world.sigmas(model, STEPS), SOME, "hold")
    first = Plan.IS_CHANGED(plan_file=str(planner.file))
    assert first == Plan.IS_CHANGED(plan_file=f" {planner.file}\n")
    planner(model, world.sigmas(model, STEPS), SOME, "linear")
    assert Plan.IS_CHANGED(plan_file=str(planner.file)) != first
    assert Plan.IS_CHANGED(plan="balanced") == Plan.IS_CHANGED(plan="fast", plan_file="") == ""


def test_a_sampler_that_cannot_is_refused_with_those_that_can(world: Any) -> None:
    model = world.model("wan")
    (planned,) = Plan().apply(model)
    sigmas = world.sigmas(model, STEPS)
    line = refused(world.sample, planned, world.sampler("heun"), sigmas)
    assert line.startswith("the sampler 'heun' cannot run by a plan")
    assert "take one of euler, ddim, uni_pc, uni_pc_bh2, dpmpp_2m, res_multistep" in line
    line = refused(world.sample, planned, world.sampler("euler", s_churn=0.5), sigmas)
    assert "adds noise (s_churn = 0.5)" in line
    own = world.own_sampler(lambda clean, x, levels: x)
    assert "or is not ComfyUI's own" in refused(world.sample, planned, own, sigmas)


def test_two_plans_on_one_model_are_refused(world: Any) -> None:
    (planned,) = Plan().apply(world.model("wan"))
    assert "has a ProfilingDiT Plan already" in refused(Plan().apply, planned)


def test_another_cache_on_the_model_is_refused_before_and_after(world: Any) -> None:
    model = world.model("wan")
    sigmas = world.sigmas(model, STEPS)
    assert "another cache ('easycache')" in refused(Plan().apply, world.with_other_cache(model))
    both = world.with_other_cache(Plan().apply(model)[0])
    line = refused(world.sample, both, world.sampler("euler"), sigmas)
    assert "another cache ('easycache')" in line


def test_a_model_that_is_swapped_between_runs_is_checked_again(world: Any, planner: Any) -> None:
    model, euler = world.model("wan"), world.sampler("euler")
    sigmas = world.sigmas(model, STEPS)
    planned = planner(model, sigmas, SOME, "hold")
    first = world.sample(planned, euler, sigmas)
    planned.model.diffusion_model = world.model("wan", seed=1).model.diffusion_model
    assert not torch.equal(world.sample(planned, euler, sigmas), first)
    planned.model.diffusion_model = world.model("wan", blocks=8).model.diffusion_model
    assert "has 6 blocks, this model 8" in refused(world.sample, planned, euler, sigmas)


def test_levels_that_were_shortened_already_are_not_shortened_again(world: Any) -> None:
    model = world.model("wan")
    sigmas = world.sigmas(model, 20)
    (planned,) = Plan().apply(model)
    shortened, text = Sigmas().shorten(sigmas, "wan2.1-t2v-14B")
    assert len(shortened) == 11 and "its speed is kept" in text
    line = refused(world.sample, planned, world.sampler("dpmpp_2m"), shortened)
    assert "were shortened from 20 to 10 steps by ProfilingDiT Sigmas" in line


def test_sigmas_alone_refuse_a_plan_that_reuses() -> None:
    line = refused(Sigmas().shorten, torch.linspace(1, 0, 21), "wan2.1-t2v-14B", "paper")
    assert "which SIGMAS alone cannot" in line
    line = refused(Sigmas().shorten, torch.linspace(1, 0, 21), "wan2.1-t2v-mini", "split")
    assert "no preset 'split' for wan2.1-t2v-mini: there are paper, release, quality" in line


def test_noise_levels_outside_the_whole_run_are_refused(world: Any, planner: Any) -> None:
    model, euler = world.model("wan"), world.sampler("euler")
    (planned,) = Plan().apply(model, whole_run=world.sigmas(model, 20))
    line = refused(world.sample, planned, euler, world.sigmas(model, 30)[10:])
    assert "are no part of the whole run's 20" in line


def test_a_report_without_a_plan_or_a_run_says_what_to_connect(world: Any) -> None:
    model = world.model("wan")
    assert "connect the output of ProfilingDiT Plan" in refused(Report().read, model, None)
    (planned,) = Plan().apply(model)
    assert "no sampler has run this MODEL" in refused(Report().read, planned, None)


def test_a_model_that_is_no_flow_is_refused(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = world.model("wan")
    (planned,) = Plan().apply(model)
    monkeypatch.setattr(planned, "get_model_object", lambda name: object(), raising=False)
    line = refused(world.sample, planned, world.sampler("euler"), world.sigmas(model, STEPS))
    assert "is not sampled as a flow" in line


def test_a_workflow_of_another_version_runs_with_the_defaults_of_this_one() -> None:
    for node in NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        given = {**inputs["required"], **inputs.get("optional", {})}
        assert [*parameters][1:] == [*given]
        for name in inputs.get("optional", {}):
            assert parameters[name].default is not inspect.Parameter.empty


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_an_example_workflow_fits_the_nodes_and_can_be_drawn(file: Path, tmp_path: Path) -> None:
    draw(file, tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    graph = json.loads(file.read_text(encoding="utf-8"))
    ours = {each["class_type"] for each in graph.values()} & set(NODE_CLASS_MAPPINGS)
    assert {"ProfilingDiTPlan", "ProfilingDiTReport"} <= ours <= set(NODE_DISPLAY_NAME_MAPPINGS)
    for each in graph.values():
        links = [value for value in each["inputs"].values() if isinstance(value, list)]
        assert all(node in graph for node, _ in links)
        node = NODE_CLASS_MAPPINGS.get(each["class_type"])
        if node is not None:
            inputs = node.INPUT_TYPES()
            known = {**inputs["required"], **inputs.get("optional", {})}
            assert set(inputs["required"]) <= set(each["inputs"]) <= set(known)


def test_a_model_of_several_latents_in_one_is_refused() -> None:
    guider = SimpleNamespace(model_options={})
    executor, sigmas = SimpleNamespace(class_obj=guider), torch.linspace(1, 0, 15)
    line = refused(outer_sample, executor, None, None, None, sigmas, latent_shapes=[(1,), (2,)])
    assert "several latents packed into one" in line


def test_a_model_that_is_called_outside_a_run_is_an_error() -> None:
    options: dict[str, Any] = {"transformer_options": {}}
    assert "outside of a sampler's run" in refused(predict_noise, None, None, None, options)
    line = refused(calc_cond_batch, None, None, None, None, None, options)
    assert "outside of a sampler's run" in line


def test_what_is_added_between_the_blocks_is_no_part_of_a_delta(world: Any, planner: Any) -> None:
    model, euler = world.model("wan"), world.sampler("euler")
    sigmas = world.sigmas(model, STEPS)
    patched, blocks, whole = (
        planner(model, sigmas, SOME, "hold", intervals=each) for each in ([[1, 1]], [[1, 1]], None)
    )
    patches = {"double_block": [lambda args: args]}
    patched.model_options["transformer_options"]["patches"] = patches
    line = refused(world.sample, patched, euler, sigmas)
    assert "another node adds to the stream between the blocks (patch 'double_block')" in line
    inner = model.model.diffusion_model
    inner.__class__ = type("VaceWanModel", (type(inner),), {})
    line = refused(world.sample, blocks, euler, sigmas)
    assert "VaceWanModel adds to the stream between its blocks" in line
    assert world.sample(whole, euler, sigmas).isfinite().all()


@pytest.fixture
def deltas(world: Any, planner: Any) -> Any:
    """At step 0 of a plan of blocks, in the model's own evaluation."""
    model = world.model("wan")
    sigmas = world.sigmas(model, STEPS)
    found = BlockDeltas(
        planner.plan(model, sigmas, SOME, "hold", intervals=[[1, 1]]), place="device"
    )
    found.begin(0)
    with found.evaluation(None):
        yield found


def call(deltas: BlockDeltas, *uuids: str) -> None:
    options = {"uuids": [*uuids], "cond_or_uncond": [0] * len(uuids)}
    args = {"img": torch.ones(len(uuids), 2, 3), "transformer_options": options}
    extra = {"original_block": lambda args: {"img": 2 * args["img"]}}
    deltas.replacements({})["double_block", 1](args, extra)


def test_a_conditioning_for_two_areas_has_no_delta_of_blocks(deltas: Any) -> None:
    call(deltas, "a", "b")
    assert "for several areas of the picture" in refused(call, deltas, "a")
    assert "for several areas of the picture" in refused(call, deltas, "c", "c")


def test_a_model_that_asks_for_no_replacements_is_no_silent_full_run(deltas: Any) -> None:
    assert "another node has changed its forward" in refused(deltas.check_asked)
    call(deltas, "a")
    deltas.check_asked()


def test_conditionings_on_several_gpus_have_no_delta_of_blocks(deltas: Any) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(refused(call, deltas, "a")))
    thread.start()
    thread.join()
    assert "on several GPUs at once" in found[0]


def test_a_speed_that_a_plan_cannot_have_is_refused(world: Any) -> None:
    model, euler = world.model("wan"), world.sampler("euler")
    sigmas = world.sigmas(model, STEPS)
    (slower,) = Plan().apply(model, "balanced", speedup=0.5)
    assert "give 1 or more" in refused(world.sample, slower, euler, sigmas)
    (blocks,) = Plan().apply(model, "paper", speedup=2.0)
    assert "reuses blocks, its speed is fixed" in refused(world.sample, blocks, euler, sigmas)

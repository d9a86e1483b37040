"""What the Wan2.1 pipeline has that the other tree has not; tests/trees holds the contract."""

from inspect import signature
from pathlib import Path

import pytest
import torch
from torch import Tensor

from profiling_core.errors import InputError
from profiling_core.parallel.degrees import Degrees
from tree_cases import TreeCase, wan_case
from wan.checks import Load, check_memory, gpu_or_cpu, sizes_of
from wan.configs import WAN_CONFIGS
from wan.image2video import WanFLF2V, WanI2V
from wan.sigmas import sigmas_fp32
from wan.text2video import WanT2V
from wan_toys import TINY_DIT, seen_moves


@pytest.fixture(scope="module")
def tree(checkpoint: Path) -> TreeCase:
    return wan_case(checkpoint)


@pytest.fixture(scope="module")
def pipeline(tree: TreeCase) -> WanT2V:
    return tree.open_pipeline()


def calls_of(tree: TreeCase, pipeline: WanT2V, **changes: object) -> list[Tensor]:
    """The timestep of every model call of one clip."""
    seen: list[Tensor] = []
    hook = pipeline.model.register_forward_pre_hook(lambda model, args: seen.append(args[1]))
    tree.sample(pipeline, **changes)
    hook.remove()
    return seen


def test_dpm_runs_plans_exactly_and_jumps(tree: TreeCase, pipeline: WanT2V) -> None:
    grid = {"solver": "dpm++", "sigmas": list(sigmas_fp32("dpm++", 6, 5.0))}
    bare = tree.sample(pipeline, sample_solver="dpm++")
    for site in (tree.intervals(*range(6)), tree.prediction(*range(6), skip="jump")):
        plan = tree.plan(site, **grid)
        assert torch.equal(tree.sample(pipeline, sample_solver="dpm++", plan=plan), bare)
    plan = tree.plan(tree.prediction(0, 1, 3, 5, skip="jump"), **grid)
    jumped = calls_of(tree, pipeline, sample_solver="dpm++", plan=plan)
    every = calls_of(tree, pipeline, sample_solver="dpm++")
    assert jumped == [t for step in (0, 1, 3, 5) for t in every[2 * step : 2 * step + 2]]


def test_a_fitted_plan_weights_the_solver_and_weights_of_zero_are_a_plain_jump(
    tree: TreeCase, pipeline: WanT2V
) -> None:
    jump, clips = tree.prediction(0, 1, 3, 5, skip="jump"), []
    for size in (None, 0.0, 0.2):
        weights = {str(step): [size, size, size] for step in (0, 1, 3, 5)}
        site = jump if size is None else {**jump, "solver_weights": weights}
        clips.append(tree.sample(pipeline, plan=tree.plan(site)))
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])


def test_both_branches_get_one_timestep_object(tree: TreeCase, pipeline: WanT2V) -> None:
    seen = calls_of(tree, pipeline)
    assert all(t.dtype == torch.int64 and t.shape == (1,) for t in seen)
    assert all(cond is uncond for cond, uncond in zip(seen[::2], seen[1::2], strict=True))


def test_bf16_weights_sample_a_clip_alike(tree: TreeCase, pipeline: WanT2V) -> None:
    half = tree.open_pipeline(torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert (tree.sample(half) - tree.sample(pipeline)).abs().mean() < 0.1


def test_convert_model_dtype_loads_the_transformer_in_bf16(
    tree: TreeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = tree.module.load_transformer
    monkeypatch.setattr(
        tree.module, "load_transformer", lambda *args: loaded.append(load(*args)) or loaded[-1]
    )
    for given in ((), ("--convert_model_dtype",)):
        argv = tree.argv(target=tmp_path / f"clip{len(given)}.mp4", frames=5)
        assert tree.script.main([*argv, *given]) == 0
    types = [{p.dtype for p in model.parameters()} for model in loaded]
    assert types == [{torch.float32}, {torch.bfloat16}]
    assert {file.name for file in tmp_path.iterdir()} == {"clip0.mp4", "clip1.mp4"}


def test_text_length_comes_from_the_checkpoint(pipeline: WanT2V) -> None:
    assert pipeline.text_encoder.text_len == TINY_DIT["text_len"]


def test_parts_leave_the_gpu_while_others_work(
    tree: TreeCase, pipeline: WanT2V, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, seen = tree.sample(pipeline), seen_moves(pipeline, monkeypatch)
    decode = pipeline.vae.decode
    monkeypatch.setattr(pipeline.vae, "decode", lambda z: seen.append("decoding") or decode(z))
    pipeline.model.register_forward_pre_hook(lambda model, args: seen.append("denoising"))
    assert torch.equal(tree.sample(pipeline, offload_model=True), expected)
    first, *between, last = [k for k, what in enumerate(seen) if what == "denoising"]
    assert seen[:first] == ["model cpu", "text_encoder cpu:0", "text_encoder cpu", "model cpu:0"]
    assert seen[last + 1 :] == ["model cpu", "decoding"] and len(between) == tree.calls - 2
    seen.clear()
    tree.sample(pipeline, offload_model=False)
    assert [what for what in seen if what != "denoising"] == [
        "text_encoder cpu:0",
        "model cpu:0",
        "decoding",
    ]


def test_the_host_needs_room_for_what_is_offloaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the host is short here: a GPU with room for everything is taken for granted."""
    sizes, cuda = sizes_of(checkpoint, WAN_CONFIGS["t2v-mini"]), torch.device("cuda")
    free = {"cuda": 10**12, "cpu": sizes.encoder + 1000}
    monkeypatch.setattr(
        "profiling_core.runtime.memory.available_bytes", lambda device: free[device.type]
    )
    for t5_cpu in (False, True):
        check_memory(sizes, Load(t5_cpu=t5_cpu, offload_model=False), cuda)
        says = r"on cpu: transformer .* --offload_model false brings it to 0\.0 GB; else"
        with pytest.raises(InputError, match=says):
            check_memory(sizes, Load(t5_cpu=t5_cpu), cuda)
    free["cpu"] += 3 * sizes.parameters  # of four bytes
    check_memory(sizes, Load(torch.bfloat16), cuda)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="on cpu: transformer "):  # one for each process
        check_memory(sizes, Load(torch.bfloat16, degrees=Degrees(2)), cuda)


def test_the_official_constructor_calls_work_by_position_and_by_name(
    tree: TreeCase, pipeline: WanT2V, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WAN_CONFIGS["t2v-mini"]
    flags = dict.fromkeys(("t5_fsdp", "dit_fsdp", "use_usp"), False)
    named = {"config": config, "checkpoint_dir": str(checkpoint), "device_id": 0, "rank": 0}
    for own in (
        WanT2V(config, str(checkpoint), 0, 0, False, False, False, True),
        WanT2V(**named, **flags, t5_cpu=True),
    ):
        assert own.t5_cpu and torch.equal(tree.sample(own), tree.sample(pipeline))
    for asked in ({"rank": 1}, {"use_usp": True}, {"dit_fsdp": True}, {"t5_fsdp": True}):
        (argument,) = (f"{name}={value}" for name, value in asked.items())
        with pytest.raises(InputError, match=f"^{argument}: this is process 0 of 1: give the pro"):
            WanT2V(**named | asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu_or_cpu(1) == torch.device("cuda", 1)
    with pytest.raises(InputError, match="device_id 2: this machine has GPUs 0 to 1"):
        WanT2V(**named | {"device_id": 2})


def test_every_pipeline_has_the_official_arguments_in_their_order() -> None:
    made = ["config", "checkpoint_dir", "device_id", "rank", "t5_fsdp", "dit_fsdp", "use_usp"]
    sampling = ["frame_num", "shift", "sample_solver", "sampling_steps", "guide_scale", "n_prompt"]
    pictures = {WanT2V: ["size"], WanI2V: ["img", "max_area"]}
    pictures[WanFLF2V] = ["first_frame", "last_frame", "max_area"]
    for kind, own in pictures.items():
        assert [*signature(kind).parameters][:8] == [*made, "t5_cpu"]
        expected = ["self", "input_prompt", *own, *sampling, "seed", "offload_model"]
        assert [*signature(kind.generate).parameters][: len(expected)] == expected
    calls = [signature(kind.generate).parameters for kind in pictures]
    assert [call["guide_scale"].default for call in calls] == [5.0, 5.0, 5.5]
    assert WAN_CONFIGS["flf2v-14B"].sample_guide_scale == 5.0  # of the command

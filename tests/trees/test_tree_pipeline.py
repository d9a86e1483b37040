"""From prompt to clip on a tiny random checkpoint: repeatable, and steered by plans."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from loguru import logger
from torch import Tensor, nn

from devices import NEEDS_CUDA
from host_waits import DEVICE, HostWaits
from profiling_core.errors import InputError, PlanError
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.presets import load_preset
from profiling_core.plan.regrid import SPEEDUPS
from tree_cases import PROMPT, STEPS, TreeCase


@pytest.fixture(scope="module")
def pipeline(tree: TreeCase) -> Any:
    return tree.open_pipeline()


@pytest.fixture(scope="module")
def full(tree: TreeCase, pipeline: Any) -> Tensor:
    return tree.sample(pipeline)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="INFO")
    yield lines
    logger.remove(sink)


def test_the_attention_kernel_is_chosen_once_for_what_the_model_attends_with_and_logged(
    tree: TreeCase, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, attended = [], set()
    monkeypatch.setattr(tree.module, "choose_kernel", lambda *of: chosen.append(of) or "a kernel")
    kernels = sys.modules[tree.module.attention.__module__]
    plain = kernels._sdpa

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended.add((v.device, v.dtype, v.shape[-1]))
        return plain(q, k, v)

    monkeypatch.setattr(kernels, "_sdpa", attend)
    tree.sample(tree.open_pipeline())
    assert messages.count("attention on cpu: a kernel") == 1
    assert len(chosen) == 1 and set(chosen) == attended


def test_a_clip_has_its_shape_and_range(tree: TreeCase, full: Tensor) -> None:
    assert full.shape == ((1,) if tree.batched else ()) + (3, 5, 32, 32)
    assert full.dtype == torch.float32
    assert full.min() >= tree.black and full.max() <= 1 and full.std() > 0.01


def test_the_same_seed_gives_the_same_clip(tree: TreeCase, pipeline: Any, full: Tensor) -> None:
    assert torch.equal(tree.sample(pipeline), full)
    assert not torch.equal(tree.sample(pipeline, seed=4), full)


def test_prompt_shift_and_guidance_matter(tree: TreeCase, pipeline: Any, full: Tensor) -> None:
    own = {
        "wan": ({"sample_solver": "dpm++"}, {"n_prompt": "noise"}),
        "hunyuan": ({"embedded_guidance": 1.0}, {"flow_reverse": False}),
    }
    for change in ({"prompt": "a green square"}, {"shift": 9.0}, {"guidance": 2.0}):
        assert not torch.equal(tree.sample(pipeline, **change), full), change
    for change in own[tree.name]:
        assert not torch.equal(tree.sample(pipeline, **change), full), change


def test_statistics_of_a_full_run(tree: TreeCase, pipeline: Any) -> None:
    tree.sample(pipeline)
    run = pipeline.last_run
    assert (run.solver, run.steps, run.solver_steps, run.seed) == (tree.solver, STEPS, STEPS, 3)
    assert run.block_runs == run.block_runs_full == tree.calls * tree.blocks
    assert (run.model_calls, run.reused_calls, run.peak_bytes) == (tree.calls, 0, 0)
    assert run.plan is None
    assert min(run.denoise_seconds, run.encode_seconds, run.decode_seconds) > 0


def test_an_all_compute_plan_is_bit_identical_to_no_plan(
    tree: TreeCase, pipeline: Any, full: Tensor
) -> None:
    every = range(STEPS)
    for site in (tree.intervals(*every), tree.prediction(*every, skip="jump")):
        assert torch.equal(tree.sample(pipeline, plan=tree.plan(site)), full)
        assert pipeline.last_run.block_runs == tree.calls * tree.blocks


def test_intervals_skip_blocks_and_hold_deltas(tree: TreeCase, pipeline: Any, full: Tensor) -> None:
    plan = tree.plan(tree.intervals(0, 1, 3))
    clip = tree.sample(pipeline, plan=plan)
    run = pipeline.last_run
    assert run.block_runs == tree.calls * tree.blocks - len(tree.branches) * 3 * 2
    assert run.reused_intervals == len(tree.branches) * 3 and run.model_calls == tree.calls
    assert run.peak_bytes == len(tree.branches) * tree.stream_bytes  # one delta per branch
    assert not torch.equal(clip, full)
    assert torch.equal(tree.sample(pipeline, plan=plan), clip)


@pytest.mark.parametrize("skip", ["hold", "linear"])
def test_a_forecast_prediction_leaves_the_model_out(
    tree: TreeCase, pipeline: Any, skip: str
) -> None:
    tree.sample(pipeline, plan=tree.plan(tree.prediction(0, 1, 3, 5, skip=skip)))
    run, branches = pipeline.last_run, len(tree.branches)
    assert (run.model_calls, run.reused_calls) == (4 * branches, 2 * branches)
    assert run.solver_steps == STEPS and run.block_runs == 4 * branches * tree.blocks


def test_a_jump_gives_the_solver_only_the_computed_levels(tree: TreeCase, pipeline: Any) -> None:
    seen: list[float] = []

    def remember(model: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(float(kwargs["t"] if "t" in kwargs else args[1]))

    hook = pipeline.model.register_forward_pre_hook(remember, with_kwargs=True)
    tree.sample(pipeline, plan=tree.plan(tree.prediction(0, 1, 3, 5, skip="jump")))
    assert pipeline.last_run.solver_steps == 4
    jumped, seen[:] = list(seen), []
    tree.sample(pipeline)
    hook.remove()
    n = len(tree.branches)
    assert jumped == [t for step in (0, 1, 3, 5) for t in seen[n * step : n * step + n]]


def test_a_plan_is_regridded_to_another_grid(tree: TreeCase, pipeline: Any) -> None:
    plan = tree.plan(tree.prediction(0, 1, 3, 5, skip="jump"))
    tree.sample(pipeline, steps=12, shift=3.0, plan=plan)
    assert pipeline.last_run.steps == 12
    assert 4 <= pipeline.last_run.solver_steps < 12


@pytest.mark.parametrize("error", [RuntimeError("block failed"), KeyboardInterrupt()])
def test_an_exception_leaves_the_model_as_it_was(
    tree: TreeCase, pipeline: Any, full: Tensor, error: BaseException
) -> None:
    model = pipeline.model
    plain = [type(part) for part in (model, *tree.lists_of(model))]

    def fail(*args: object) -> None:
        raise error

    hook = tree.lists_of(model)[-1][1].register_forward_hook(fail)
    with pytest.raises(type(error)):
        tree.sample(pipeline, plan=tree.plan(tree.intervals(0, 3)))
    hook.remove()
    assert [type(part) for part in (model, *tree.lists_of(model))] == plain
    assert torch.equal(tree.sample(pipeline), full)


def test_the_cache_is_gone_before_the_vae_decodes(
    tree: TreeCase, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = []
    attach = tree.module.DeltaCache.attach

    def remember(self: Any, model: nn.Module) -> Any:
        caches.append(self)
        return attach(self, model)

    def decode(latent: Tensor) -> Tensor:
        assert caches[0].bytes_held == 0
        assert "_delta_cache" not in pipeline.model.__dict__
        return latent

    monkeypatch.setattr(tree.module.DeltaCache, "attach", remember)
    monkeypatch.setattr(pipeline.vae, "decode", decode)
    tree.sample(pipeline, plan=tree.plan(tree.intervals(0, 3)))
    assert caches[0].stats.peak_bytes > 0


def test_a_plan_is_logged_before_step_0_and_counted_after(
    tree: TreeCase, pipeline: Any, messages: list[str]
) -> None:
    tree.sample(pipeline, plan=tree.plan(tree.intervals(0, 1, 3), name="paper"))
    text, total = "\n".join(messages), tree.calls * tree.blocks
    assert f"plan 'paper' for {tree.plan_model}" in text
    assert f"computes 24 of {total} block runs" in text and "holds at most" in text
    assert text.index("holds at most") < text.index(f"ran 24 of {total} blocks")
    assert "--delta_cache" not in text  # a file may have any name
    assert "denoising took" in text and "seed 3" in text


IMPOSSIBLE = {
    "wan": {"size": (40, 32), "sample_solver": "euler"},
    "hunyuan": {"size": (0, 32), "num_videos": 0},
}


def test_impossible_clips_are_refused(tree: TreeCase, pipeline: Any) -> None:
    frames = tree.options["frames"].lstrip("-")
    with pytest.raises(InputError, match=rf"{frames} 6 is not 4n\+1: take 5 or 9"):
        tree.sample(pipeline, frames=6)
    for name, value in {"steps": 0, "frames": 0, **IMPOSSIBLE[tree.name]}.items():
        with pytest.raises(InputError):
            tree.sample(pipeline, **{name: value})


def test_plans_that_do_not_fit_are_refused_before_loading(tree: TreeCase) -> None:
    fitting = tree.plan(tree.intervals(0, 3))
    name, depth = next(iter(tree.block_lists.items()))
    assert tree.check_plan(fitting, tree.checkpoint) == fitting
    wrong = ("cond",) if len(tree.branches) == 2 else ("cond", "uncond")
    site = tree.prediction(0, skip="hold") | {"compute_steps": {key: [0, 1] for key in wrong}}
    with pytest.raises(PlanError, match=r"knows the branch.*: take a plan with"):
        tree.check_plan(tree.plan(site), tree.checkpoint)
    deeper = fitting.model.model_copy(update={"block_lists": {**tree.block_lists, name: 30}})
    with pytest.raises(PlanError, match=f"has 30 {name}, this model {depth}"):
        tree.check_plan(fitting.model_copy(update={"model": deeper}), tree.checkpoint)


@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "paper"])
def test_presets_named_by_their_speed_keep_it_at_other_steps(tree: TreeCase, preset: str) -> None:
    bundled = {"wan": "wan2.1-t2v-mini", "hunyuan": "hunyuan-video-t2v-mini"}[tree.name]
    ran = tree.fitted(load_preset(bundled, preset))
    assert ran.steps == 30
    if preset == "paper":
        assert "its noise levels are kept" in ran.notes[0]
    else:
        assert "its speed is kept" in ran.notes[0]
        assert speedup_flops(ran) == pytest.approx(SPEEDUPS[preset], rel=0.1)


def test_numbers_that_are_not_finite_are_no_clip(
    tree: TreeCase, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=rf"sampling with .*1e\+38.* {tree.shift}.* gave"):
        tree.sample(pipeline, guidance=1e38)
    nan = torch.full((3, 5, 32, 32), torch.nan)
    monkeypatch.setattr(pipeline.vae, "decode", lambda latent: nan)
    with pytest.raises(InputError, match=r"decoding gave .* download .* again"):
        tree.sample(pipeline)


@pytest.mark.parametrize("kind", ["full", "intervals", "linear", "jump"])
def test_a_denoising_loop_never_waits_for_the_device(
    tree: TreeCase, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """On a device without numbers, where any read would be an error; reads at the end are not."""
    pipeline = tree.open_pipeline(fp32=True)
    if tree.name == "wan":
        prompts = [x.to(DEVICE) for x in pipeline.encode([PROMPT, PROMPT])]
        inputs, noise = prompts, torch.empty(16, 2, 4, 4, device=DEVICE)
    else:
        found = pipeline.encode(PROMPT, "red", video_length=5)
        inputs = [replace(found, states=found.states.to(DEVICE), pooled=found.pooled.to(DEVICE))]
        noise = torch.empty(1, 16, 2, 4, 4, device=DEVICE)
    sites = {
        "full": (),
        "intervals": (tree.intervals(0, 1, 3),),
        **{skip: (tree.prediction(0, 1, 3, skip=skip),) for skip in ("linear", "jump")},
    }
    pipeline.model.to(DEVICE)
    monkeypatch.setattr(pipeline, "device", torch.device(DEVICE))
    monkeypatch.setattr(tree.module, "check_finite", lambda *args: None)
    plan = tree.plan(*sites[kind]) if sites[kind] else None
    steps = {tree.arguments["steps"]: STEPS}
    waits = HostWaits()
    walk = tree.module.shown_steps

    def counted(*args: Any) -> Iterator[int]:
        with waits:
            yield from walk(*args)

    monkeypatch.setattr(tree.module, "shown_steps", counted)
    pipeline.denoise(*inputs, noise, plan=plan, progress=False, **steps)
    assert pipeline.last_run.model_calls > 0 and dict(waits.found) == {}


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_gpu_samples_the_same_clip(tree: TreeCase, pipeline: Any, elsewhere: bool) -> None:
    """elsewhere: the encoders' memory is not the GPU's."""
    options = {"noise_device": "cpu", "plan": tree.plan(tree.intervals(0, 1, 3))}
    expected = tree.sample(pipeline, **options)
    switch = {"wan": "t5_cpu", "hunyuan": "use_cpu_offload"}[tree.name]
    on_gpu = tree.open_pipeline(device="cuda", **{switch: elsewhere})
    first = tree.sample(on_gpu, **options)
    assert (first.cpu() - expected).abs().mean() < 0.05
    assert torch.equal(tree.sample(on_gpu, **options), first)
    place = "cpu" if elsewhere or tree.name == "wan" else "cuda"
    assert next(on_gpu.model.parameters()).device.type == place
    if tree.name == "wan":
        assert torch.equal(tree.sample(on_gpu, offload_model=False, **options), first)
        assert next(on_gpu.model.parameters()).device.type == "cuda"


def test_what_an_encoder_does_not_see_of_a_prompt_is_logged(
    tree: TreeCase, pipeline: Any, messages: list[str]
) -> None:
    """Of each encoder, of prompts and negative prompts; a prompt that just fits is whole."""
    start = "the prompt is longer than the "
    first = {"wan": 16 - 1, "hunyuan": 12}[tree.name]
    ends = {"wan": [f"{first + 1} tokens of the text encoder, which"]}
    ends["hunyuan"] = [
        f"{12 + 95} tokens of the text encoder with its template, which",
        "77 tokens of the second text encoder, which",
    ]
    words = [f"word{number}" for number in range(80)]
    clips = []
    for prompt in (" ".join([*words, "red"]), " ".join([*words, "green"])):
        clips.append(tree.sample(pipeline, prompt, steps=1))
        lines = [line for line in messages if line.startswith(start)]
        messages.clear()
        assert len(lines) == len(ends[tree.name])
        assert all(end in line for end, line in zip(ends[tree.name], lines, strict=True))
        assert f"does not see its end: 'word{first} word{first + 1} " in lines[0]
        assert lines[-1].endswith(f"{prompt[-3:]}'") or lines[-1].endswith("...'")
    assert torch.equal(*clips)
    tree.sample(pipeline, " ".join(words[:first]), steps=1, n_prompt="red " * 80, guidance=2.0)
    assert {line.split("its end: ")[1][:6] for line in messages if start in line} == {"'red r"}

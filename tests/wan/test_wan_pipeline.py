"""From prompt to clip on a tiny random checkpoint: repeatable, and steered by plans."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger
from torch import Tensor

import wan.text2video
from profiling_core.errors import InputError, PlanError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops
from profiling_core.plan.presets import load_preset
from profiling_core.plan.regrid import SPEEDUPS
from wan.checks import check_memory, check_plan, plan_for_run
from wan.configs import WAN_CONFIGS
from wan.sigmas import sigmas_fp32
from wan.text2video import WanT2V
from wan_toys import TINY_DIT

STEPS = 6
CLIP = {"size": (32, 32), "frame_num": 5, "sampling_steps": STEPS, "seed": 3, "progress": False}
PROMPT = "a red circle moving right over blue stripes"


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> WanT2V:
    return WanT2V(WAN_CONFIGS["t2v-mini"], checkpoint, "cpu")


@pytest.fixture(scope="module")
def full(pipeline: WanT2V) -> Tensor:
    return pipeline.generate(PROMPT, **CLIP)


def both(*steps: int) -> dict[str, list[int]]:
    return {"cond": list(steps), "uncond": list(steps)}


def tiny_plan(*sites: dict[str, Any], solver: str = "unipc", **fields: Any) -> CachePlan:
    """A plan for the tiny transformer on this file's grid."""
    model = {
        "family": "wan2.1",
        "name": "wan2.1-t2v-mini",
        "block_lists": {"blocks": TINY_DIT["num_layers"]},
        "width": TINY_DIT["dim"],
    }
    return CachePlan.build(
        name=fields.pop("name", "tiny"),
        model=model,
        steps=STEPS,
        sigmas=list(sigmas_fp32(solver, STEPS, 5.0)),
        solver=solver,
        shift=5.0,
        sites=list(sites),
        provenance={"made_by": "tests", "source": "by hand"},
        **fields,
    )


def intervals(*steps: int, runs: tuple = ((1, 2),)) -> dict[str, Any]:
    return {
        "kind": "intervals",
        "block_list": "blocks",
        "intervals": [list(run) for run in runs],
        "compute_steps": both(*steps),
        "skip": "hold",
    }


def prediction(*steps: int, skip: str) -> dict[str, Any]:
    return {"kind": "prediction", "compute_steps": both(*steps), "skip": skip}


def test_a_clip_has_its_shape_and_range(full: Tensor) -> None:
    assert full.shape == (3, 5, 32, 32) and full.dtype == torch.float32
    assert full.abs().max() <= 1 and full.std() > 0.01


def test_the_same_seed_gives_the_same_clip(pipeline: WanT2V, full: Tensor) -> None:
    assert torch.equal(pipeline.generate(PROMPT, **CLIP), full)
    assert not torch.equal(pipeline.generate(PROMPT, **{**CLIP, "seed": 4}), full)


def test_prompt_guidance_and_solver_matter(pipeline: WanT2V, full: Tensor) -> None:
    for change in (
        {"input_prompt": "a green square"},
        {"input_prompt": PROMPT, "guide_scale": 1.0},
        {"input_prompt": PROMPT, "sample_solver": "dpm++"},
        {"input_prompt": PROMPT, "n_prompt": "noise"},
    ):
        assert not torch.equal(pipeline.generate(**{**CLIP, **change}), full), change


def test_statistics_of_a_full_run(pipeline: WanT2V, full: Tensor) -> None:
    pipeline.generate(PROMPT, **CLIP)
    run = pipeline.last_run
    assert (run.solver, run.steps, run.solver_steps, run.seed) == ("unipc", STEPS, STEPS, 3)
    assert run.block_runs == run.block_runs_full == 2 * STEPS * 3
    assert (run.model_calls, run.reused_calls, run.peak_bytes) == (2 * STEPS, 0, 0)
    assert run.plan is None
    assert min(run.denoise_seconds, run.encode_seconds, run.decode_seconds) > 0


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_an_all_compute_plan_is_bit_identical_to_no_plan(pipeline: WanT2V, solver: str) -> None:
    bare = pipeline.generate(PROMPT, **CLIP, sample_solver=solver)
    for site in (intervals(*range(STEPS)), prediction(*range(STEPS), skip="jump")):
        plan = tiny_plan(site, solver=solver)
        planned = pipeline.generate(PROMPT, **CLIP, sample_solver=solver, plan=plan)
        assert torch.equal(planned, bare)
        assert pipeline.last_run.block_runs == 2 * STEPS * 3


def test_intervals_skip_blocks_and_hold_deltas(pipeline: WanT2V, full: Tensor) -> None:
    clip = pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(intervals(0, 1, 3)))
    run = pipeline.last_run
    assert run.block_runs == 2 * (3 * 3 + 3 * 1)  # three full steps, three with one block of three
    assert run.reused_intervals == 6 and run.model_calls == 2 * STEPS
    tokens = 2 * 2 * 2
    assert run.peak_bytes == 2 * tokens * TINY_DIT["dim"] * 4  # one fp32 delta per branch
    assert not torch.equal(clip, full)
    assert torch.equal(pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(intervals(0, 1, 3))), clip)


@pytest.mark.parametrize("skip", ["hold", "linear"])
def test_a_forecast_prediction_leaves_the_model_out(pipeline: WanT2V, skip: str) -> None:
    pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(prediction(0, 1, 3, 5, skip=skip)))
    run = pipeline.last_run
    assert (run.model_calls, run.reused_calls, run.solver_steps) == (8, 4, STEPS)
    assert run.block_runs == 8 * 3


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_a_jump_gives_the_solver_only_the_computed_levels(pipeline: WanT2V, solver: str) -> None:
    seen: list[int] = []
    hook = pipeline.model.register_forward_pre_hook(lambda model, args: seen.append(int(args[1])))
    plan = tiny_plan(prediction(0, 1, 3, 5, skip="jump"), solver=solver)
    pipeline.generate(PROMPT, **CLIP, sample_solver=solver, plan=plan)
    jumped, seen[:] = list(seen), []
    pipeline.generate(PROMPT, **CLIP, sample_solver=solver)
    hook.remove()
    assert jumped == [t for step in (0, 1, 3, 5) for t in seen[2 * step : 2 * step + 2]]
    assert pipeline.last_run.solver_steps == STEPS


def test_a_plan_is_carried_over_to_another_grid(pipeline: WanT2V) -> None:
    plan = tiny_plan(prediction(0, 1, 3, 5, skip="jump"))
    clip = {**CLIP, "sampling_steps": 10}
    pipeline.generate(PROMPT, **clip, shift=3.0, plan=plan)
    assert pipeline.last_run.steps == 10
    assert 4 <= pipeline.last_run.solver_steps < 10


def test_both_branches_get_one_timestep_object(pipeline: WanT2V) -> None:
    seen: list[Tensor] = []
    hook = pipeline.model.register_forward_pre_hook(lambda model, args: seen.append(args[1]))
    pipeline.generate(PROMPT, **CLIP)
    hook.remove()
    assert all(t.dtype == torch.int64 and t.shape == (1,) for t in seen)
    assert all(cond is uncond for cond, uncond in zip(seen[::2], seen[1::2], strict=True))


@pytest.mark.parametrize("error", [RuntimeError("block failed"), KeyboardInterrupt()])
def test_an_exception_leaves_the_model_as_it_was(
    pipeline: WanT2V, full: Tensor, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    plain = type(pipeline.model), type(pipeline.model.blocks)

    def fail(*args: object) -> None:
        raise error

    hook = pipeline.model.blocks[1].register_forward_hook(fail)
    with pytest.raises(type(error)):
        pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(intervals(0, 3)))
    hook.remove()
    assert (type(pipeline.model), type(pipeline.model.blocks)) == plain
    assert torch.equal(pipeline.generate(PROMPT, **CLIP), full)


def test_the_cache_is_gone_before_the_vae_decodes(
    pipeline: WanT2V, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = []
    attach = wan.text2video.DeltaCache.attach

    def remember(self: Any, model: torch.nn.Module) -> Any:
        caches.append(self)
        return attach(self, model)

    def decode(latent: Tensor) -> Tensor:
        assert caches[0].bytes_held == 0
        assert "_delta_cache" not in pipeline.model.__dict__
        return latent

    monkeypatch.setattr(wan.text2video.DeltaCache, "attach", remember)
    monkeypatch.setattr(pipeline.vae, "decode", decode)
    pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(intervals(0, 3)))
    assert caches[0].stats.peak_bytes > 0


def test_bf16_weights_sample_a_clip_alike(checkpoint: Path, full: Tensor) -> None:
    half = WanT2V(WAN_CONFIGS["t2v-mini"], checkpoint, "cpu", torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert (half.generate(PROMPT, **CLIP) - full).abs().mean() < 0.1


def test_text_length_comes_from_the_checkpoint(pipeline: WanT2V) -> None:
    assert pipeline.text_encoder.text_len == TINY_DIT["text_len"]


def test_plan_is_told_before_step_0_and_counted_after(pipeline: WanT2V) -> None:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="INFO")
    plan = tiny_plan(intervals(0, 1, 3), name="paper")
    pipeline.generate(PROMPT, **CLIP, plan=plan)
    logger.remove(sink)
    text = "\n".join(lines)
    assert "plan 'paper' for wan2.1-t2v-mini" in text
    assert "computes 24 of 36 block runs" in text and "holds at most" in text
    assert text.index("holds at most") < text.index("ran 24 of 36 blocks")
    assert "--delta_cache" not in text  # a file may have any name
    assert "denoising took" in text and "seed 3" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frame_num": 6}, "frame_num 6 is not 4n.1: take 5 or 9"),
        ({"size": (40, 32)}, r"size 40\*32"),
        ({"sampling_steps": 0}, "sample_steps 0"),
        ({"sample_solver": "euler"}, "sample_solver 'euler'"),
    ],
)
def test_impossible_clips_are_refused(pipeline: WanT2V, change: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        pipeline.generate(PROMPT, **{**CLIP, **change})


def test_plans_that_do_not_fit_are_refused_before_loading(checkpoint: Path) -> None:
    grid = {"solver": "unipc", "steps": STEPS, "shift": 5.0}
    fitting = tiny_plan(intervals(0, 3))
    assert check_plan(fitting, checkpoint, **grid) == fitting
    cond_alone = {"cond": [0, 1]}
    one_branch = tiny_plan({**prediction(0, skip="hold"), "compute_steps": cond_alone})
    with pytest.raises(PlanError, match="knows the branch 'cond' alone"):
        check_plan(one_branch, checkpoint, **grid)
    deeper = fitting.model.model_copy(update={"block_lists": {"blocks": 30}})
    with pytest.raises(PlanError, match="has 30 blocks, this model 3"):
        check_plan(fitting.model_copy(update={"model": deeper}), checkpoint, **grid)


@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "paper"])
def test_presets_named_by_their_speed_keep_it_at_other_steps(preset: str) -> None:
    plan = load_preset("wan2.1-t2v-mini", preset)
    ran = plan_for_run(plan, "dpm++", 30, 3.0)
    assert ran.steps == 30
    if preset == "paper":
        assert "its noise levels are kept" in ran.notes[0]
    else:
        assert "its speed is kept" in ran.notes[0]
        assert speedup_flops(ran) == pytest.approx(SPEEDUPS[preset], rel=0.1)


def test_numbers_that_are_not_finite_are_no_clip(
    pipeline: WanT2V, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"sample_guide_scale 1e\+38 and sample_shift 5\.0 gave"):
        pipeline.generate(PROMPT, **CLIP, guide_scale=1e38)
    monkeypatch.setattr(pipeline.vae, "mean", pipeline.vae.mean * float("nan"))
    with pytest.raises(InputError, match=r"decoding gave .* download Wan2\.1_VAE\.pth again"):
        pipeline.generate(PROMPT, **CLIP)


def test_the_host_needs_room_for_what_is_offloaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the host is short here: a GPU with room for everything is taken for granted."""
    config, cuda = WAN_CONFIGS["t2v-mini"], torch.device("cuda")
    encoder = (checkpoint / config.t5_checkpoint).stat().st_size
    free = {"cuda": 10**12, "cpu": encoder + 1000}
    monkeypatch.setattr(
        "profiling_core.runtime.memory.available_bytes", lambda device: free[device.type]
    )
    for t5_cpu in (False, True):
        check_memory(checkpoint, config, cuda, torch.float32, t5_cpu, offload_model=False)
        with pytest.raises(InputError, match=r"on cpu: transformer .* --offload_model false"):
            check_memory(checkpoint, config, cuda, torch.float32, t5_cpu)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("t5_cpu", [False, True])
def test_a_gpu_samples_the_same_clip(checkpoint: Path, t5_cpu: bool) -> None:
    clip = {**CLIP, "noise_device": "cpu", "plan": tiny_plan(intervals(0, 1, 3))}
    expected = WanT2V(WAN_CONFIGS["t2v-mini"], checkpoint, "cpu").generate(PROMPT, **clip)
    pipeline = WanT2V(WAN_CONFIGS["t2v-mini"], checkpoint, "cuda", t5_cpu=t5_cpu)
    first = pipeline.generate(PROMPT, **clip)
    assert (first.cpu() - expected).abs().mean() < 0.05
    assert next(pipeline.model.parameters()).device.type == "cpu"  # offloaded
    kept = pipeline.generate(PROMPT, **clip, offload_model=False)
    assert next(pipeline.model.parameters()).device.type == "cuda"
    assert torch.equal(kept, first)

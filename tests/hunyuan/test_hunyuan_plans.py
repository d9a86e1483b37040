"""Plans through the HunyuanVideo pipeline: what runs, what is held, what is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger
from torch import Tensor

import hunyuan_runs
import hyvideo.checks
import hyvideo.pipeline
from hunyuan_runs import (
    BLOCKS,
    CLIP,
    IMAGE,
    PLANS,
    PROMPT,
    STEPS,
    TEXT,
    calls_of,
    intervals,
    prediction,
    tiny_plan,
)
from hunyuan_toys import TINY, tiny_config
from hyvideo.checks import check_plan, plan_for_run
from hyvideo.config import CONFIGS
from hyvideo.pipeline import HunyuanVideo
from profiling_core.errors import PlanError
from profiling_core.plan.cost import bytes_held, speedup_flops
from profiling_core.plan.presets import available, load_preset
from profiling_core.plan.regrid import SPEEDUPS

official_types = hunyuan_runs.official_types  # fixtures
pipeline, full = hunyuan_runs.pipeline, hunyuan_runs.full


def test_statistics_of_a_full_run(pipeline: HunyuanVideo) -> None:
    pipeline.generate(PROMPT, **CLIP)
    run = pipeline.last_run
    assert (run.solver, run.steps, run.solver_steps, run.seed) == ("euler", STEPS, STEPS, 3)
    assert run.block_runs == run.block_runs_full == STEPS * BLOCKS
    assert (run.model_calls, run.reused_calls, run.peak_bytes) == (STEPS, 0, 0)
    assert run.plan is None
    assert min(run.denoise_seconds, run.encode_seconds, run.decode_seconds) > 0


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
def test_an_all_compute_plan_is_bit_identical_to_no_plan(
    pipeline: HunyuanVideo, cfg_scale: float
) -> None:
    bare = pipeline.generate(PROMPT, **CLIP, cfg_scale=cfg_scale)
    every = range(STEPS)
    for sites in (
        (intervals(*every), intervals(*every, kind="double", runs=((0, 1),))),
        (prediction(*every, skip="jump"),),
    ):
        planned = pipeline.generate(PROMPT, **CLIP, cfg_scale=cfg_scale, plan=tiny_plan(*sites))
        assert torch.equal(planned, bare)
        assert pipeline.last_run.block_runs == STEPS * BLOCKS


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", PLANS)
def test_the_cache_holds_the_bytes_that_were_announced(
    hunyuan_checkpoint: Path, kind: str, precision: str, cfg_scale: float
) -> None:
    """Image and valid text tokens, both halves of real guidance, in the stream's type."""
    pipeline = HunyuanVideo(tiny_config(precision=precision), hunyuan_checkpoint, "cpu")
    plan = tiny_plan(*PLANS[kind])
    pipeline.generate(PROMPT, **CLIP, cfg_scale=cfg_scale, neg_prompt="red", plan=plan)
    rows, itemsize = (2 if cfg_scale > 1 else 1), (2 if precision == "bf16" else 4)
    expected = bytes_held(
        plan,
        tokens=rows * (IMAGE + TEXT),
        stream_itemsize=itemsize,
        latent_numel=rows * 16 * 2 * 4 * 4,
        prediction_itemsize=itemsize,
    )
    assert pipeline.last_run.peak_bytes == expected > 0


def test_intervals_skip_blocks_of_both_lists(pipeline: HunyuanVideo, full: Tensor) -> None:
    clip = pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(*PLANS["both"]))
    run = pipeline.last_run
    assert run.block_runs == STEPS * BLOCKS - 3 * 2 - 4 * 2
    assert run.reused_intervals == 3 * 1 + 4 * 2 and run.model_calls == STEPS
    assert not torch.equal(clip, full)
    assert torch.equal(pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(*PLANS["both"])), clip)


@pytest.mark.parametrize("skip", ["hold", "linear"])
def test_a_forecast_prediction_leaves_the_model_out(pipeline: HunyuanVideo, skip: str) -> None:
    pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(*PLANS[skip]))
    run = pipeline.last_run
    assert (run.model_calls, run.reused_calls, run.solver_steps) == (4, 2, STEPS)
    assert run.block_runs == 4 * BLOCKS


def test_a_jump_gives_the_solver_only_the_computed_levels(pipeline: HunyuanVideo) -> None:
    plan = tiny_plan(prediction(0, 1, 3, 5, skip="jump"))
    jumped = [float(call["t"]) for call in calls_of(pipeline, plan=plan)]
    assert pipeline.last_run.solver_steps == 4
    every = [float(call["t"]) for call in calls_of(pipeline)]
    assert jumped == [every[step] for step in (0, 1, 3, 5)]


def test_a_plan_is_carried_over_to_another_grid(pipeline: HunyuanVideo) -> None:
    plan = tiny_plan(prediction(0, 1, 3, 5, skip="jump"))
    pipeline.generate(PROMPT, **{**CLIP, "infer_steps": 10}, flow_shift=3.0, plan=plan)
    assert pipeline.last_run.steps == 10
    assert 4 <= pipeline.last_run.solver_steps < 10


@pytest.mark.parametrize("error", [RuntimeError("block failed"), KeyboardInterrupt()])
def test_an_exception_leaves_the_model_as_it_was(
    pipeline: HunyuanVideo, full: Tensor, error: BaseException
) -> None:
    model = pipeline.model
    plain = type(model), type(model.double_blocks), type(model.single_blocks)

    def fail(*args: object) -> None:
        raise error

    hook = model.single_blocks[1].register_forward_hook(fail)
    with pytest.raises(type(error)):
        pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(*PLANS["both"]))
    hook.remove()
    assert (type(model), type(model.double_blocks), type(model.single_blocks)) == plain
    assert torch.equal(pipeline.generate(PROMPT, **CLIP), full)


def test_the_cache_is_gone_before_the_vae_decodes(
    pipeline: HunyuanVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = []
    attach = hyvideo.pipeline.DeltaCache.attach

    def remember(self: Any, model: torch.nn.Module) -> Any:
        caches.append(self)
        return attach(self, model)

    def decode(latent: Tensor) -> Tensor:
        assert caches[0].bytes_held == 0
        assert "_delta_cache" not in pipeline.model.__dict__
        return latent

    monkeypatch.setattr(hyvideo.pipeline.DeltaCache, "attach", remember)
    monkeypatch.setattr(pipeline.vae, "decode", decode)
    pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(*PLANS["single"]))
    assert caches[0].stats.peak_bytes > 0


def test_missing_reverse_is_warned_of_and_runs(pipeline: HunyuanVideo) -> None:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="WARNING")
    times = [float(call["t"]) for call in calls_of(pipeline, flow_reverse=False)]
    logger.remove(sink)
    assert lines and "without --flow-reverse THE RESULT IS NOISE" in lines[0]
    assert times[0] == 0 and times == sorted(times)
    with pytest.raises(PlanError, match=r"is for falling noise levels: add --flow-reverse"):
        pipeline.generate(PROMPT, **CLIP, flow_reverse=False, plan=tiny_plan(*PLANS["both"]))


def test_plan_is_told_before_step_0_and_counted_after(pipeline: HunyuanVideo) -> None:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="INFO")
    pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(*PLANS["single"], name="paper"))
    logger.remove(sink)
    text = "\n".join(lines)
    assert "plan 'paper' for hunyuan-video-tiny" in text
    assert "computes 24 of 30 block runs" in text and "holds at most" in text
    assert text.index("holds at most") < text.index("ran 24 of 30 blocks")
    assert "--delta_cache" not in text  # a file may have any name
    assert "denoising took" in text and "seed 3" in text


def test_plans_that_do_not_fit_are_refused_before_loading() -> None:
    fitting = tiny_plan(*PLANS["both"])
    assert check_plan(fitting, TINY, STEPS, 7.0) == fitting
    both = {"cond": [0, 1], "uncond": [0, 1]}
    two_branches = tiny_plan({**prediction(0, skip="hold"), "compute_steps": both})
    with pytest.raises(
        PlanError, match=r"branches cond and uncond, .* take a plan with cond alone"
    ):
        check_plan(two_branches, TINY, STEPS, 7.0)
    official = CONFIGS["HYVideo-T/2-cfgdistill"]
    with pytest.raises(PlanError, match="has 2 double_blocks, this model 20"):
        check_plan(fitting, official, STEPS, 7.0)


@pytest.mark.parametrize("model", [m for m in CONFIGS if m != TINY.model])
def test_shipped_plans_fit_their_models_and_grids(model: str) -> None:
    config = CONFIGS[model]
    presets = available(config.plan_model)
    assert {"paper", "release", "balanced"} <= set(presets)
    for preset in presets:
        plan = load_preset(config.plan_model, preset)
        checked = check_plan(plan, config, config.infer_steps, config.flow_shift)
        assert checked is plan and not plan.notes, preset  # on the grid it was made for


@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "paper"])
def test_presets_named_by_their_speed_keep_it_at_other_steps(preset: str) -> None:
    plan = load_preset("hunyuan-video-t2v-mini", preset)
    ran = plan_for_run(plan, 30, 5.0)
    assert ran.steps == 30
    if preset == "paper":
        assert "its noise levels are kept" in ran.notes[0]
    else:
        assert "its speed is kept" in ran.notes[0]
        assert speedup_flops(ran) == pytest.approx(SPEEDUPS[preset], rel=0.1)

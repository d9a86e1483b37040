"""Plans through the HunyuanVideo pipeline: what runs, what is held, what is told."""

from pathlib import Path

import pytest
import torch
from loguru import logger
from torch import Tensor

import hunyuan_runs
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
from hyvideo.checks import check_plan
from hyvideo.config import CONFIGS
from hyvideo.pipeline import HunyuanVideo
from profiling_core.errors import PlanError
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.presets import available, load_preset

official_types = hunyuan_runs.official_types  # fixtures
pipeline, full = hunyuan_runs.pipeline, hunyuan_runs.full


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


def test_missing_reverse_is_warned_of_and_runs(pipeline: HunyuanVideo) -> None:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="WARNING")
    times = [float(call["t"]) for call in calls_of(pipeline, flow_reverse=False)]
    logger.remove(sink)
    assert lines and "without --flow-reverse THE RESULT IS NOISE" in lines[0]
    assert times[0] == 0 and times == sorted(times)
    with pytest.raises(PlanError, match=r"is for falling noise levels: add --flow-reverse"):
        pipeline.generate(PROMPT, **CLIP, flow_reverse=False, plan=tiny_plan(*PLANS["both"]))


@pytest.mark.parametrize("model", [m for m in CONFIGS if m != TINY.model])
def test_shipped_plans_fit_their_models_and_grids(model: str) -> None:
    config = CONFIGS[model]
    presets = available(config.plan_model)
    assert {"paper", "release", "balanced"} <= set(presets)
    for preset in presets:
        plan = load_preset(config.plan_model, preset)
        checked = check_plan(plan, config, config.infer_steps, config.flow_shift)
        assert checked is plan and not plan.notes, preset  # on the grid it was made for

"""The bundled miniature, end to end: the clips of `make demo`, and what the plans promise."""

import numpy as np
import pytest
import torch

from profiling_core.metrics import compare, latent_error
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.presets import load_preset
from wan.configs import WAN_CONFIGS, parse_size
from wan.text2video import WanT2V

CONFIG = WAN_CONFIGS["t2v-mini"]
PROMPT = "red circle moving right over blue stripes"
PLANS = (None, "paper", "balanced")


@pytest.fixture(scope="module")
def clips():
    """Per plan: video, latent and statistics; one seed and prompt, noise drawn on the CPU."""
    pipeline = WanT2V(CONFIG, CONFIG.ckpt_dir, "cpu")
    contexts = pipeline.encode([PROMPT, CONFIG.sample_neg_prompt])
    shape = CONFIG.latent_shape(parse_size(CONFIG.default_size), CONFIG.frame_num)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(42))
    found = {}
    for preset in PLANS:
        plan = load_preset(CONFIG.plan_model, preset) if preset else None
        latent = pipeline.denoise(
            *contexts,
            noise,
            shift=CONFIG.sample_shift,
            guide_scale=CONFIG.sample_guide_scale,
            sampling_steps=CONFIG.sample_steps,
            plan=plan,
            progress=False,
        )
        found[preset] = (pipeline.decode(latent), latent, pipeline.last_run)
    return found


def test_clip_has_the_documented_shape_and_moves(clips):
    video = clips[None][0]
    assert video.shape == (3, 33, 128, 128) and video.abs().max() <= 1
    assert compare(video, video[:, :1].expand_as(video)).motion == float("inf")


@pytest.mark.parametrize("preset", PLANS[1:])
def test_plan_runs_and_holds_what_its_file_says(clips, preset):
    plan, run = load_preset(CONFIG.plan_model, preset), clips[preset][2]
    assert run.block_runs == plan.expected.block_runs
    assert run.block_runs_full == plan.expected.block_runs_full
    latent = clips[preset][1]
    sizes = {"tokens": 576, "stream_itemsize": 4, "latent_numel": latent.numel()}
    assert run.peak_bytes == bytes_held(plan, **sizes)


def test_plans_were_made_for_the_noise_levels_of_the_default_run():
    for preset in ("paper", "release", "balanced"):
        plan = load_preset(CONFIG.plan_model, preset)
        assert (plan.steps, plan.shift) == (CONFIG.sample_steps, CONFIG.sample_shift)


def test_cached_clips_stay_close_and_balanced_is_the_closest(clips):
    reference, latent, _ = clips[None]
    paper, balanced = (compare(clips[name][0], reference) for name in PLANS[1:])
    assert balanced.psnr_frames > paper.psnr_frames > 15
    errors = [latent_error(clips[name][1], latent) for name in PLANS[1:]]
    assert 0 < errors[1] < errors[0] < 1


def test_red_circle_moves_right(clips):
    """The reddest pixels' mean column, first frames against last: what a viewer sees."""
    video = clips[None][0].numpy()
    red = video[0] - np.maximum(video[1], video[2])  # (F, H, W)
    mask = red > 0.5
    columns = np.arange(128)[None, None]
    seen = mask.sum((1, 2))
    assert (seen > 50).mean() > 0.9
    centre = (mask * columns).sum((1, 2)) / np.maximum(seen, 1)
    assert centre[-4:].mean() - centre[:4].mean() > 10

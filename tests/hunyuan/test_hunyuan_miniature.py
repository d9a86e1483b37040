"""The bundled HunyuanVideo miniature, end to end: the clips of `make demo`, what plans promise."""

from math import prod

import numpy as np
import pytest
import torch

from hyvideo.config import CONFIGS
from hyvideo.model import text_lens
from hyvideo.pipeline import HunyuanVideo
from profiling_core.metrics import compare, latent_error
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.presets import load_preset

CONFIG = CONFIGS["HYVideo-mini"]
PROMPT = "blue star moving left over red checks"
PLANS = (None, "paper", "release", "balanced")


@pytest.fixture(scope="module")
def pipeline() -> HunyuanVideo:
    return HunyuanVideo(CONFIG, CONFIG.model_base, "cpu")


@pytest.fixture(scope="module")
def clips(pipeline):
    """Per plan: video, latent and statistics; one seed and prompt, noise drawn on the CPU."""
    conditioning = pipeline.encode(PROMPT, video_length=CONFIG.video_length)
    shape = CONFIG.latent_shape(CONFIG.video_size, CONFIG.video_length)
    noise = pipeline.noise(shape, 42, "cpu")
    found = {}
    for preset in PLANS:
        plan = load_preset(CONFIG.plan_model, preset) if preset else None
        latent = pipeline.denoise(conditioning, noise, plan=plan, progress=False)
        found[preset] = (pipeline.decode(latent), latent, pipeline.last_run)
    return found


def test_clip_has_the_documented_shape_and_moves(clips):
    video = clips[None][0]
    assert video.shape == (3, 33, 128, 128) and video.min() >= 0 and video.max() <= 1
    assert compare(video, video[:, :1].expand_as(video)).motion == float("inf")


@pytest.mark.parametrize("preset", PLANS[1:])
def test_plan_runs_and_holds_what_its_file_says(pipeline, clips, preset):
    plan, run = load_preset(CONFIG.plan_model, preset), clips[preset][2]
    assert run.block_runs == plan.expected.block_runs
    assert run.block_runs_full == plan.expected.block_runs_full
    text = text_lens(pipeline.encode(PROMPT, video_length=CONFIG.video_length).mask)[0]
    shape = CONFIG.latent_shape(CONFIG.video_size, CONFIG.video_length)
    held = bytes_held(
        plan,
        tokens=CONFIG.tokens(shape) + text,
        stream_itemsize=pipeline.dtype.itemsize,
        latent_numel=prod(shape),
        prediction_itemsize=pipeline.dtype.itemsize,
    )
    assert run.peak_bytes == held


def test_plans_were_made_for_the_noise_levels_of_the_default_run():
    for preset in ("paper", "release", "foreground", "balanced"):
        plan = load_preset(CONFIG.plan_model, preset)
        assert (plan.steps, plan.shift) == (CONFIG.infer_steps, CONFIG.flow_shift)


def test_cached_clips_stay_close_and_balanced_is_the_closest(clips):
    reference, latent, _ = clips[None]
    paper, balanced = (compare(clips[name][0], reference) for name in ("paper", "balanced"))
    assert balanced.psnr_frames > paper.psnr_frames > 15
    errors = [latent_error(clips[name][1], latent) for name in ("paper", "balanced")]
    assert 0 < errors[1] < errors[0] < 1


def test_blue_star_moves_left(clips):
    """The bluest pixels' mean column, first frames against last: what a viewer sees."""
    video = clips[None][0].numpy()
    blue = video[2] - np.maximum(video[0], video[1])  # (F, H, W)
    mask = blue > 0.25
    columns = np.arange(128)[None, None]
    seen = mask.sum((1, 2))
    assert (seen > 50).mean() > 0.9
    centre = (mask * columns).sum((1, 2)) / np.maximum(seen, 1)
    assert centre[:4].mean() - centre[-4:].mean() > 10


def test_a_batch_of_two_prompts_gives_each_its_own_clip():
    """Prompts of different length in one call: the padding of the shorter one is hidden."""
    pipeline = HunyuanVideo(CONFIG, CONFIG.model_base, "cpu", fp32=True)  # bf16 rounds by 1e-2
    prompts = (PROMPT, "red circle orbiting over green noise")
    shape = CONFIG.latent_shape(CONFIG.video_size, CONFIG.video_length)
    single = [pipeline.encode(p, video_length=CONFIG.video_length) for p in prompts]
    both = type(single[0])(
        *(torch.cat([getattr(c, n) for c in single]) for n in ("states", "mask", "pooled"))
    )
    noise = pipeline.noise(shape, 1, "cpu")
    apart = torch.cat([pipeline.denoise(c, noise, infer_steps=2, progress=False) for c in single])
    together = pipeline.denoise(both, noise.expand(2, *shape), infer_steps=2, progress=False)
    assert latent_error(together, apart) < 1e-2

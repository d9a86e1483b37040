"""What a HunyuanVideo run is said to need, against what is alive while its own code runs."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

import hyvideo.attention
import hyvideo.model
from hyvideo.checks import Load, activation_bytes, device_needs, plan_bytes
from hyvideo.config import CONFIGS
from hyvideo.model import HYVideoDiffusionTransformer
from hyvideo.vae import VideoVAE, _set_tiles, decode_bytes
from live_memory import (
    LiveMemory,
    assert_holds,
    built,
    fake_ranks,
    fake_tensors,
    half_precision_as_on_cuda,
)
from official_sizes import (
    HUNYUAN,
    HUNYUAN_540P,
    HUNYUAN_720P,
    HUNYUAN_ENCODERS,
    HUNYUAN_STILL,
    HUNYUAN_VAE,
)
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.parallel.degrees import Degrees
from profiling_core.parallel.sequence import SequenceShare
from profiling_core.plan.presets import load_preset

AT_540P, AT_720P, STILL = HUNYUAN_540P, HUNYUAN_720P, HUNYUAN_STILL
TEXT = HUNYUAN.text_len
LOAD = Load("bf16", "fp16", latent=AT_720P)


def call_peak(
    model: HYVideoDiffusionTransformer,
    latent: tuple[int, ...],
    rows: int = 1,
    cache: DeltaCache | None = None,
    steps: tuple[int, ...] = (0,),
) -> int:
    """Peak of one call, or of the calls of a cache's steps."""
    tokens, width = latent[1] * latent[2] * latent[3] // 4, model.hidden_size // model.heads_num
    given = {
        "x": torch.randn(rows, *latent),
        "t": torch.full((rows,), 999.0),
        "text_states": torch.randn(rows, TEXT, model.text_states_dim, dtype=torch.float16),
        "text_mask": torch.ones(rows, TEXT, dtype=torch.int64),
        "text_states_2": torch.randn(rows, model.text_states_dim_2, dtype=torch.float16),
        "freqs_cos": torch.randn(tokens, width),
        "freqs_sin": torch.randn(tokens, width),
        "guidance": torch.full((rows,), 6016.0, dtype=torch.bfloat16),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        if cache is not None:
            stack.enter_context(cache.attached(model))
        memory = stack.enter_context(LiveMemory())
        for step in steps:
            if cache is not None:
                cache.begin(step)
            model(**given)
    return memory.peak


@pytest.fixture
def full_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt fills its rows; tensors without numbers cannot say so."""
    monkeypatch.setattr(hyvideo.model, "text_lens", lambda mask: (TEXT,) * len(mask))


@pytest.mark.parametrize(
    ("latent", "rows", "ulysses", "ring"),
    [
        (AT_720P, 1, 1, 1),
        (AT_540P, 2, 1, 1),
        (STILL, 1, 1, 1),
        (AT_720P, 1, 8, 1),
        (AT_720P, 1, 2, 1),
        (AT_720P, 1, 1, 8),
        (AT_720P, 1, 2, 4),
    ],
)
def test_the_activations_of_a_call_are_those_that_are_alive(
    full_text: None, latent: tuple[int, ...], rows: int, ulysses: int, ring: int
) -> None:
    depths = {"mm_double_blocks_depth": 2, "mm_single_blocks_depth": 2}
    with fake_ranks(ulysses, ring) as ranks, fake_tensors():
        sizes = HUNYUAN.transformer | depths
        model = built(lambda: HYVideoDiffusionTransformer(**sizes), torch.bfloat16)
        if ranks.world > 1:
            model.share_tokens(SequenceShare(ranks, hyvideo.attention.attention))
        peak = call_peak(model, latent, rows)
    load = replace(LOAD, latent=latent, rows=rows, degrees=Degrees(ulysses, ring))
    assert_holds(activation_bytes(HUNYUAN, load), peak)


def test_a_plan_adds_its_anchors_and_one_input_of_an_interval(full_text: None) -> None:
    """The miniature with `paper`, on the tokens of a 540p clip."""
    config = replace(CONFIGS["HYVideo-mini"], text_len=TEXT)
    plan = load_preset("hunyuan-video-t2v-mini", "paper")
    load = replace(LOAD, latent=AT_540P, plan=plan)
    with fake_tensors():
        model = built(lambda: HYVideoDiffusionTransformer(**config.transformer), torch.bfloat16)
        bare, cached = (
            call_peak(model, AT_540P, 1, cache, (6, 7)) for cache in (None, DeltaCache(plan))
        )
    assert_holds(plan_bytes(config, load), cached - bare)


@pytest.mark.parametrize(
    ("latent", "dtype"),
    [
        ((16, 17, 32, 32), torch.float16),
        ((16, 1, 32, 32), torch.float32),
        ((16, 20, 16, 16), torch.float32),
    ],
)
def test_a_decode_needs_what_is_alive(
    tmp_path: Path, latent: tuple[int, ...], dtype: torch.dtype
) -> None:
    """In the official tiles, with types as CUDA's autocast has them."""
    with fake_tensors(), half_precision_as_on_cuda():
        vae = VideoVAE.__new__(VideoVAE)
        vae.device, vae.autocast, vae.dtype = torch.device("cpu"), False, dtype
        vae.model = built(AutoencoderKLHunyuanVideo, dtype)
        _set_tiles(vae.model, tmp_path / "config.json", {})
        with LiveMemory() as memory:
            vae.decode(torch.randn(latent))
    assert_holds(decode_bytes(latent, dtype), memory.peak)


def test_with_offload_one_part_is_on_the_gpu_at_a_time() -> None:
    parts, one = (HUNYUAN_ENCODERS, HUNYUAN_VAE, HUNYUAN), replace(LOAD, offload=True)
    needs = device_needs(*parts, one)
    assert {moment: list(parts) for moment, parts in needs.items()} == {
        "encoding": ["text encoder"],
        "denoising": ["transformer", "activations"],
        "decoding": ["VAE", "frames"],
    }
    fp8 = device_needs(
        HUNYUAN_ENCODERS, HUNYUAN_VAE, HUNYUAN, replace(LOAD, offload=True, use_fp8=True)
    )
    assert fp8["denoising"]["transformer"] < 0.6 * needs["denoising"]["transformer"]
    assert fp8["denoising"]["activations"] > needs["denoising"]["activations"]
    needs = device_needs(*parts, LOAD)
    assert all({"transformer", "VAE", *HUNYUAN_ENCODERS} <= set(parts) for parts in needs.values())

"""What a Wan2.1 run is said to need, against what is alive while its own code runs."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from loguru import logger

import wan.attention
import wan.text2video
from live_memory import (
    LiveMemory,
    assert_holds,
    built,
    fake_ranks,
    fake_tensors,
)
from official_sizes import WAN_14B, WAN_480P, WAN_720P, WAN_SMALL, WAN_STILL
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.errors import InputError
from profiling_core.parallel.degrees import Degrees
from profiling_core.parallel.sequence import SequenceShare
from profiling_core.plan.presets import load_preset
from profiling_core.runtime.memory import out_of_memory_as_input_error
from wan.checks import (
    Load,
    Sizes,
    activation_bytes,
    check_memory,
    device_needs,
    offload_by_memory,
    plan_bytes,
    sizes_of,
)
from wan.configs import WAN_CONFIGS
from wan.model import WanModel
from wan.vace import WanVace
from wan.vace_model import VaceWanModel
from wan.vae import VideoVAE, decode_bytes
from wan.weights import load_transformer
from wan_toys import TINY_VAE

AT_480P, AT_720P, STILL = WAN_480P, WAN_720P, WAN_STILL
CUDA = torch.device("cuda")


def call_peak(
    model: WanModel, latent: tuple[int, ...], cache: Any = None, steps: tuple[int, ...] = (0,)
) -> int:
    """Peak of one call, or of the calls of a cache's steps."""
    tokens, given = latent[1] * latent[2] * latent[3] // 4, {}
    if model.image_shape[0]:
        given["clip_fea"] = torch.randn(1, *model.image_shape)
        given["y"] = [torch.randn(20, *latent[1:])]
    if isinstance(model, VaceWanModel):
        given["vace_context"] = [torch.randn(96, *latent[1:])]
    x, t = torch.randn(latent), torch.tensor([999])
    text = torch.randn(16, model.text_dim, dtype=torch.bfloat16)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        if cache is not None:
            stack.enter_context(cache.attached(model))
        memory = stack.enter_context(LiveMemory())
        for step in steps:
            for branch in ("cond", "uncond"):
                if cache is not None:
                    cache.begin(step, branch)
                model([x], t, context=[text], seq_len=tokens, **given)
    return memory.peak


def official_vae(base_dim: int = 96) -> VideoVAE:
    """Without weights."""
    vae = VideoVAE.__new__(VideoVAE)
    vae.model = built(lambda: AutoencoderKLWan(base_dim=base_dim))
    vae.mean, vae.inverse_std = torch.zeros(1, 16, 1, 1, 1), torch.ones(1, 16, 1, 1, 1)
    return vae


@pytest.mark.parametrize(
    ("sizes", "latent", "dtype", "ulysses", "ring"),
    [
        (WAN_14B, AT_720P, torch.float32, 1, 1),
        (WAN_14B, AT_480P, torch.bfloat16, 1, 1),
        (WAN_SMALL, AT_480P, torch.float32, 1, 1),
        (WAN_14B, STILL, torch.float32, 1, 1),
        (WAN_14B, AT_720P, torch.float32, 8, 1),
        (WAN_14B, AT_720P, torch.bfloat16, 1, 2),
        (WAN_14B, AT_720P, torch.float32, 2, 4),
    ],
)
def test_the_activations_of_a_call_are_those_that_are_alive(
    sizes: Sizes, latent: tuple[int, ...], dtype: torch.dtype, ulysses: int, ring: int
) -> None:
    with fake_ranks(ulysses, ring) as ranks, fake_tensors():
        model = built(lambda: WanModel(**sizes.transformer | {"num_layers": 2}), dtype)
        if ranks.world > 1:
            model.share_tokens(SequenceShare(ranks, wan.attention.attention))
        peak = call_peak(model, latent)
    load = Load(dtype, degrees=Degrees(ulysses, ring), latent=latent)
    assert_holds(activation_bytes(sizes, load), peak)


def test_a_call_with_a_picture_needs_what_one_without_does() -> None:
    with fake_tensors():
        sizes = WAN_14B.transformer | {"num_layers": 2, "model_type": "i2v", "in_dim": 36}
        peak = call_peak(built(lambda: WanModel(**sizes)), AT_480P)
    assert_holds(activation_bytes(WAN_14B, Load(latent=AT_480P)), peak)


def test_hints_count_beside_what_a_call_needs_without() -> None:
    with fake_tensors():
        sizes = WAN_14B.transformer | {"num_layers": 4, "vace_layers": (0, 1, 2, 3)}
        peak = call_peak(built(lambda: VaceWanModel(**sizes)), AT_480P)
    assert_holds(activation_bytes(replace(WAN_14B, hints=4), Load(latent=AT_480P)), peak)


def test_encoding_a_picture_takes_less_than_decoding_the_clip() -> None:
    latent = (16, 5, 60, 104)
    shape = (3, 4 * latent[1] - 3, 8 * latent[2], 8 * latent[3])
    with fake_tensors():
        vae = official_vae()
        with LiveMemory() as memory:
            vae.encode(torch.randn(shape))
    assert 0 < memory.peak <= decode_bytes(latent)


def test_encoding_the_sources_of_a_clip_takes_what_is_said() -> None:
    _, frames, rows, columns = AT_480P
    shape = (3, 4 * frames - 3, 8 * rows, 8 * columns)
    config, sizes = WAN_CONFIGS["vace-14B"], replace(WAN_14B, hints=8, encodes_frames=True)
    with fake_tensors():
        pipeline = WanVace.__new__(WanVace)
        pipeline.vae, pipeline.device, pipeline.config = official_vae(), torch.device("cpu"), config
        pipeline.offload_model = pipeline.sharded = False
        video, mask = torch.randn(shape), torch.rand(1, *shape[1:])
        with LiveMemory() as memory:
            context = pipeline.encode_sources(video.clone(), mask.clone(), None)
    assert context.shape == (config.context_channels, *AT_480P[1:])
    needs = device_needs(sizes, Load(latent=AT_480P))["encoding"]
    assert 0 < memory.peak <= needs["frames"] + needs["sources"]


def test_tensors_without_numbers_have_the_peak_of_real_ones() -> None:
    sizes, latent = {"dim": 64, "ffn_dim": 256, "num_heads": 2}, (16, 5, 16, 16)
    peaks = []
    for mode in (torch.no_grad, fake_tensors):
        with mode():
            model = built(lambda: WanModel(**sizes, num_layers=2, text_dim=32, text_len=16))
            peaks.append(call_peak(model, latent))
    assert peaks[0] == peaks[1] > 20 * 64 * 320  # as the norm of k has it


def test_a_plan_adds_its_anchors_and_one_input_of_an_interval() -> None:
    """The miniature with `paper`, on the tokens of a 480p clip."""
    sizes = {"dim": 160, "ffn_dim": 640, "num_heads": 2, "num_layers": 12}
    text = {"text_dim": 256, "text_len": 32}
    plan = load_preset("wan2.1-t2v-mini", "paper")
    own = replace(WAN_14B, transformer=sizes | text)
    load = Load(latent=AT_480P, plan=plan)
    with fake_tensors():
        model = built(lambda: WanModel(**sizes, **text))
        bare, cached = (
            call_peak(model, AT_480P, cache, steps=(6, 7)) for cache in (None, DeltaCache(plan))
        )
    assert_holds(plan_bytes(own, load, "device"), cached - bare)


@pytest.mark.parametrize(
    ("latent", "base_dim", "ranks"),
    [
        (AT_720P, 96, 1),
        ((16, 2, 60, 104), 96, 1),
        (STILL, 96, 1),
        ((16, 5, 16, 16), 8, 1),
        ((16, 5, 60, 104), 96, 4),
    ],
)
def test_a_decode_needs_what_is_alive(latent: tuple[int, ...], base_dim: int, ranks: int) -> None:
    with fake_tensors():
        vae = official_vae(base_dim)
        tiles = vae._tiles(latent[-2:], ranks)
        tiled = vae._tiled(latent[-2:], *tiles) if ranks > 1 else contextlib.nullcontext()
        with tiled, LiveMemory() as memory:
            vae.decode(torch.randn(latent))
    assert_holds(decode_bytes(latent, base_dim, ranks), memory.peak)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Free GB of stand-ins for the GPU and the host."""
    found = {"cuda": 80.0, "cpu": 500.0}
    monkeypatch.setattr(
        "profiling_core.runtime.memory.available_bytes", lambda device: found[device.type] * 1e9
    )
    monkeypatch.setattr("wan.checks.available_bytes", lambda device: found[device.type] * 1e9)
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def lines() -> Any:
    found: list[str] = []
    sink = logger.add(lambda line: found.append(line.record["message"]), level="INFO")
    yield found
    logger.remove(sink)


def test_the_14b_at_720p_without_offload_is_refused_on_80_gb(free: dict[str, float]) -> None:
    """Its weights alone would fit; each way out comes with what it leads to."""
    load = Load(t5_cpu=True, offload_model=False, latent=AT_720P)
    check_memory(WAN_14B, replace(load, latent=None), CUDA)
    free["cuda"] = 66.5
    with pytest.raises(InputError) as caught:
        check_memory(WAN_14B, load, CUDA)
    assert str(caught.value) == (
        "not enough memory on cuda: transformer 57.2 GB + VAE 0.5 GB + frames 19.8 GB = 77.5 GB "
        "are needed for decoding, 66.5 GB are free: --convert_model_dtype brings it to 48.9 GB; "
        "--offload_model true to 65.8 GB; both to 37.1 GB; it is tight, so set "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True as well; else take a smaller clip, a "
        "smaller model or a machine with more memory"
    )


def test_only_ways_that_help_are_named(free: dict[str, float]) -> None:
    free["cuda"] = 24.0
    load = Load(torch.bfloat16, t5_cpu=True, latent=AT_480P)
    with pytest.raises(InputError) as caught:
        check_memory(WAN_14B, load, CUDA)
    assert "24.0 GB are free: take a smaller clip" in str(caught.value)
    with pytest.raises(InputError, match=r": --t5_cpu brings it to 37\.7 GB; --off.* GB; else"):
        check_memory(WAN_14B, replace(load, t5_cpu=False, offload_model=False), CUDA)
    with pytest.raises(InputError, match=r"free: --offload_model true brings it to .*; else"):
        check_memory(WAN_14B, replace(load, offload_model=False, latent=AT_720P), CUDA)
    shared = replace(load, offload_model=False, latent=AT_720P, degrees=Degrees(2))
    with pytest.raises(InputError) as caught:  # several processes share out, and do not offload
        check_memory(WAN_14B, shared, CUDA)
    assert "24.0 GB are free: --dit_fsdp brings it to " in str(caught.value)
    assert "--offload_model" not in str(caught.value)


def test_what_fits_barely_is_warned_of_until_segments_expand(
    free: dict[str, float], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Load(t5_cpu=True, latent=AT_720P)
    free["cuda"] = 67.0
    check_memory(WAN_14B, load, CUDA)
    assert "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in lines[0]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    check_memory(WAN_14B, load, CUDA)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("gpu", "load", "offload"),
    [
        (141.0, Load(latent=AT_720P), False),
        (80.0, Load(latent=AT_720P, t5_cpu=True), True),
        (80.0, Load(torch.bfloat16, latent=AT_720P), False),
        (80.0, Load(latent=AT_480P, t5_cpu=True), False),
        (48.0, Load(torch.bfloat16, latent=AT_480P, t5_cpu=True), False),
    ],
)
def test_parts_leave_the_gpu_where_not_everything_fits(
    free: dict[str, float], gpu: float, load: Load, offload: bool
) -> None:
    """One line says why, with the sizes; where no clip is known, parts leave as before."""
    free["cuda"] = gpu
    found, line = offload_by_memory(WAN_14B, load, CUDA)
    assert found is offload
    assert line.startswith(f"offload_model is not specified, set to {offload}: transformer ")
    assert f"{gpu} GB free, " in line
    assert line.endswith("leave the GPU" if offload else "everything stays on the GPU")
    assert offload_by_memory(WAN_14B, load, torch.device("cpu")) == (True, "")
    assert offload_by_memory(WAN_14B, Load(), CUDA) == (True, "")
    assert offload_by_memory(WAN_14B, replace(load, degrees=Degrees(2)), CUDA) == (False, "")


def test_a_pipeline_logs_why_it_offloads(
    checkpoint: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone: `profiling-dit check` asks for options that no run has."""
    monkeypatch.setattr(wan.text2video, "offload_by_memory", lambda *args: (False, "it fits"))
    pipeline = wan.text2video.WanT2V(WAN_CONFIGS["t2v-mini"], checkpoint, device="cpu")
    assert not pipeline.offload_model and lines.count("it fits") == 1


def test_offload_leaves_one_large_part_on_the_gpu_at_a_time() -> None:
    needs = device_needs(WAN_14B, Load(latent=AT_480P))
    assert {moment: list(parts) for moment, parts in needs.items()} == {
        "encoding": ["text encoder", "VAE"],
        "denoising": ["transformer", "VAE", "activations"],
        "decoding": ["VAE", "frames"],
    }
    needs = device_needs(WAN_14B, Load(latent=AT_480P, offload_model=False))
    assert all({"transformer", "text encoder", "VAE"} <= set(parts) for parts in needs.values())


def test_the_image_encoder_counts_where_it_waits() -> None:
    sizes = replace(WAN_14B, image_encoder=1_264_000_000)
    for offload, stays in ((False, True), (True, False)):
        needs = device_needs(sizes, Load(offload_model=offload, latent=AT_480P))
        has = {moment: "image encoder" in parts for moment, parts in needs.items()}
        assert has == {"encoding": True, "denoising": stays, "decoding": stays}


def test_fsdp_counts_its_share_and_what_it_gathers() -> None:
    eight = Load(latent=AT_720P, dit_fsdp=True, t5_fsdp=True, degrees=Degrees(8))
    parts = device_needs(WAN_14B, eight)["denoising"]
    assert parts["transformer's share"] == WAN_14B.parameters * 4 // 8
    assert parts["gathered weights"] == WAN_14B.outside_blocks * 4 + 3 * 351_394_304 * 2
    assert parts["text encoder's share"] == WAN_14B.encoder // 8
    assert parts["embedding"] == WAN_14B.embedding
    on_host = load_preset("wan2.1-t2v-14B", "paper").replace(storage_place="host")
    there = replace(eight, plan=on_host)
    assert 0 < plan_bytes(WAN_14B, there, "device") < 0.2 * plan_bytes(WAN_14B, there, "host")
    alone = activation_bytes(WAN_14B, replace(eight, degrees=Degrees()))
    assert parts["activations"] < 0.35 * alone


def test_the_estimate_reads_a_checkpoint_folder(checkpoint: Path) -> None:
    sizes = sizes_of(checkpoint, WAN_CONFIGS["t2v-mini"])
    model = load_transformer(checkpoint, "meta")
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    assert sizes.outside_blocks == sizes.parameters - sum(
        p.numel() for p in model.blocks.parameters()
    )
    assert sizes.vae_dim == TINY_VAE["base_dim"]


def test_memory_that_runs_out_names_gaps_and_options_that_spare_some(
    free: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    free |= {"cuda": 500.0, "cpu": 500.0}
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 62 * 10**9)

    def run_out(name: str = "cuda", **changes: Any) -> str:
        options: list[str] = []
        device = torch.device(name)
        room = out_of_memory_as_input_error(device, "a clip", "take less", options)
        with pytest.raises(InputError) as caught, room:
            options += check_memory(WAN_14B, Load(latent=AT_720P, **changes), device)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return str(caught.value).partition("): ")[2]

    ways = "take --convert_model_dtype or --offload_model true, or take less"
    assert run_out(t5_cpu=True, offload_model=False) == (
        "8.0 GB are reserved and unused, set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to "
        f"use them; {ways}"
    )
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    assert run_out(t5_cpu=True, offload_model=False) == ways
    assert run_out(dtype=torch.bfloat16) == run_out("cpu") == "take less"  # --t5_cpu does not help

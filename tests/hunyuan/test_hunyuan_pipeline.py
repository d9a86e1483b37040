"""From prompt to clip on a tiny random HunyuanVideo checkpoint: repeatable, in official types."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger
from torch import Tensor

import hunyuan_runs
import hyvideo.checks
import hyvideo.pipeline
import sample_video
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
from hunyuan_toys import TINY, TINY_DIT, dit_file, tiny_config, tiny_dit, write_fp8
from hyvideo.checkpoint import find_files
from hyvideo.checks import check_memory, check_plan, clip_seeds
from hyvideo.config import CONFIGS, NEGATIVE_PROMPT
from hyvideo.inference import HunyuanVideoSampler
from hyvideo.pipeline import Conditioning, HunyuanVideo
from hyvideo.sigmas import sigmas_fp32
from hyvideo.vae import vae_sizes
from hyvideo.weights import transformer_bytes
from profiling_core.errors import InputError
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.presets import available, load_preset

official_types = hunyuan_runs.official_types  # fixtures
pipeline, full = hunyuan_runs.pipeline, hunyuan_runs.full


def test_defaults_are_the_models_own(pipeline: HunyuanVideo, full: Tensor) -> None:
    assert torch.equal(pipeline.generate(PROMPT, seed=3, progress=False), full)


def test_several_videos_are_those_of_their_own_seeds(pipeline: HunyuanVideo, full: Tensor) -> None:
    clips = pipeline.generate(PROMPT, **CLIP, num_videos=2)
    fourth = pipeline.generate(PROMPT, **{**CLIP, "seed": 4})
    assert torch.equal(clips, torch.cat([full, fourth]))
    listed = pipeline.generate(PROMPT, **{**CLIP, "seed": [4, 3]}, num_videos=2)
    assert torch.equal(listed, clips.flip(0))
    assert pipeline.last_run.seed == 3


def test_a_processor_that_emulates_bf16_computes_in_fp32(
    hunyuan_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hyvideo.checks, "emulates", lambda dtype, device: True)
    pipeline = HunyuanVideo(TINY, hunyuan_checkpoint, "cpu")
    assert pipeline.dtype == torch.float32
    assert {p.dtype for p in pipeline.model.parameters()} == {torch.float32}
    assert pipeline.guidance(6.0, 1).tolist() == [6016.0]  # the conditioning stays the official one
    assert pipeline.generate(PROMPT, **CLIP).isfinite().all()


def test_guidance_of_6_is_6016_in_bf16(pipeline: HunyuanVideo) -> None:
    for strength, expected in ((1.0, 1000), (5.0, 4992), (6.0, 6016), (6.5, 6496), (8.0, 8000)):
        guidance = pipeline.guidance(strength, 2)
        assert guidance.dtype == torch.bfloat16 and guidance.tolist() == [expected] * 2
    seen = calls_of(pipeline)
    assert {tuple(call["guidance"].tolist()) for call in seen} == {(6016.0,)}


def test_the_model_gets_official_types(pipeline: HunyuanVideo) -> None:
    first, *others = calls_of(pipeline)
    types = {name: value.dtype for name, value in first.items()}
    assert types == {
        "x": torch.float32,
        "t": torch.float32,
        "text_states": torch.float16,  # of the text encoders
        "text_mask": torch.int64,
        "text_states_2": torch.float16,
        "freqs_cos": torch.float32,
        "freqs_sin": torch.float32,
        "guidance": torch.bfloat16,
    }
    assert first["text_mask"].device.type == "cpu"
    assert torch.equal(first["x"], first["x"].half().float())  # drawn in fp16
    assert not torch.equal(others[0]["x"], others[0]["x"].half().float())
    assert [float(call["t"]) for call in (first, *others)] == [
        float(torch.tensor(sigma) * 1000) for sigma in sigmas_fp32(STEPS, 7.0)
    ]


def test_noise_is_drawn_in_the_text_encoders_type(pipeline: HunyuanVideo) -> None:
    noise = pipeline.noise((16, 2, 4, 4), 5)
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randn((1, 16, 2, 4, 4), generator=generator, dtype=torch.float16)
    assert noise.dtype == torch.float32 and torch.equal(noise, drawn.float())


def test_real_guidance_is_one_doubled_call_with_the_negative_prompt_first(
    pipeline: HunyuanVideo,
) -> None:
    seen = calls_of(pipeline, cfg_scale=2.0, neg_prompt="green")
    assert len(seen) == STEPS
    for call in seen:
        assert torch.equal(call["x"][0], call["x"][1])
        assert call["t"].shape == (2,) and call["guidance"].tolist() == [6016.0] * 2
    states = pipeline.encode("green", video_length=5).states
    assert torch.equal(seen[0]["text_states"][:1], states)
    assert seen[0]["text_mask"].sum(dim=1).tolist() == [2, TEXT]
    single = calls_of(pipeline)[0]
    assert torch.equal(seen[0]["text_states"][1:], single["text_states"])


def test_the_models_own_negative_prompt_stands_for_none(
    pipeline: HunyuanVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    encode = HunyuanVideo.encode

    def remember(self: HunyuanVideo, prompt: str, negative: str | None, **options: Any) -> Any:
        asked.append(negative)
        return encode(self, prompt, negative, **options)

    monkeypatch.setattr(HunyuanVideo, "encode", remember)
    for changes in (
        {"cfg_scale": 2.0},
        {"cfg_scale": 2.0, "neg_prompt": ""},
        {"cfg_scale": 2.0, "neg_prompt": "blue"},
        {"cfg_scale": 1.0, "neg_prompt": "blue"},
    ):
        pipeline.generate(PROMPT, **CLIP, **changes)
    assert asked == [NEGATIVE_PROMPT, NEGATIVE_PROMPT, "blue", None]


def test_real_guidance_weighs_both_halves(pipeline: HunyuanVideo) -> None:
    """With equal halves the scale has no effect; rows of a batch are computed alike up to bf16."""
    clip = pipeline.generate(PROMPT, **CLIP, cfg_scale=3.0, neg_prompt=PROMPT)
    assert torch.allclose(clip, pipeline.generate(PROMPT, **CLIP), atol=0.05)


def test_a_model_without_guidance_embedding_gets_none(new_hunyuan_checkpoint: Path) -> None:
    sizes = {**TINY_DIT, "guidance_embed": False}
    torch.save(
        {"module": tiny_dit(guidance_embed=False).state_dict()}, dit_file(new_hunyuan_checkpoint)
    )
    bare = HunyuanVideo(tiny_config(transformer=sizes), new_hunyuan_checkpoint, "cpu")
    assert {call["guidance"] for call in calls_of(bare)} == {None}


@pytest.mark.parametrize(
    "change", [{"precision": "fp32"}, {"precision": "fp32", "disable_autocast": True}]
)
def test_fp32_samples_a_latent_alike(
    pipeline: HunyuanVideo, hunyuan_checkpoint: Path, change: dict[str, Any]
) -> None:
    exact = HunyuanVideo(tiny_config(**change), hunyuan_checkpoint, "cpu")
    assert {p.dtype for p in exact.model.parameters()} == {torch.float32}
    half, full = (
        p.denoise(
            p.encode(PROMPT, video_length=5),
            p.noise((16, 2, 4, 4), 3),
            infer_steps=STEPS,
            embedded_guidance=1.0,  # 1000 in every type; 6.0 is 6016 in bf16 and 6000 in fp32
            progress=False,
        )
        for p in (pipeline, exact)
    )
    assert 0 < (half - full).norm() / full.norm() < 0.05
    assert calls_of(exact)[0]["text_states"].dtype == torch.float32


def test_fp8_samples_a_clip_alike(new_hunyuan_checkpoint: Path, full: Tensor) -> None:
    write_fp8(
        dit_file(new_hunyuan_checkpoint).with_name("mp_rank_00_model_states_fp8.pt"), tiny_dit()
    )
    pipeline = HunyuanVideo(tiny_config(use_fp8=True), new_hunyuan_checkpoint, "cpu")
    clip = pipeline.generate(PROMPT, **CLIP)
    assert 0 < (clip - full).abs().mean() < 0.05
    pipeline.generate(PROMPT, **CLIP, plan=tiny_plan(*PLANS["both"]))
    assert pipeline.last_run.reused_intervals > 0


def test_one_frame_is_an_image(pipeline: HunyuanVideo) -> None:
    seen = calls_of(pipeline, video_length=1)
    assert seen[0]["x"].shape == (1, 16, 1, 4, 4)
    assert seen[0]["text_states"].shape == (1, 12 + 95 - 36, 32)
    assert pipeline.generate(PROMPT, **{**CLIP, "video_length": 1}).shape == (1, 3, 1, 32, 32)


def test_sizes_are_rounded_up(pipeline: HunyuanVideo) -> None:
    assert pipeline.generate(PROMPT, **{**CLIP, "size": (20, 33)}).shape == (1, 3, 5, 32, 48)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"video_length": 6}, r"video-length 6 is not 4n\+1: take 5 or 9"),
        ({"video_length": 0}, r"video-length 0 is not 4n\+1: take 1"),
        ({"size": (0, 32)}, "video-size 0 32: both have to be positive"),
        ({"size": (32, 10**6)}, "video-size 32 1000000 is too large"),
        ({"infer_steps": 0}, "infer-steps 0"),
        ({"num_videos": 0}, "num-videos 0 is too few"),
        ({"seed": [1], "num_videos": 2}, "1 seeds for num-videos 2: give one for each"),
    ],
)
def test_impossible_clips_are_refused(pipeline: HunyuanVideo, change: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        pipeline.generate(PROMPT, **{**CLIP, **change})


def test_seeds_that_are_not_given_are_drawn() -> None:
    drawn = clip_seeds(None, 3)
    assert len(drawn) == 3 and all(0 <= seed <= 1_000_000 for seed in drawn)


def test_half_precision_without_autocast_is_refused(hunyuan_checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"disable-autocast with precision bf16: .* fp32 with it"):
        HunyuanVideo(tiny_config(disable_autocast=True), hunyuan_checkpoint, "cpu")


def test_files_of_several_checkpoints_are_told(new_hunyuan_checkpoint: Path) -> None:
    for name, says in (
        ("text_states_dim", "the text encoder's width 32 and the transformer's text_states_dim 40"),
        ("text_states_dim_2", "second text encoder's width 24 and .* text_states_dim_2 40 do not"),
    ):
        model = tiny_dit(**{name: 40})
        torch.save({"module": model.state_dict()}, dit_file(new_hunyuan_checkpoint))
        config = tiny_config(transformer={**TINY_DIT, name: 40})
        with pytest.raises(InputError, match=says):
            HunyuanVideo(config, new_hunyuan_checkpoint, "cpu")


def test_offload_needs_room_for_one_part_at_a_time(
    hunyuan_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, cuda = find_files(hunyuan_checkpoint), torch.device("cuda")
    free = {"cuda": 10**12, "cpu": 10**12}
    monkeypatch.setattr(
        "profiling_core.runtime.memory.available_bytes", lambda device: free[device.type]
    )
    check_memory(files, TINY, cuda)
    free["cuda"] = max(transformer_bytes(TINY), 2 * vae_sizes(files.vae_config).parameters)
    check_memory(files, TINY, cuda, offload=True)
    with pytest.raises(InputError, match=r"on cuda: .* --use-cpu-offload brings it to 0\.0 GB"):
        check_memory(files, TINY, cuda)
    free["cpu"] = 1000
    with pytest.raises(InputError, match=r"on cpu: transformer .* text encoder .* VAE"):
        check_memory(files, TINY, cuda, offload=True)


def test_one_part_is_on_the_device_at_a_time(
    pipeline: HunyuanVideo, full: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for the moves; the device is "cpu:0", the host "cpu"."""
    parts = ("text_encoder", "text_encoder_2", "model", "vae")
    there: set[str] = set()
    worked: list[tuple[str, set[str]]] = []

    def move(name: str, device: torch.device | str) -> None:
        (there.add if str(device) == "cpu:0" else there.discard)(name)

    for name in parts:
        part = getattr(pipeline, name)
        monkeypatch.setattr(part, "to", partial(move, name))
        module = part if name == "model" else part.model
        kind = module.decoder if name == "vae" else module
        hook = lambda *args, name=name: worked.append((name, set(there)))  # noqa: E731
        monkeypatch.setattr(kind, "_forward_pre_hooks", {0: hook})
    monkeypatch.setattr(pipeline, "offload", True)
    monkeypatch.setattr(pipeline, "device", torch.device("cpu", 0))
    assert torch.equal(pipeline.generate(PROMPT, **CLIP), full)
    assert [name for name, _ in worked] == [*parts[:2], *["model"] * STEPS, "vae"]
    assert all(there == {name} for name, there in worked)


def test_conditioning_is_all_that_denoise_needs(pipeline: HunyuanVideo, full: Tensor) -> None:
    conditioning = pipeline.encode(PROMPT, video_length=5)
    assert isinstance(conditioning, Conditioning)
    latent = pipeline.denoise(
        conditioning, pipeline.noise((16, 2, 4, 4), 3), infer_steps=STEPS, progress=False
    )
    assert latent.shape == (1, 16, 2, 4, 4) and latent.dtype == torch.float32
    assert torch.equal(pipeline.decode(latent), full[0])


def test_the_official_python_object_makes_the_same_clips(
    hunyuan_checkpoint: Path, full: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "HYVideo-tiny", TINY)
    args = sample_video.build_parser().parse_args(["--model", "HYVideo-tiny", "--flow-reverse"])
    sampler = HunyuanVideoSampler.from_pretrained(hunyuan_checkpoint, args=args, device="cpu")
    assert sampler.args is args
    out = sampler.predict(
        prompt=f" {PROMPT} ",
        height=32,
        width=32,
        video_length=5,
        seed=2,
        negative_prompt=None,
        infer_steps=STEPS,
        guidance_scale=1.0,
        num_videos_per_prompt=2,
        flow_shift=7.0,
        batch_size=1,
        embedded_guidance_scale=6.0,
        progress=False,
    )
    assert torch.equal(out["samples"][1:], full) and out["samples"].shape == (2, 3, 5, 32, 32)
    assert out["seeds"] == [2, 3] and out["prompts"] == [PROMPT] * 2
    assert out["size"] == (32, 32, 5)
    assert len(sampler.predict(PROMPT, infer_steps=2, progress=False)["seeds"]) == 1
    with pytest.raises(InputError, match="batch_size 2: a batch has one prompt"):
        sampler.predict(PROMPT, batch_size=2)
    with pytest.raises(TypeError, match="prompt is a NoneType, expected a str"):
        sampler.predict(None)


@pytest.fixture
def command(hunyuan_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The short command on the tiny checkpoint."""
    monkeypatch.setitem(CONFIGS, "HYVideo-tiny", TINY)
    monkeypatch.delenv("MODEL_BASE", raising=False)
    words = ["--model", "HYVideo-tiny", "--model-base", str(hunyuan_checkpoint), "--flow-reverse"]
    return [*words, "--prompt", PROMPT, "--seed", "42", "--save-path", str(tmp_path / "results")]


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ((), ["seed42_{}.mp4"]),
        (
            ("--num-videos", "2", "--use-cpu-offload", "--vae-tiling"),
            ["seed42_{}.mp4", "seed43_{}.mp4"],
        ),
        (("--video-length", "1", "--precision", "fp32", "--disable-autocast"), ["seed42_{}.png"]),
        (
            ("--cfg-scale", "2", "--neg-prompt", "green", "--reproduce", "--name-suffix", "x:y"),
            ["seed42_{}_x_y.mp4"],
        ),
    ],
)
def test_the_command_line_makes_the_files(
    command: list[str], tmp_path: Path, options: tuple[str, ...], files: list[str]
) -> None:
    try:
        assert sample_video.main([*command, *options]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    words = PROMPT.replace(" ", "_")
    found = sorted(file.name.partition("_")[2] for file in (tmp_path / "results").iterdir())
    assert found == [file.format(words) for file in files]


def test_an_all_compute_plan_is_bit_identical_to_no_plan_with_real_guidance(
    pipeline: HunyuanVideo,
) -> None:
    bare = pipeline.generate(PROMPT, **CLIP, cfg_scale=2.0)
    every = range(STEPS)
    for sites in (
        (intervals(*every), intervals(*every, kind="double", runs=((0, 1),))),
        (prediction(*every, skip="jump"),),
    ):
        planned = pipeline.generate(PROMPT, **CLIP, cfg_scale=2.0, plan=tiny_plan(*sites))
        assert torch.equal(planned, bare)
        assert pipeline.last_run.block_runs == STEPS * BLOCKS


@pytest.mark.parametrize(
    ("kind", "precision", "cfg_scale"),
    [("both", "bf16", 1.0), *((kind, "fp32", 2.0) for kind in PLANS)],
)
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
    with pytest.raises(InputError, match=r"falling noise levels: record with --flow-reverse"):
        calls_of(pipeline, flow_reverse=False, recorder=object())


def test_plans_run_on_rising_levels_too_as_upstream(pipeline: HunyuanVideo) -> None:
    """The levels that upstream takes without --flow-reverse: 1 minus the falling ones."""
    rising = {**CLIP, "flow_reverse": False}
    noise = pipeline.generate(PROMPT, **rising)
    every = tiny_plan(intervals(*range(STEPS)))
    assert torch.equal(pipeline.generate(PROMPT, **rising, plan=every), noise)
    clip = pipeline.generate(PROMPT, **rising, plan=tiny_plan(*PLANS["both"]))
    assert pipeline.last_run.block_runs == STEPS * BLOCKS - 3 * 2 - 4 * 2
    assert not torch.equal(clip, noise)


@pytest.mark.parametrize("model", [m for m in CONFIGS if m != TINY.model])
def test_shipped_plans_fit_their_models_and_grids(model: str) -> None:
    config = CONFIGS[model]
    presets = available(config.plan_model)
    assert {"paper", "release", "balanced"} <= set(presets)
    for preset in presets:
        plan = load_preset(config.plan_model, preset)
        checked = check_plan(plan, config, config.infer_steps, config.flow_shift)
        assert checked is plan and not plan.notes, preset  # on the grid it was made for

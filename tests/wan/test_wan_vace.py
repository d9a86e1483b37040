"""VACE: its files, the context, and the pipeline against diffusers'."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UniPCMultistepScheduler, WanVACEPipeline
from imageio_ffmpeg import get_ffmpeg_exe
from loguru import logger
from PIL import Image
from torch import Tensor

import generate
from diffusers_pairs import diffusers_wan
from naive_walk import naive
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import MODELS
from profiling_core.profile.profile import Profile
from wan.configs import WAN_CONFIGS
from wan.image2video import to_tensor
from wan.sigmas import sigma_grid, sigmas_fp32
from wan.sources import Video, clip_of, read_sources, sampled
from wan.vace import WanVace, load_sources, on_canvas
from wan_toys import seen_moves, tiny_vae, write_checkpoint

FRAMES, STEPS, SHIFT = 9, 4, 16.0
HEIGHT, WIDTH = 32, 48


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    values = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((values * 255).byte().numpy())


VIDEO = [picture(seed) for seed in range(FRAMES)]
MASK = [picture(20 + seed).convert("L") for seed in range(FRAMES)]
REFERENCE = picture(40, 32, 64)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> WanVace:
    folder = write_checkpoint(tmp_path_factory.mktemp("vace"), model_type="vace", text_len=512)
    return WanVace(WAN_CONFIGS["vace-1.3B"], folder, device="cpu", fp32=True)


def inputs(video: bool, mask: bool, reference: bool) -> tuple[list, list, list]:
    """Arguments of `generate`."""
    frames = torch.stack([to_tensor(one) for one in VIDEO], dim=1)
    marks = torch.stack([to_tensor(one)[:1] for one in MASK], dim=1)
    return (
        [frames if video else torch.zeros_like(frames)],
        [(marks + 1) / 2 if mask else torch.ones_like(marks)],
        [[on_canvas(to_tensor(REFERENCE), (WIDTH, HEIGHT))] if reference else None],
    )


def sample(pipeline: WanVace, *given: list, **options: Any) -> Tensor:
    fixed = {"sampling_steps": STEPS, "seed": 3, "shift": SHIFT, "progress": False}
    return pipeline.generate("red circle", *given, **fixed | options)


@pytest.mark.parametrize(
    ("video", "mask", "reference"),
    [(True, True, False), (True, False, False), (False, False, True), (True, True, True)],
)
@torch.no_grad()
def test_latents_after_a_few_steps_equal_diffusers(
    pipeline: WanVace, monkeypatch: pytest.MonkeyPatch, video: bool, mask: bool, reference: bool
) -> None:
    latents: list[Tensor] = []
    decode = pipeline.decode
    monkeypatch.setattr(pipeline, "decode", lambda z: latents.append(z) or decode(z))
    clip = sample(pipeline, *inputs(video, mask, reference), context_scale=0.8)
    assert clip.shape == (3, FRAMES, HEIGHT, WIDTH)

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )
    grid, plain = sigma_grid("unipc", STEPS, 1.0), scheduler.set_timesteps
    monkeypatch.setattr(
        scheduler, "set_timesteps", lambda count, device: plain(device=device, sigmas=grid)
    )
    parts = {"tokenizer": None, "text_encoder": None, "vae": tiny_vae(), "scheduler": scheduler}
    theirs = WanVACEPipeline(**parts, transformer=diffusers_wan(pipeline.model))
    theirs.set_progress_bar_config(disable=True)
    prompts = [
        F.pad(context, (0, 0, 0, 512 - len(context)))[None].float()
        for context in pipeline.encode(["red circle", pipeline.config.sample_neg_prompt])
    ]
    shape = (1, 16, 3 + reference, 4, 6)
    found = theirs(
        video=VIDEO if video else None,
        mask=MASK if mask else None,
        reference_images=REFERENCE if reference else None,
        conditioning_scale=0.8,
        **{"latents": torch.randn(shape, generator=torch.Generator().manual_seed(3))},
        **{"prompt_embeds": prompts[0], "negative_prompt_embeds": prompts[1]},
        **{"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES, "output_type": "latent"},
        num_inference_steps=STEPS,
    ).frames[0]
    (latent,) = latents
    assert latent.std() > 0.1
    assert (latent - found[:, int(reference) :]).abs().max() < 1e-4


def plan_of(site: dict[str, Any], *steps: int) -> CachePlan:
    computed = {"cond": list(steps), "uncond": list(steps)}
    return CachePlan.build(
        name="tiny",
        model={"family": "wan2.1", "name": "tiny", "block_lists": {"blocks": 3}, "width": 48},
        steps=STEPS,
        sigmas=sigmas_fp32("unipc", STEPS, SHIFT),
        solver="unipc",
        shift=SHIFT,
        sites=[{**site, "compute_steps": computed, "skip": "hold"}],
        provenance={"made_by": "tests", "source": "by hand"},
    )


PREDICTION = {"kind": "prediction"}
INTERVALS = {"kind": "intervals", "block_list": "blocks", "intervals": [[0, 1], [2, 2]]}


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []
    sink = logger.add(lambda line: found.append(line.record["message"]), level="INFO")
    yield found
    logger.remove(sink)


@pytest.mark.parametrize(("site", "hints"), [(PREDICTION, 2 * 2), (INTERVALS, 4 * 2)])
def test_a_plan_does_what_a_naive_walk_does_and_hints_run_at_every_model_call(
    pipeline: WanVace, lines: list[str], site: dict[str, Any], hints: int
) -> None:
    """A delta holds the hints of the step that it was computed at, as part of the outputs."""
    given, runs = inputs(True, True, False), []
    full = sample(pipeline, *given)
    assert torch.equal(sample(pipeline, *given, plan=plan_of(site, 0, 1, 2, 3)), full)
    plan = plan_of(site, 0, 2)
    with naive(plan, pipeline.model, {"blocks": "blocks"}, 2):
        expected = sample(pipeline, *given)
    count = pipeline.model.vace_blocks[1].register_forward_hook(lambda *args: runs.append(1))
    found = sample(pipeline, *given, plan=plan)
    count.remove()
    assert torch.equal(found, expected) and not torch.equal(found, full)
    assert len(runs) == hints
    said = "the 2 hint blocks run at every model call beside these: with them the ideal speed-up"
    assert any(line.startswith(f"{said} is 1.43x") for line in lines) == (site is INTERVALS)


def test_parts_leave_the_gpu_while_sources_are_encoded(
    pipeline: WanVace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_moves(pipeline, monkeypatch)
    encode = pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda x: seen.append("encoding") or encode(x))
    sample(pipeline, *inputs(True, False, True), offload_model=True)
    text = ["model cpu", "text_encoder cpu:0", "text_encoder cpu"]
    assert seen == [*text, "model cpu", *["encoding"] * 3, "model cpu:0", "model cpu"]


# -- files


def write_video(path: Path, frames: list[Image.Image]) -> Path:
    """Without loss."""
    lossless = {"codec": "ffv1", "pixelformat": "bgr0", "macro_block_size": 1}
    values = np.stack([np.asarray(one.convert("RGB")) for one in frames])
    iio.imwrite(path, values, plugin="FFMPEG", fps=16, ffmpeg_log_level="quiet", **lossless)
    return path


@pytest.mark.parametrize(
    ("source", "frames", "size", "clip"),
    [
        ((1920, 1080), 81, (1280, 720), ((1280, 720), 81)),
        ((1920, 1080), 500, (832, 480), ((832, 480), 81)),
        ((1080, 1920), 80, (832, 480), ((464, 848), 77)),
        ((720, 720), 81, (1280, 720), ((720, 720), 81)),
        ((320, 240), 200, (1280, 720), ((320, 240), 197)),  # small: longer, and never enlarged
        ((3840, 1600), 6, (1280, 720), ((1472, 624), 5)),
    ],
)
def test_a_clip_has_the_aspect_of_its_video_and_the_area_of_size(
    source: tuple[int, int], frames: int, size: tuple[int, int], clip: tuple[Any, ...]
) -> None:
    assert clip_of(Video(Path("a.mp4"), "--src_video", source, frames), size) == clip


def test_frames_are_taken_evenly_and_the_last_is_kept() -> None:
    assert sampled(81, 81) == [*range(81)]
    assert sampled(8, 5) == [0, 1, 3, 5, 7]
    assert sampled(500, 81)[:4] == [0, 6, 12, 18] and sampled(500, 81)[-1] == 499


def test_a_video_is_scaled_and_cut_and_its_mask_goes_from_0_to_1(tmp_path: Path) -> None:
    frames = [picture(seed, 80, 48) for seed in range(8)]
    video = write_video(tmp_path / "video.mkv", frames)
    black = Image.new("RGB", (80, 48))
    mask = write_video(tmp_path / "mask.mkv", [black, *[Image.new("RGB", (80, 48), "white")] * 7])
    sources = read_sources(video, mask, [], (WIDTH, HEIGHT), 81)
    assert (sources.size, sources.frame_num) == ((48, 32), 5)
    (found,), (marks,), (pictures,) = load_sources(sources)
    assert found.shape == (3, 5, 32, 48) and marks.shape == (1, 5, 32, 48) and pictures is None
    assert marks[:, 0].max() == 0 and marks[:, 1:].min() == 1
    raw = torch.from_numpy(np.array(frames[-1])).permute(2, 0, 1)[None]
    scaled = F.interpolate(raw, (32, 53), mode="bicubic", antialias=True)[0, :, :, 2:50]
    assert torch.equal(found[:, -1], scaled / 127.5 - 1)
    alike = read_sources(video, None, [], (80, 48), 81)
    (found,), (marks,), _ = load_sources(alike)
    assert torch.equal(found[:, 2], to_tensor(frames[3])) and marks.min() == 1


def test_a_video_is_read_upright_without_a_word(tmp_path: Path, caplog) -> None:
    lying = write_video(tmp_path / "lying.mkv", [one.rotate(-90, expand=True) for one in VIDEO])
    turned = tmp_path / "turned.mov"  # as a telephone writes it
    ask = ["-display_rotation", "90", "-i", str(lying), "-c", "copy", str(turned)]
    subprocess.run([get_ffmpeg_exe(), "-v", "error", *ask], check=True)
    sources = read_sources(turned, None, [], (WIDTH, HEIGHT), 81)
    assert (sources.size, sources.frame_num) == ((WIDTH, HEIGHT), FRAMES)
    (found,), _, _ = load_sources(sources)
    assert torch.equal(found[:, 3], to_tensor(VIDEO[3]))
    assert not caplog.records


def test_a_picture_of_another_size_stands_whole_on_white() -> None:
    found = on_canvas(-torch.ones(3, 8, 8), (48, 32))
    assert found.shape == (3, 1, 32, 48)
    assert found[..., 8:40].max() == -1
    assert found[..., :8].min() == found[..., 40:].min() == 1


BAD = {  # what stands in the folder, options, what the line says
    "absent": ("", "--src_video no.mp4", "--src_video no.mp4 does not exist: name a video"),
    "folder": ("", "--src_video .", "--src_video . is no file: name a video"),
    "text": ("text", "--src_video text.mp4", "--src_video text.mp4 cannot be read as a video"),
    "short": ("4", "--src_video 4.mkv", "4.mkv has 4 frames of 48x32: take a video of 5 frames"),
    "picture": ("png", "--src_video a.png", "a.png has 1 frame of 48x32: take a video of 5"),
    "narrow": ("narrow", "--src_video narrow.mkv", "take one of 16x16 or more"),
    "longer mask": (
        "9 8",
        "--src_video 9.mkv --src_mask 8.mkv",
        "--src_mask 8.mkv has 8 frames of",
    ),
    "other mask": ("9 wide", "--src_video 9.mkv --src_mask wide.mkv", "of 64x32 and --src_video 9"),
    "mask alone": ("9", "--src_mask 9.mkv", "--src_mask 9.mkv has no video to mask: name one in"),
    "pictures": ("png", "--src_ref_images a.png,b.png", "--src_ref_images b.png does not exist"),
    "text picture": ("text", "--src_ref_images text.mp4", "cannot be read as a picture"),
    "frames": ("", "--frame_num 80", "frame_num 80 is not 4n+1: take 77 or 81"),
    "many": ("png", "--frame_num 4093 --src_ref_images a.png", "frame_num 4097 is too large"),
    "text to video": ("9", "--task t2v-14B --src_video 9.mkv", "take --task vace-14B"),
}
MADE: dict[str, Callable[[Path], Any]] = {
    "text": lambda folder: (folder / "text.mp4").write_text("hello"),
    "png": lambda folder: picture(0).save(folder / "a.png"),
    "narrow": lambda folder: write_video(folder / "narrow.mkv", [picture(0, 80, 8)] * 5),
    "wide": lambda folder: write_video(folder / "wide.mkv", [picture(0, 64, 32)] * 9),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_source_is_one_line_before_weights_are_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made, options, says = BAD[name]
    monkeypatch.chdir(tmp_path)
    for one in made.split():
        if one.isdigit():
            write_video(tmp_path / f"{one}.mkv", VIDEO[: int(one)])
        else:
            MADE[one](tmp_path)
    before = sorted(tmp_path.iterdir())
    argv = ["--task", "vace-1.3B", "--save_file", "clip.mp4", "--base_seed", "1"]
    assert generate.main([*argv, *options.split()]) == 2
    assert sorted(tmp_path.iterdir()) == before, "a file was left"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line, line


def test_another_checkpoint_and_other_channels_are_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["--task", "vace-1.3B", "--save_file", str(tmp_path / "clip.mp4"), "--ckpt_dir"]
    assert generate.main([*argv, str(checkpoint)]) == 2
    says = (
        "config.json says model_type 't2v', task vace-1.3B needs 'vace': download Wan-AI/Wan2.1-V"
    )
    assert says in capsys.readouterr().err
    folder = write_checkpoint(tmp_path / "own", model_type="vace", vace_in_dim=80)
    assert generate.main([*argv, str(folder), "--frame_num", "5", "--sample_steps", "1"]) == 2
    says = "the task's context channels 96 and the transformer's vace_in_dim 80 do not match"
    assert says in capsys.readouterr().err


def test_the_command_makes_a_clip_of_its_sources_and_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "own", model_type="vace")
    monkeypatch.setitem(generate.SIZE_CONFIGS, "832*480", (WIDTH, HEIGHT))
    write_video(tmp_path / "video.mkv", VIDEO)
    write_video(tmp_path / "mask.mkv", MASK)
    REFERENCE.save(tmp_path / "a.png")
    planned = MODELS["wan2.1-vace-1.3B"]
    tiny = planned.fingerprint.model_copy(update={"block_lists": {"blocks": 3}, "width": 48})
    monkeypatch.setitem(MODELS, "wan2.1-vace-1.3B", replace(planned, fingerprint=tiny))
    argv = ["--task", "vace-1.3B", "--ckpt_dir", "own", "--sample_steps", "2"]
    argv += [
        "--src_video",
        "video.mkv",
        "--src_mask",
        "mask.mkv",
        "--src_ref_images",
        "a.png,a.png",
    ]
    argv += ["--save_file", "clip.mp4", "--delta_profile", "own.profile"]
    assert generate.main(argv) == 0
    assert "--src_video asks for 9 frames of 48x32" in capsys.readouterr().out
    recorded = Profile.load(tmp_path / "own.profile").recorded
    assert recorded.shift == 16 and recorded.latent == (16, 2 + 3, 4, 6)
    assert iio.imread("clip.mp4", plugin="FFMPEG").shape == (9, 32, 48, 3)


def test_files_become_the_arguments_of_generate(pipeline: WanVace, tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mkv", VIDEO)
    REFERENCE.save(tmp_path / "a.png")
    found = pipeline.prepare_source(
        [video], [None], [[tmp_path / "a.png"]], 81, (WIDTH, HEIGHT), "cpu"
    )
    for own, direct in zip(found, inputs(True, False, True), strict=True):
        own, direct = (one[0] if isinstance(one[0], list) else one for one in (own, direct))
        assert (own[0] - direct[0]).abs().max() < 1e-6
    with pytest.raises(ValueError, match="unpack"):
        pipeline.prepare_source([video, video], [None], [None], 81, (WIDTH, HEIGHT), "cpu")

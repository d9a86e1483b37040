"""Image to video: pictures, the CLIP encoder, and both pipelines against diffusers'."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from PIL import Image
from torch import Tensor

import generate
from diffusers_pairs import diffusers_wan
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import MODELS
from profiling_core.profile.profile import Profile
from wan.clip import MEAN, STD, build_clip, convert_names
from wan.configs import CLIP_CHECKPOINT, MAX_AREA_CONFIGS, WAN_CONFIGS, size_like
from wan.image2video import WanFLF2V, WanI2V, frame_mask, to_tensor
from wan.pictures import fitted, read_picture
from wan.sigmas import sigma_grid, sigmas_fp32
from wan_toys import seen_moves, tiny_clip, tiny_vae, write_checkpoint

TEXT_MOVES = ["model cpu", "text_encoder cpu:0", "text_encoder cpu"]
AREA, FRAMES, STEPS, SHIFT = 48 * 32, 9, 4, 3.0
TASKS = {"i2v": ("i2v-14B", WanI2V), "flf2v": ("flf2v-14B", WanFLF2V)}


def picture(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    values = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((values * 255).byte().numpy())


@pytest.fixture(scope="module", params=["i2v", "flf2v"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WanI2V:
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    write_checkpoint(folder, model_type=kind, text_len=512)
    task, pipeline = TASKS[kind]
    return pipeline(WAN_CONFIGS[task], folder, device="cpu", fp32=True)


def pictures_of(pipeline: WanI2V) -> list[Image.Image]:
    return [picture(seed) for seed in range(len(pipeline.config.pictures))]


def sample(pipeline: WanI2V, **options: Any) -> Tensor:
    given = {"max_area": AREA, "frame_num": FRAMES, "sampling_steps": STEPS, "seed": 3}
    given |= {"shift": SHIFT, "progress": False}
    return pipeline.generate("red circle", *pictures_of(pipeline), **given | options)


def squares(pictures: list[Image.Image], side: int) -> Tensor:
    """The official preprocessing, in the order of its steps."""
    found = [F.interpolate(to_tensor(p)[None], size=(side, side), mode="bicubic") for p in pictures]
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (torch.cat(found).mul(0.5).add(0.5) - mean) / std


@torch.no_grad()
def test_latents_after_a_few_steps_equal_diffusers(
    pipeline: WanI2V, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents: list[Tensor] = []
    decode = pipeline.decode
    monkeypatch.setattr(pipeline, "decode", lambda z: latents.append(z) or decode(z))
    video = sample(pipeline)
    assert video.shape == (3, FRAMES, 32, 48)

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )
    grid, plain = sigma_grid("unipc", STEPS, 1.0), scheduler.set_timesteps
    monkeypatch.setattr(
        scheduler, "set_timesteps", lambda count, device: plain(device=device, sigmas=grid)
    )
    theirs = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        scheduler=scheduler,
        transformer=diffusers_wan(pipeline.model),
    )
    theirs.set_progress_bar_config(disable=True)
    first, *last = pictures_of(pipeline)
    clip = tiny_clip()
    features = clip(squares([first, *last], 28), output_hidden_states=True).hidden_states[-2]
    monkeypatch.setattr(theirs, "encode_image", lambda images, device: features)
    prompts = [
        F.pad(context, (0, 0, 0, 512 - len(context)))[None].float()
        for context in pipeline.encode(["red circle", pipeline.config.sample_neg_prompt])
    ]
    noise = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    found = theirs(
        image=first,
        last_image=last[0] if last else None,
        **{"prompt": None, "latents": noise, "output_type": "latent"},
        **{"prompt_embeds": prompts[0], "negative_prompt_embeds": prompts[1]},
        **{"height": 32, "width": 48, "num_frames": FRAMES, "num_inference_steps": STEPS},
        guidance_scale=5.0 if len(last) == 0 else 5.5,
    ).frames[0]
    (latent,) = latents
    assert latent.std() > 0.1
    assert (latent - found).abs().max() < 1e-4


def test_the_cache_answers_as_its_plan_says(pipeline: WanI2V) -> None:
    full = sample(pipeline)
    model = {"family": "wan2.1", "name": "tiny", "block_lists": {"blocks": 3}, "width": 48}

    def clip(site: dict[str, Any], *steps: int) -> Tensor:
        computed = {"cond": list(steps), "uncond": list(steps)}
        plan = CachePlan.build(
            name="tiny",
            model=model,
            steps=STEPS,
            sigmas=sigmas_fp32("unipc", STEPS, SHIFT),
            solver="unipc",
            shift=SHIFT,
            sites=[{**site, "compute_steps": computed, "skip": "hold"}],
            provenance={"made_by": "tests", "source": "by hand"},
        )
        return sample(pipeline, plan=plan)

    for site in (
        {"kind": "prediction"},
        {"kind": "intervals", "block_list": "blocks", "intervals": [[1, 2]]},
    ):
        assert torch.equal(clip(site, 0, 1, 2, 3), full)
        assert not torch.equal(clip(site, 0, 2), full)


@pytest.mark.parametrize("t5_cpu", [False, True])
def test_parts_leave_the_gpu_while_pictures_are_encoded(
    pipeline: WanI2V, monkeypatch: pytest.MonkeyPatch, t5_cpu: bool
) -> None:
    seen = seen_moves(pipeline, monkeypatch, "image_encoder")
    monkeypatch.setattr(pipeline, "t5_cpu", t5_cpu)
    encode = pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda x: seen.append("encoding") or encode(x))
    sample(pipeline, offload_model=True)
    images = ["model cpu", "image_encoder cpu:0", "image_encoder cpu", "encoding", "model cpu:0"]
    text = ["text_encoder cpu"] * 2 if t5_cpu else TEXT_MOVES
    assert seen == [*text, *images, "model cpu"]


def test_the_encoder_returns_what_the_last_but_one_block_does(pipeline: WanI2V) -> None:
    pictures = [picture(5, 20, 70), picture(6)]
    found = pipeline.image_encoder([to_tensor(p) for p in pictures])
    with torch.no_grad():
        whole = tiny_clip()(squares(pictures, 28), output_hidden_states=True)
    assert torch.equal(found, whole.hidden_states[-2])


def test_the_official_clip_has_392_visual_tensors() -> None:
    layer = {f"norm{n}.{kind}": [1280] for n in (1, 2) for kind in ("weight", "bias")}
    for name, rows, columns in (
        ("attn.to_qkv", 3840, 1280),
        ("attn.proj", 1280, 1280),
        ("mlp.0", 5120, 1280),
        ("mlp.2", 1280, 5120),
    ):
        layer |= {f"{name}.weight": [rows, columns], f"{name}.bias": [rows]}
    shapes = {f"transformer.{i}.{name}": shape for i in range(32) for name, shape in layer.items()}
    shapes |= {f"{p}_norm.{k}": [1280] for p in ("pre", "post") for k in ("weight", "bias")}
    shapes |= {"cls_embedding": [1, 1, 1280], "pos_embedding": [1, 257, 1280]}
    shapes |= {"patch_embedding.weight": [1280, 3, 14, 14], "head": [1280, 1024]}
    state = {f"visual.{name}": torch.empty(s, device="meta") for name, s in shapes.items()}
    assert len(state) == 392 and sum(t.numel() for t in state.values()) == 632_076_800
    model = build_clip(Path("official.pth"))
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    converted = convert_names(state, model.config.num_hidden_layers)
    assert {name: tuple(tensor.shape) for name, tensor in converted.items()} == names


def test_the_mask_marks_the_frames_that_are_given() -> None:
    one, two = frame_mask(81, (0,), 2, 3), frame_mask(13, (0, 12), 2, 3)
    assert one.shape == (4, 21, 2, 3) and two.shape == (4, 4, 2, 3)
    assert one[:, 0].min() == 1 and one[:, 1:].max() == 0
    assert two[:, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [0] * 4, [0] * 4, [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("shape", "large", "small"),  # officially, in (width, height)
    [
        ((1920, 1080), (1280, 720), (832, 464)),
        ((1280, 960), (1104, 816), (720, 544)),
        ((1, 1), (960, 960), (624, 624)),
    ],
)
def test_the_clip_has_the_pictures_aspect_and_the_area_of_size(
    shape: tuple[int, int], large: tuple[int, int], small: tuple[int, int]
) -> None:
    assert size_like(shape, 1280 * 720) == large
    assert size_like(shape, 832 * 480) == small


def test_a_last_frame_of_another_size_is_scaled_and_cut_to_the_first() -> None:
    last = Image.new("RGB", (200, 100))
    last.paste((255, 0, 0), (100, 0, 200, 100))
    found = np.asarray(fitted(last, (50, 50)))
    assert found.shape == (50, 50, 3)
    assert found[:, :20].max() == 0 and found[:, 30:, 0].min() == 255


# -- picture files


def left_half(mode: str, *values: Any) -> Image.Image:
    """16 x 8 pixels: the left half of values[0], the right one of values[1]."""
    image = Image.new(mode, (16, 8), values[1])
    image.paste(values[0], (0, 0, 8, 8))
    return image


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it upright
    left_half("RGB", (255, 255, 255), (0, 0, 0)).rotate(90, expand=True).save(path, exif=exif)


KINDS: dict[str, Callable[[Path], None]] = {
    "rgb.png": lambda path: left_half("RGB", (255, 255, 255), (0, 0, 0)).save(path),
    "gray16.png": lambda path: left_half("I;16", 65535, 100).save(path),
    "rgba.png": lambda path: left_half("RGBA", (9, 9, 9, 0), (0, 0, 0, 255)).save(path),
    "cmyk.jpg": lambda path: left_half("CMYK", (0, 0, 0, 0), (0, 0, 0, 255)).save(path),
    "palette.gif": lambda path: left_half("P", 1, 0).save(path),
    "turned.png": turned,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_is_read_upright_as_rgb(name: str, tmp_path: Path) -> None:
    if name == "palette.gif":
        image = left_half("L", 255, 0).convert("P")
        image.save(tmp_path / name, save_all=True, append_images=[Image.new("P", (16, 8))])
    else:
        KINDS[name](tmp_path / name)
    found = read_picture(tmp_path / name, "--image")
    assert (found.mode, found.size) == ("RGB", (16, 8))
    values = np.asarray(found)
    assert values[:, :6].min() > 240 and values[:, 10:].max() < 15


def a_picture(path: Path) -> Path:
    picture(0).save(path)
    return path


BAD = {  # --image or a file's content, what the line says
    "none.png": (None, "does not exist: name a picture"),
    "folder": (None, "is no file: name a picture"),
    "text.png": (b"hello", "cannot be read as a picture"),
    "empty.png": (b"", "cannot be read as a picture"),
    "postscript.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot be read as a picture"),
    "cut.png": ("cut", "cannot be read as a picture"),
    "float.tiff": ("float", "its pixels have 32 bits"),
    "huge.png": ("huge", "is too large: at most 178,956,970 pixels are read"),
    "narrow.png": ("narrow", "a picture of 4000x2 pixels is too narrow"),
}


def write_bad(path: Path, content: bytes | str | None) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "cut":
        picture(0, 200, 200).save(path)
        path.write_bytes(path.read_bytes()[:9000])
    elif content == "float":
        Image.new("F", (8, 8)).save(path)
    elif content == "huge":  # a header is enough
        head = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
        crc = zlib.crc32(b"IHDR" + head)
        chunks = struct.pack(">I4s13sI", 13, b"IHDR", head, crc) + b"\0\0\0\x08IDAT" + b"\0" * 12
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    elif content == "narrow":
        Image.new("RGB", (4000, 2)).save(path)
    elif path.suffix == "":
        path.mkdir()


@pytest.fixture
def error_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> str:
        before = sorted(tmp_path.iterdir())
        assert generate.main(["--save_file", "clip.mp4", "--base_seed", "1", *argv]) == 2
        assert sorted(tmp_path.iterdir()) == before, "a file was left"
        (line,) = (one for one in capsys.readouterr().err.splitlines() if one)
        assert line.startswith("error: ")
        return line

    return run


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_one_line_before_weights_are_asked_for(
    name: str, tmp_path: Path, error_of: Callable
) -> None:
    content, says = BAD[name]
    write_bad(tmp_path / name, content)
    line = error_of("--task", "i2v-14B", "--image", name)
    assert says in line and (name in line or "too narrow" in line)


def test_pictures_that_are_missing_or_another_tasks_are_named(
    tmp_path: Path, error_of: Callable
) -> None:
    a_picture(tmp_path / "a.png")
    i2v, flf2v, t2v = (
        ["--ckpt_dir", "x", "--task", f"{kind}-14B"] for kind in ("i2v", "flf2v", "t2v")
    )
    for nothing in ((), ("--image", "")):
        assert "--image is missing: task i2v-14B needs a picture" in error_of(*i2v, *nothing)
    assert "--task i2v-mini runs at once" in error_of(*i2v, "--image", "a.png")
    assert "--last_frame is missing" in error_of(*flf2v, "--first_frame", "a.png")
    says = "--image a.png: task t2v-14B does not start from it, leave it out or take --task i2v-14B"
    assert says in error_of(*t2v, "--image", "a.png")
    assert "take --task i2v-mini" in error_of("--task", "t2v-mini", "--image", "a.png")
    assert "take --task flf2v-14B" in error_of(*i2v, "--image", "a.png", "--last_frame", "a.png")
    few = error_of(*flf2v, "--first_frame", "a.png", "--last_frame", "a.png", "--frame_num", "1")
    assert "frame_num 1: task flf2v-14B ends with a frame of its own, take 5 or more" in few


def test_another_tasks_checkpoint_and_a_damaged_clip_file_are_named(
    tmp_path: Path, error_of: Callable, checkpoint: Path
) -> None:
    a_picture(tmp_path / "a.png")
    own = write_checkpoint(tmp_path / "own", model_type="i2v")
    argv = ["--task", "i2v-14B", "--image", "a.png", "--frame_num", "5", "--ckpt_dir"]
    says = "config.json says model_type 't2v', task i2v-14B needs 'i2v': download Wan-AI/Wan2.1-I2V"
    assert says in error_of(*argv, str(checkpoint))
    assert "says model_type 'i2v'" in error_of("--task", "t2v-14B", "--ckpt_dir", str(own))
    clip = own / CLIP_CHECKPOINT
    whole = clip.read_bytes()
    clip.write_bytes(whole[: len(whole) // 2])
    assert f"{CLIP_CHECKPOINT} is not a complete weight file" in error_of(*argv, str(own))
    clip.unlink()
    assert f"{CLIP_CHECKPOINT} is missing" in error_of(*argv, str(own))


def test_the_command_writes_a_clip_of_the_pictures_aspect_and_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MAX_AREA_CONFIGS, "832*480", AREA)
    write_checkpoint(tmp_path / "own", model_type="flf2v")
    for name in ("a.png", "b.png"):
        a_picture(tmp_path / name)
    argv = ["--task", "flf2v-14B", "--ckpt_dir", "own", "--first_frame", "a.png", "--size"]
    argv += ["832*480", "--last_frame", "b.png", "--frame_num", "5", "--sample_steps", "2"]
    planned = MODELS["wan2.1-flf2v-14B"]
    tiny = planned.fingerprint.model_copy(update={"block_lists": {"blocks": 3}, "width": 48})
    monkeypatch.setitem(MODELS, "wan2.1-flf2v-14B", replace(planned, fingerprint=tiny))
    argv += ["--delta_profile", "own.profile"]
    assert generate.main([*argv, "--save_file", "clip.mp4"]) == 0
    assert Profile.load(tmp_path / "own.profile").recorded.shift == 16
    assert "a video of 48x32" in capsys.readouterr().out
    assert (tmp_path / "clip.mp4").stat().st_size > 500

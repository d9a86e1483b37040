"""The bundled miniatures, end to end: the clips of `make demo`, and what the plans promise."""

import re
from math import prod
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import generate
from hyvideo.config import CONFIGS as HUNYUAN_CONFIGS
from hyvideo.model import text_lens
from hyvideo.pipeline import HunyuanVideo
from miniatures.check import psnr
from profiling_core.errors import InputError
from profiling_core.metrics import compare, latent_error
from profiling_core.plan.cost import bytes_held
from profiling_core.plan.presets import load_preset
from wan.checkpoint import check_folder
from wan.configs import WAN_CONFIGS, parse_size
from wan.text2video import WanT2V

PLANS = (None, "paper", "balanced")
TOKENS = 576
HUNYUAN, I2V = HUNYUAN_CONFIGS["HYVideo-mini"], WAN_CONFIGS["i2v-mini"]
BLUE_STAR = "blue star moving left over red checks"


def wan() -> SimpleNamespace:
    config = WAN_CONFIGS["t2v-mini"]
    pipeline = WanT2V(config, config.ckpt_dir, device="cpu")
    contexts = pipeline.encode(
        ["red circle moving right over blue stripes", config.sample_neg_prompt]
    )
    shape = config.latent_shape(parse_size(config.default_size), config.frame_num)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(42))
    options = {"shift": config.sample_shift, "guide_scale": config.sample_guide_scale}
    options |= {"sampling_steps": config.sample_steps, "progress": False}
    return SimpleNamespace(
        pipeline=pipeline,
        config=config,
        default=(config.sample_steps, config.sample_shift),
        denoise=lambda plan: pipeline.denoise(*contexts, noise, plan=plan, **options),
        sizes={"tokens": TOKENS, "stream_itemsize": 4, "latent_numel": noise.numel()},
        black=-1,
        moves=(0, 1, 0.5),  # the reddest pixels to the right
    )


def hunyuan() -> SimpleNamespace:
    pipeline = HunyuanVideo(HUNYUAN, HUNYUAN.model_base, "cpu")
    conditioning = pipeline.encode(BLUE_STAR, video_length=HUNYUAN.video_length)
    shape = HUNYUAN.latent_shape(HUNYUAN.video_size, HUNYUAN.video_length)
    noise, size = pipeline.noise(shape, 42, "cpu"), pipeline.dtype.itemsize
    tokens = HUNYUAN.tokens(shape) + text_lens(conditioning.mask)[0]
    sizes = {"tokens": tokens, "stream_itemsize": size, "prediction_itemsize": size}
    return SimpleNamespace(
        pipeline=pipeline,
        config=HUNYUAN,
        default=(HUNYUAN.infer_steps, HUNYUAN.flow_shift),
        denoise=lambda plan: pipeline.denoise(conditioning, noise, plan=plan, progress=False),
        sizes=sizes | {"latent_numel": prod(shape)},
        black=0,
        moves=(2, -1, 0.25),  # the bluest pixels to the left
    )


@pytest.fixture(scope="module", params=[wan, hunyuan])
def mini(request):
    """A miniature and, per plan, video, latent and statistics of one prompt and seed."""
    mini = request.param()
    mini.clips = {}
    for preset in PLANS:
        plan = load_preset(mini.config.plan_model, preset) if preset else None
        latent = mini.denoise(plan)
        mini.clips[preset] = (mini.pipeline.decode(latent), latent, mini.pipeline.last_run)
    return mini


def test_clip_has_the_documented_shape_and_moves(mini):
    video = mini.clips[None][0]
    assert video.shape == (3, 33, 128, 128)
    assert video.min() >= mini.black and video.max() <= 1
    assert compare(video, video[:, :1].expand_as(video)).motion == float("inf")


@pytest.mark.parametrize("preset", PLANS[1:])
def test_plan_runs_and_holds_what_its_file_says(mini, preset):
    plan, run = load_preset(mini.config.plan_model, preset), mini.clips[preset][2]
    assert run.block_runs == plan.expected.block_runs
    assert run.block_runs_full == plan.expected.block_runs_full
    assert run.peak_bytes == bytes_held(plan, **mini.sizes)
    assert (plan.steps, plan.shift) == mini.default  # its noise levels are the default run's


def test_cached_clips_stay_close_and_balanced_is_the_closest(mini):
    reference, latent, _ = mini.clips[None]
    named = ("paper", "balanced")
    paper, balanced = (compare(mini.clips[name][0], reference) for name in named)
    assert balanced.psnr_frames > paper.psnr_frames > 15
    errors = [latent_error(mini.clips[name][1], latent) for name in named]
    assert 0 < errors[1] < errors[0] < 1


def test_the_prompts_object_moves_as_the_prompt_says(mini):
    """Its pixels' mean column, first frames against last: what a viewer sees."""
    channel, direction, threshold = mini.moves
    video = mini.clips[None][0].numpy()
    others = np.delete(video, channel, axis=0).max(0)
    mask = video[channel] - others > threshold  # (F, H, W)
    seen = mask.sum((1, 2))
    assert (seen > 50).mean() > 0.9
    centre = (mask * np.arange(128)).sum((1, 2)) / np.maximum(seen, 1)
    assert direction * (centre[-4:].mean() - centre[:4].mean()) > 10


def test_a_batch_of_two_prompts_gives_each_its_own_clip():
    """Prompts of different length in one call: the padding of the shorter one is hidden."""
    # bf16 rounds by 1e-2
    pipeline = HunyuanVideo(HUNYUAN, HUNYUAN.model_base, "cpu", fp32=True)
    prompts = (BLUE_STAR, "red circle orbiting over green noise")
    shape = HUNYUAN.latent_shape(HUNYUAN.video_size, HUNYUAN.video_length)
    single = [pipeline.encode(p, video_length=HUNYUAN.video_length) for p in prompts]
    both = type(single[0])(
        *(torch.cat([getattr(c, n) for c in single]) for n in ("states", "mask", "pooled"))
    )
    noise = pipeline.noise(shape, 1, "cpu")
    apart = torch.cat([pipeline.denoise(c, noise, infer_steps=2, progress=False) for c in single])
    together = pipeline.denoise(both, noise.expand(2, *shape), infer_steps=2, progress=False)
    assert latent_error(together, apart) < 1e-2


def test_i2v_mini_begins_with_its_picture_and_a_plan_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "clip.mp4", I2V.ckpt_dir.parents[1] / "examples" / "first.png"
    options = {"base_seed": 42, "sample_steps": 20, "delta_cache": "fast", "save_file": file}
    given = [f"--{name}={value}" for name, value in options.items()]
    assert generate.main(["--task=i2v-mini", f"--image={picture}", *given]) == 0
    ran = re.search(r"(\d+) of 400 block runs", capsys.readouterr().out)
    assert ran is not None and int(ran[1]) < 300
    frames, first = iio.imread(file), iio.imread(picture)
    assert frames.shape == (33, 128, 128, 3)
    assert psnr(frames[0], first) > 22  # of a run in full 24 or more; the file is lossy


def test_i2v_mini_takes_encoders_and_vae_from_t2v_mini_and_is_small() -> None:
    """The tracked tree stays below 60 MB."""
    files = {path.name for path in I2V.ckpt_dir.iterdir()}
    weights = ("diffusion_pytorch_model.safetensors", I2V.clip_checkpoint)
    sizes = str(Path(I2V.clip_checkpoint).with_suffix(".json"))
    assert files == {*weights, sizes, "config.json", "README.md", "profile.safetensors"}
    assert sum(path.stat().st_size for path in I2V.ckpt_dir.iterdir()) < 11.6e6
    shared = (I2V.vae_checkpoint, I2V.t5_checkpoint, I2V.t5_tokenizer)
    t2v = WAN_CONFIGS["t2v-mini"].ckpt_dir
    assert all((I2V.ckpt_dir / name).resolve().is_relative_to(t2v) for name in shared)


def test_a_wrong_folder_for_a_miniature_is_named(tmp_path: Path) -> None:
    t2v = WAN_CONFIGS["t2v-mini"]
    with pytest.raises(InputError, match="model_type 't2v', task i2v-mini needs 'i2v'"):
        check_folder(t2v.ckpt_dir, I2V)
    with pytest.raises(InputError, match="model_type 'i2v', task t2v-mini needs 't2v'"):
        check_folder(I2V.ckpt_dir, t2v)
    alone = tmp_path / "Wan2.1-I2V-mini"  # without t2v-mini beside it
    alone.mkdir()
    (alone / "config.json").write_bytes((I2V.ckpt_dir / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"T2V-mini/models_t5.* is missing: leave --ckpt_dir"):
        check_folder(alone, I2V)

"""The VAE from files in the official format, against diffusers' module and the official tiles."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from loguru import logger

from devices import DEVICES
from hunyuan_toys import OFFICIAL_VAE, TINY_VAE, tiny_vae, write_vae
from hyvideo.checkpoint import MODEL
from hyvideo.vae import VideoVAE, build_vae, slow_convolutions, vae_sizes, warn_once
from profiling_core.errors import InputError


@pytest.fixture(scope="module")
def folder(hunyuan_checkpoint: Path) -> Path:
    return hunyuan_checkpoint / MODEL / "vae"


def load(folder: Path, precision: str = "fp32", device: str = "cpu") -> VideoVAE:
    return VideoVAE(folder / "config.json", folder / "pytorch_model.pt", device, precision)


@pytest.fixture(scope="module")
def vae(folder: Path) -> VideoVAE:
    return load(folder)


def written(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def test_the_official_config_is_diffusers_default_of_248_tensors(tmp_path: Path) -> None:
    sizes = {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
    ours = build_vae(written(tmp_path, {**OFFICIAL_VAE, **sizes, "layers_per_block": 2}))
    with torch.device("meta"):
        theirs = AutoencoderKLHunyuanVideo()
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    assert len(shapes) == 248
    assert ours.config.scaling_factor == 0.476986
    parameters = sum(p.numel() for p in theirs.parameters())
    assert vae_sizes(tmp_path / "config.json") == (parameters, 128, 256, 64)
    assert abs(parameters - 246.5e6) < 0.1e6


def test_absent_keys_are_official(tmp_path: Path) -> None:
    found = build_vae(written(tmp_path, {})).config
    with torch.device("meta"):
        official = AutoencoderKLHunyuanVideo().config
    for name, value in official.items():
        if not name.startswith("_"):
            assert found[name] == value, name


def tiles(vae: AutoencoderKLHunyuanVideo) -> tuple[int, ...]:
    sizes = (vae.tile_sample_min_height, vae.tile_sample_min_width, vae.tile_sample_min_num_frames)
    return (
        *sizes,
        vae.tile_sample_stride_height,
        vae.tile_sample_stride_width,
        vae.tile_sample_stride_num_frames,
    )


def test_tiles_are_the_official_ones(vae: VideoVAE, tmp_path: Path) -> None:
    assert vae.model.use_tiling
    assert tiles(vae.model) == (256, 256, 64, 192, 192, 48)
    config = {**OFFICIAL_VAE, "sample_size": 64, "sample_tsize": 16}
    assert tiles(build_vae(written(tmp_path, config))) == (64, 64, 16, 48, 48, 12)
    config = {**OFFICIAL_VAE, "sample_size": [64, 64]}
    assert tiles(build_vae(written(tmp_path, config))) == (64, 64, 64, 48, 48, 48)


def test_vae_decodes_like_diffusers(vae: VideoVAE) -> None:
    latent = torch.randn(16, 3, 4, 6)
    with torch.no_grad():
        sample = tiny_vae().decode(latent[None] / 0.476986).sample[0]
    video = vae.decode(latent)
    assert video.shape == (3, 9, 32, 48) and video.dtype == torch.float32
    assert torch.equal(video, (sample / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "most"), [("fp32", 2e-3), ("fp16", 5e-3), ("bf16", 0.03)])
def test_a_clip_decoded_in_half_precision_is_near_that_in_fp32(
    vae: VideoVAE, folder: Path, precision: str, most: float, device: str
) -> None:
    """In fp32 a GPU's convolutions may round to TF32."""
    latent = torch.randn(16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    half = load(folder, precision, device)
    half.to(device)
    found = half.decode(latent.to(device)).cpu()
    assert (found - vae.decode(latent)).abs().mean() < most


def test_long_and_wide_latents_are_decoded_in_official_tiles(vae: VideoVAE) -> None:
    """17 latent frames need a second tile in time, 34 columns one in space."""
    reference = tiny_vae()
    for latent in (torch.randn(16, 17, 2, 2), torch.randn(16, 1, 2, 34)):
        reference.enable_tiling(256, 256, 64, 192, 192, 48)
        with torch.no_grad():
            tiled = reference.decode(latent[None] / 0.476986).sample[0]
        assert torch.equal(vae.decode(latent), (tiled / 2 + 0.5).clamp(0, 1))
    assert vae.decode(torch.randn(16, 17, 2, 2)).shape == (3, 65, 16, 16)


def test_sixteen_latent_frames_are_one_tile(vae: VideoVAE) -> None:
    """diffusers' own default cuts them in tiles of four, which changes the clip."""
    latent = torch.randn(16, 16, 2, 2)
    reference = tiny_vae()
    with torch.no_grad():
        cut = reference.decode(latent[None] / 0.476986).sample[0]
        reference.use_framewise_decoding = False
        whole = reference.decode(latent[None] / 0.476986).sample[0]
    assert torch.equal(vae.decode(latent), (whole / 2 + 0.5).clamp(0, 1))
    assert not torch.allclose(cut, whole, atol=1e-2)


def test_vae_encodes_to_the_scaled_mean(vae: VideoVAE) -> None:
    video = torch.rand(3, 9, 32, 48)
    with torch.no_grad():
        mean = tiny_vae().encode(2 * video[None] - 1).latent_dist.mode()[0]
    assert torch.equal(vae.encode(video), mean * 0.476986)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_the_cpu_computes_in_fp32_with_rounded_weights(
    folder: Path, precision: str, dtype: torch.dtype
) -> None:
    rounded = load(folder, precision)
    state = tiny_vae().state_dict()
    for name, tensor in rounded.model.state_dict().items():
        assert torch.equal(tensor, state[name].to(dtype).float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = rounded.decode(torch.ones(16, 2, 4, 4))
    assert torch.equal(inside, rounded.decode(torch.ones(16, 2, 4, 4)))


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("prefix", ["vae.", ""])
def test_official_wrappings_are_taken_off(
    tmp_path: Path, vae: VideoVAE, wrapped: bool, prefix: str
) -> None:
    write_vae(tmp_path, tiny_vae())
    state = {f"{prefix}{name}": tensor for name, tensor in tiny_vae().state_dict().items()}
    if prefix:
        state["loss.logvar"] = torch.zeros(1)  # of the training
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "pytorch_model.pt")
    latent = torch.randn(16, 1, 2, 2)
    assert torch.equal(load(tmp_path).decode(latent), vae.decode(latent))


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    write_vae(tmp_path, tiny_vae())
    file = tmp_path / "pytorch_model.pt"
    for content, says in (
        ({"encoder.conv_in.conv.weight": torch.zeros(1)}, "tensors are missing, the first is"),
        ({"state_dict": [1]}, "holds no plain state dict"),
        ([1], "holds no plain state dict"),
    ):
        torch.save(content, file)
        with pytest.raises(InputError, match=rf"pytorch_model\.pt.*{says}"):
            load(tmp_path)
    file.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"pytorch_model\.pt is not a complete weight file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"block_out_channels": [-8] * 4}, "block_out_channels is .*, expected 1 to 1000000"),
        ({"block_out_channels": 8}, r"config\.json: "),
        ({"layers_per_block": 10**6}, "layers_per_block is 1000000, expected 1 to 1000"),
        ({"norm_num_groups": 5}, r"config\.json: .*divisible"),
        ({"scaling_factor": 0.0}, "scaling_factor is 0.0, expected a number above 0"),
        ({"sample_size": 8}, "sample_size is 8, expected at least 16"),
    ],
)
def test_wrong_sizes_are_named(tmp_path: Path, change: dict, says: str) -> None:
    path = written(tmp_path, {**OFFICIAL_VAE, **TINY_VAE, **change})
    with pytest.raises(InputError, match=says) as error:
        build_vae(path)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("release", "cudnn", "cuda", "install"),
    [
        ("2.9.1+cu128", 91002, "12.8", 'install "nvidia-cudnn-cu12>=9.15"'),
        ("2.9.1+cu130", 91300, "13.0", 'install "nvidia-cudnn-cu13>=9.15"'),
        ("2.9.0+cu128", 91501, "12.8", 'install torch 2.9.1 and "nvidia-cudnn-cu12>=9.15"'),
        ("2.9.1+cu128", 91501, "12.8", None),
        ("2.9.1+cu126", 90501, "12.6", None),
        ("2.8.0+cu128", 91002, "12.8", None),
        ("2.10.0+cu128", 91002, "12.8", None),
        ("2.9.1+cpu", None, None, None),
    ],
)
def test_torch_2_9_without_cudnn_9_15_is_warned_of(
    release: str, cudnn: int | None, cuda: str | None, install: str | None
) -> None:
    said = slow_convolutions(release, cudnn, cuda)
    assert (said is None) == (install is None)
    assert said is None or (f"without cuDNN {cudnn}: " in said and install in said)


def test_only_a_vae_in_half_precision_on_a_gpu_warns_and_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are loaded on the host, so a stand-in for the GPU will do."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="WARNING")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    warn_once.cache_clear()
    files = (folder / "config.json", folder / "pytorch_model.pt")
    for device, precision in (("cpu", "fp16"), ("cuda", "fp32"), *[("cuda", "fp16")] * 2):
        assert not lines or precision == "fp16"
        VideoVAE(*files, device, precision)
    logger.remove(sink)
    assert len(lines) == 1 and lines[0].endswith("or give --vae-precision fp32")

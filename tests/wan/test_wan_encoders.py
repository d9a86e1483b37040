"""VAE and text encoder from random files in the official format, against the libraries' modules."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from devices import DEVICES
from profiling_core.errors import InputError
from wan.t5 import FIXED, OFFICIAL_SIZES, TextEncoder, clean
from wan.vae import VideoVAE
from wan_toys import (
    TINY_T5,
    TINY_VAE,
    official_t5_name,
    official_t5_state,
    official_vae_name,
    official_vae_state,
    tiny_t5,
    tiny_vae,
)

T5_FILE = "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture(scope="module")
def vae(checkpoint: Path) -> VideoVAE:
    return VideoVAE(checkpoint / "Wan2.1_VAE.pth", "cpu")


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> TextEncoder:
    return TextEncoder(checkpoint / T5_FILE, checkpoint / "google" / "umt5-xxl", 16)


def column(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1, 1)


def test_the_official_vae_has_194_tensors_of_these_names() -> None:
    with torch.device("meta"):
        names = {official_vae_name(name) for name in AutoencoderKLWan().state_dict()}
    assert len(names) == 194
    assert {
        "conv1.weight",
        "encoder.downsamples.0.residual.0.gamma",
        "encoder.middle.1.to_qkv.weight",
        "decoder.upsamples.3.resample.1.weight",
        "decoder.upsamples.4.shortcut.weight",
        "decoder.upsamples.14.residual.6.bias",
        "decoder.head.2.weight",
    } <= names


def test_the_official_t5_has_242_tensors() -> None:
    with torch.device("meta"):
        model = UMT5EncoderModel._from_config(UMT5Config(**FIXED, **OFFICIAL_SIZES))
    names = {official_t5_name(name) for name in model.state_dict()} - {None}
    assert len(names) == 242
    assert "blocks.23.pos_embedding.embedding.weight" in names


def test_vae_decodes_like_diffusers(vae: VideoVAE) -> None:
    latent = torch.randn(16, 3, 4, 6)
    reference = tiny_vae()
    mean, std = column(reference.config.latents_mean), column(reference.config.latents_std)
    with torch.no_grad():
        expected = reference.decode(latent[None] / (1.0 / std) + mean).sample[0]
    video = vae.decode(latent)
    assert video.shape == (3, 9, 32, 48) and video.dtype == torch.float32
    assert torch.equal(video, expected)
    assert video.abs().max() <= 1


@pytest.mark.parametrize("device", DEVICES)
def test_vae_decodes_on_every_device_what_the_cpu_does(
    vae: VideoVAE, checkpoint: Path, device: str
) -> None:
    """A GPU's convolutions may round to TF32."""
    latent = torch.randn(16, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    found = VideoVAE(checkpoint / "Wan2.1_VAE.pth", device).decode(latent.to(device))
    assert (found.cpu() - vae.decode(latent)).abs().mean() < 2e-3


def test_vae_encodes_to_the_normalised_mean(vae: VideoVAE) -> None:
    video = torch.rand(3, 9, 32, 48) * 2 - 1
    reference = tiny_vae()
    mean, std = column(reference.config.latents_mean), column(reference.config.latents_std)
    with torch.no_grad():
        expected = (reference.encode(video[None]).latent_dist.mode() - mean) * (1.0 / std)
    assert torch.equal(vae.encode(video), expected[0])


def test_vae_stays_fp32_inside_autocast(vae: VideoVAE) -> None:
    latent = torch.randn(16, 2, 4, 4)
    plain = vae.decode(latent)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vae.decode(latent.bfloat16().float()), vae.decode(latent.bfloat16()))
        assert torch.equal(vae.decode(latent), plain)


def test_one_latent_frame_is_the_first_frame_of_the_clip(vae: VideoVAE) -> None:
    latent = torch.randn(16, 3, 4, 4)
    assert torch.equal(vae.decode(latent[:, :1])[:, 0], vae.decode(latent)[:, 0])


def test_text_encoder_equals_transformers_bit_by_bit(encoder: TextEncoder) -> None:
    text = "a red circle moving left over blue stripes"
    tokens = encoder.tokenizer(
        text, padding="max_length", max_length=16, return_tensors="pt", return_attention_mask=True
    )
    with torch.no_grad():
        hidden = tiny_t5()(tokens.input_ids, attention_mask=tokens.attention_mask)
    embedding = encoder(text)
    assert embedding.shape == (9, 32) and embedding.dtype == torch.bfloat16  # 8 words and the end
    assert torch.equal(embedding, hidden.last_hidden_state[0, :9])


def test_a_moved_text_encoder_holds_each_weight_once(checkpoint: Path) -> None:
    parts = TextEncoder(checkpoint / T5_FILE, checkpoint / "google" / "umt5-xxl", 16).model
    assert all(p.dtype == torch.bfloat16 for p in parts.parameters())
    parts.to(torch.float32)  # a copy, as on the way to a GPU
    assert parts.shared.weight.data_ptr() == parts.encoder.embed_tokens.weight.data_ptr()


def test_long_prompts_are_cut_to_text_len(encoder: TextEncoder) -> None:
    assert encoder("red " * 40).shape == (16, 32)
    assert encoder("").shape == (1, 32)  # the end token alone


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  two\n\twords ", "two words"),
        ("Tom &amp;amp; Ann &lt;3", "Tom & Ann <3"),
        ("schÃ¶n", "schön"),
        ("Case, And: Punctuation!", "Case, And: Punctuation!"),
    ],
)
def test_prompts_are_cleaned_as_officially(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "foreign": lambda path: path.write_bytes(b"PK or something else, certainly no weights"),
    "other object": lambda path: torch.save(["no", "state", "dict"], path),
    "pickled wrongly": lambda path: path.write_bytes(b"\x80\x02}q\x00(."),  # inside a dict
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", T5_FILE])
def test_damaged_files_are_named(
    new_checkpoint: Callable[..., Path], damage: str, name: str
) -> None:
    folder = new_checkpoint()
    DAMAGES[damage](folder / name)
    with pytest.raises(InputError, match=rf"{name} (is not a complete|holds no plain)"):
        if name == T5_FILE:
            TextEncoder(folder / name, folder / "google" / "umt5-xxl", 16)
        else:
            VideoVAE(folder / name, "cpu")


def test_a_file_of_other_sizes_is_refused(new_checkpoint: Callable[..., Path]) -> None:
    folder = new_checkpoint()
    torch.save(official_vae_state(tiny_vae()), folder / T5_FILE)
    with pytest.raises(InputError, match=r"tensors are missing, the first is 'shared\.weight'"):
        TextEncoder(folder / T5_FILE, folder / "google" / "umt5-xxl", 16)
    state = official_t5_state(tiny_t5())
    torch.save(state, folder / T5_FILE)
    sizes = {**TINY_T5, "d_ff": 40}
    (folder / T5_FILE).with_suffix(".json").write_text(json.dumps(sizes))
    with pytest.raises(InputError, match=r"has shape \(32, 32\), the model \(40, 32\)"):
        TextEncoder(folder / T5_FILE, folder / "google" / "umt5-xxl", 16)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", "{}", "is not usable"),
        ("tokenizer.json", "[]", "is not usable"),
        ("tokenizer_config.json", "[]", "is not usable"),
        ("tokenizer_config.json", "{}", "names no pad_token in tokenizer_config.json"),
    ],
)
def test_an_unusable_tokenizer_is_named(
    new_checkpoint: Callable[..., Path], file: str, content: str, says: str
) -> None:
    folder = new_checkpoint() / "google" / "umt5-xxl"
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=rf"tokenizer folder .* {says}") as error:
        TextEncoder(folder.parents[1] / T5_FILE, folder, 16)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"d_model": "big"}, "d_model.*'big'"),
        ({"d_model": 10**12}, "d_model is 1000000000000, expected 0 to 1000000"),
        ({"num_layers": 10**6}, "num_layers is 1000000, expected 0 to 1000"),
        ({"feed_forward_proj": "square"}, "square"),
    ],
)
def test_wrong_sizes_of_the_text_encoder_are_named(
    new_checkpoint: Callable[..., Path], change: dict, says: str
) -> None:
    folder = new_checkpoint()
    sizes = (folder / T5_FILE).with_suffix(".json")
    sizes.write_text(json.dumps({**TINY_T5, **change}))
    with pytest.raises(InputError, match=rf"{sizes.name}: .*{says}") as error:
        TextEncoder(folder / T5_FILE, folder / "google" / "umt5-xxl", 16)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base_dim": -8}, "base_dim is -8, expected 1 to 1000000"),
        ({"base_dim": 10**12}, "base_dim is 1000000000000, expected 1 to"),
        ({"base_dim": "8"}, "Wan2.1_VAE.json: "),
        ({"patch_size": 3}, "Wan2.1_VAE.json: shape .* is invalid"),
        ({"temperal_downsample": [False] * 3}, r"of shape \(3, 2, 16, 16\), expected \(3, 5, 16"),
        ({"width": 8}, "unexpected keyword argument 'width'"),
        ({"latents_mean": [1.0]}, r"latents_mean is \[1.0\], expected a list of z_dim 16 numbers"),
        ({"latents_std": [1.0] * 17}, "latents_std is .*, expected a list of z_dim 16 numbers"),
        ({"latents_std": [1.0] * 15 + [0.0]}, "latents_std holds 0.0, not above 0"),
        ({"latents_mean": ["a"] * 16}, "latents_mean holds 'a', expected finite numbers"),
        ({"latents_mean": [float("nan")] * 16}, "latents_mean holds nan, expected finite"),
    ],
)
def test_wrong_sizes_of_the_vae_are_named(
    new_checkpoint: Callable[..., Path], change: dict, says: str
) -> None:
    folder = new_checkpoint()
    (folder / "Wan2.1_VAE.json").write_text(json.dumps({**TINY_VAE, **change}))
    with pytest.raises(InputError, match=says) as error:
        VideoVAE(folder / "Wan2.1_VAE.pth", "cpu")
    assert "Wan2.1_VAE.json" in str(error.value) and "\n" not in str(error.value)

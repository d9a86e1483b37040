"""What trains the miniatures computes what their trees compute."""

from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import hyvideo.layers
import wan.model
from hunyuan_toys import randomise
from hyvideo.model import HYVideoDiffusionTransformer
from hyvideo.rope import rope_tables
from miniatures import check, clips, flow, samplers
from miniatures.autoencoder import to_frames
from miniatures.hunyuan import dit, vae
from miniatures.wan import dit as wan_dit
from miniatures.wan import i2v
from miniatures.wan import vae as wan_vae
from wan.clip import ImageEncoder
from wan.configs import WAN_CONFIGS

SIZES = dit.CONFIG.transformer | {"mm_double_blocks_depth": 1, "mm_single_blocks_depth": 2}


@pytest.fixture(autouse=True)
def _attention_of_the_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler replaces it on a CPU; other tests have the trees' own."""
    for module in (hyvideo.layers, wan.model):
        monkeypatch.setattr(module, "attention", module.attention)


@torch.no_grad()
def test_hidden_padding_and_plain_attention_equal_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut text and SDPA against padded text and plain operations, two text lengths in a batch."""
    tree = randomise(HYVideoDiffusionTransformer(**SIZES), 0)
    trained = dit.PaddedTransformer(**SIZES).eval()
    trained.load_state_dict(tree.state_dict())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 2, 4, 4, generator=generator)
    states = torch.randn(2, dit.CONFIG.text_len, SIZES["text_states_dim"], generator=generator)
    pooled = torch.randn(2, SIZES["text_states_dim_2"], generator=generator)
    mask = (torch.arange(dit.CONFIG.text_len) < torch.tensor([[7], [4]])).long()
    rope = rope_tables((2, 2, 2), SIZES["rope_dim_list"])
    call = (x, torch.tensor([900.0, 300.0]), states, mask, pooled, *rope, torch.tensor([1.0, 6e3]))
    expected = tree(*call)["x"]
    monkeypatch.setattr(hyvideo.layers, "attention", flow.plain_attention)
    assert (trained(*call)["x"] - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (tree(*call)["x"] - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_folded_statistics_change_the_latents_basis_and_nothing_else() -> None:
    plain, folded = (randomise(vae.build(), 2) for _ in range(2))
    video = torch.randn(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(3))
    mean = torch.linspace(-2, 2, 16)
    std = torch.linspace(0.5, 8, 16)
    vae.fold_statistics(folded, mean.tolist(), std.tolist())
    latent, logvar = vae.encode(plain, video)
    other, other_logvar = vae.encode(folded, video)
    shape = (1, -1, 1, 1, 1)
    expected = (latent - mean.view(shape)) / std.view(shape)
    assert torch.allclose(other, expected, atol=1e-5)
    assert torch.allclose(other_logvar, logvar - 2 * std.log().view(shape), atol=1e-5)
    shown = vae.decode(plain, latent)
    assert (vae.decode(folded, other) - shown).abs().max() < 1e-4 * shown.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("tree", ["wan", "hunyuan"])
def test_a_refinement_goes_on_from_the_bundled_autoencoder(tree: str) -> None:
    """What `decoder` starts from without a run of its own is what the tree decodes with."""
    sampler = samplers.SAMPLERS[tree]()
    config, kind = sampler.config, {"wan": wan_vae, "hunyuan": vae}[tree].AUTOENCODER
    bundled = kind.read(config.ckpt_dir if tree == "wan" else config.model_base)
    video = 0.8 * torch.randn(3, 5, 16, 16, generator=torch.Generator().manual_seed(4)).clamp(-1, 1)
    mean, _ = kind.encode(bundled, video[None])
    shown = kind.decode(bundled, mean)[0].clamp(-1, 1)
    assert (sampler.reconstruct(video).clamp(-1, 1) - shown).abs().max() < 1e-3


@torch.no_grad()
def test_i2v_mini_starts_as_t2v_mini_without_two_blocks() -> None:
    t2v = wan_dit.WanModel(**wan_dit.CONFIG)
    model = i2v.widened(t2v, 0)
    randn = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    call = ([randn(16, 1, 4, 4)], torch.tensor([500.0]), [randn(7, t2v.text_dim)], 4)
    picture = {"clip_fea": randn(1, *model.image_shape), "y": [randn(20, 1, 4, 4)]}
    assert (len(t2v.blocks), len(model.blocks)) == (10, 10)
    assert torch.equal(model(*call, **picture)[0], t2v(*call)[0])


def test_i2v_minis_image_encoder_is_a_function_of_the_seed(tmp_path: Path) -> None:
    """The bundled file again, to the number, and the tree's loader takes it."""
    config = WAN_CONFIGS["i2v-mini"]
    bundled = torch.load(config.ckpt_dir / config.clip_checkpoint, weights_only=True)
    made = i2v.clip_weights(0)
    assert made.keys() == bundled.keys()
    assert all(torch.equal(made[name], bundled[name]) for name in made)
    encoder = ImageEncoder(i2v.write_clip(tmp_path, 0), torch.float32)
    assert encoder.shape == (i2v.CONFIG["image_tokens"], i2v.CONFIG["image_dim"])


def test_the_check_samples_from_a_picture_as_the_tree_does(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, prompt = samplers.WanSampler(task="i2v-mini"), "red circle moving up over blue noise"
    pipeline, area = sampler.pipeline, clips.SIZE**2
    monkeypatch.setattr(pipeline, "decode", lambda latent: latent[:3] / 4)
    _, batched = sampler.sample([("white star moving up over red checks", 1), (prompt, 3)], 2, 5, 2)
    options = {"seed": 3, "sampling_steps": 2, "shift": 5, "guide_scale": 2, "progress": False}
    picture = Image.fromarray(clips.first_frame(prompt))
    alone = pipeline.generate(prompt, picture, area, clips.FRAMES, **options)
    assert check.psnr(batched, to_frames(alone)) > 35  # bf16 rounds

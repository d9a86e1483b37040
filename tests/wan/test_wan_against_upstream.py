"""Bit equality with the official modules, where a checkout of Wan-Video/Wan2.1 is at hand.

WAN21_UPSTREAM=path/to/Wan2.1 python -m pytest tests/wan/test_wan_against_upstream.py
"""

import os
import types
from pathlib import Path

import pytest
import torch

from benchmarks.lib.upstream import (
    CHECKOUTS,
    official,
    upstream_module,
    upstream_twin,
    wan_sizes,
)
from wan.model import WanModel
from wan.scheduler import build_scheduler
from wan.t5 import TextEncoder
from wan.vace_model import VaceWanModel
from wan.vae import VideoVAE
from wan_toys import TINY_DIT, randomise

pytestmark = pytest.mark.skipif(
    CHECKOUTS["wan"] not in os.environ,
    reason="set WAN21_UPSTREAM to a checkout of Wan-Video/Wan2.1",
)
SIZES = {**TINY_DIT, "dim": 256, "ffn_dim": 512, "num_heads": 4, "num_layers": 4}


@pytest.fixture(scope="module")
def upstream() -> types.SimpleNamespace:
    names = ("modules.t5", "modules.vae", "utils.fm_solvers", "utils.fm_solvers_unipc")
    official("wan")
    return types.SimpleNamespace(
        **{name.split(".")[1]: upstream_module("wan", name) for name in names}
    )


@pytest.mark.parametrize(
    ("autocast", "batch"), [(False, 1), (True, 1), (True, 2)], ids=["fp32", "bf16", "bf16 batch"]
)  # a batch in fp32 differs: the official code embeds the patches clip by clip
@pytest.mark.parametrize(("timestep", "seq_len"), [(999, 192), (500, 200), (0, 192)])
def test_transformer(autocast: bool, batch: int, timestep: int, seq_len: int) -> None:
    ours = randomise(WanModel(**SIZES), seed=3, std=0.06)
    theirs = upstream_twin(ours)
    x = [torch.randn(16, 3, 16, 16) for _ in range(batch)]
    text = [torch.randn(9, TINY_DIT["text_dim"]) for _ in range(batch)]
    t = torch.tensor([timestep] * batch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mine, official = (torch.stack(m(x, t, text, seq_len)) for m in (ours, theirs))
    assert torch.equal(mine, official) and mine.std() > 0.1


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_vace_transformer(autocast: bool, scale: float) -> None:
    base, module = official("wan"), upstream_module("wan", "modules.vace_model")
    module.amp = base.amp
    ours = randomise(VaceWanModel(vace_layers=(0, 2), **SIZES), seed=3, std=0.06)
    theirs = module.VaceWanModel(vace_layers=(0, 2), vace_in_dim=96, **wan_sizes(ours)).eval()
    theirs.load_state_dict(ours.state_dict())
    given = {"vace_context": [torch.randn(96, 3, 16, 16)], "vace_context_scale": scale}
    given |= {"context": [torch.randn(9, TINY_DIT["text_dim"])], "seq_len": 192}
    x, t = [torch.randn(16, 3, 16, 16)], torch.tensor([500])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (mine,), (other,) = (m(x, t, **given) for m in (ours, theirs))
    assert torch.equal(mine, other) and mine.std() > 0.1


@pytest.mark.parametrize(("steps", "shift"), [(50, 5.0), (50, 8.0), (40, 3.0), (10, 5.0), (1, 5.0)])
@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_solvers(upstream: types.SimpleNamespace, solver: str, steps: int, shift: float) -> None:
    settings = {"num_train_timesteps": 1000, "shift": 1, "use_dynamic_shifting": False}
    if solver == "unipc":
        theirs = upstream.fm_solvers_unipc.FlowUniPCMultistepScheduler(**settings)
        theirs.set_timesteps(steps, device="cpu", shift=shift)
    else:
        theirs = upstream.fm_solvers.FlowDPMSolverMultistepScheduler(**settings)
        theirs.set_timesteps(sigmas=upstream.fm_solvers.get_sampling_sigmas(steps, shift))
    ours = build_scheduler(solver, steps, shift)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x = y = torch.randn(1, 16, 3, 6, 8)
    for t in ours.timesteps:
        x = ours.step(torch.tanh(x) + x.roll(1, 1) / 2, t, x, return_dict=False)[0]
        y = theirs.step(torch.tanh(y) + y.roll(1, 1) / 2, t, y, return_dict=False)[0]
        assert torch.equal(x, y)


def test_text_encoder(upstream: types.SimpleNamespace, checkpoint: Path) -> None:
    file = checkpoint / "models_t5_umt5-xxl-enc-bf16.pth"
    ours = TextEncoder(file, checkpoint / "google" / "umt5-xxl", 512)
    sizes = {"vocab": 64, "dim": 32, "dim_attn": 32, "dim_ffn": 32, "num_heads": 4, "num_layers": 2}
    theirs = upstream.t5.T5Encoder(**sizes, num_buckets=32, shared_pos=False)
    theirs.to(torch.bfloat16).eval().load_state_dict(torch.load(file, weights_only=True))
    for text in ("a red circle over blue stripes", "", "green " * 600):
        tokens = ours.tokenizer(
            text, padding="max_length", truncation=True, max_length=512, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = theirs(tokens.input_ids, tokens.attention_mask)[0]
        assert torch.equal(ours(text), hidden[: tokens.attention_mask.sum()])


def test_vae(upstream: types.SimpleNamespace, checkpoint: Path) -> None:
    file = checkpoint / "Wan2.1_VAE.pth"
    ours = VideoVAE(file, "cpu")
    theirs = upstream.vae.WanVAE_(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True]
    ).eval()
    theirs.load_state_dict(torch.load(file, weights_only=True))
    scale = [ours.mean.flatten(), ours.inverse_std.flatten()]
    latent, video = torch.randn(16, 3, 6, 8), torch.rand(3, 9, 48, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(ours.decode(latent), theirs.decode(latent[None], scale)[0].clamp(-1, 1))
        assert torch.equal(ours.encode(video), theirs.encode(video[None], scale)[0])

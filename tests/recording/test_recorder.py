"""The recorder against a plain computation of the same figures, on tiny models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wan.model
from devices import DEVICES
from profiling_core.errors import ProfileError
from profiling_core.plan.schema import ModelFingerprint
from profiling_core.profile.profile import Profile, Settings
from profiling_core.recording.block_hooks import projection
from profiling_core.recording.recorder import Recorder
from profiling_core.recording.run_data import Recording
from wan.model import WanModel
from wan_toys import TINY_DIT, tiny_dit

STEPS, GRID = 4, (2, 3, 4)
TOKENS = math.prod(GRID)
LATENT = (16, 2, 6, 8)
SIGMAS = (0.9, 0.7, 0.4, 0.2)
DEPTH, WIDTH = TINY_DIT["num_layers"], TINY_DIT["dim"]
EVERY_TOKEN = Settings(attention_every=2, delta_tokens=1000)
FACTS = {"prompt": "a red circle", "seed": 3, "guidance": 2.0}


def recorder(path: Path | None = None, settings: Settings = EVERY_TOKEN, **other) -> Recorder:
    lists = {"blocks": DEPTH}
    facts = {
        "model": ModelFingerprint(family="toy", name="tiny", block_lists=lists, width=WIDTH),
        **{"steps": STEPS, "sigmas": SIGMAS, "solver": "euler", "shift": 1.0},
        "branches": ("cond", "uncond"),
    }
    return Recorder(path, settings, **facts | other)


def texts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return tuple(torch.randn(n, TINY_DIT["text_dim"], generator=generator) for n in (5, 3))


@torch.no_grad()
def sample(
    model: nn.Module, begin: Callable[[int, str], None] = lambda step, branch: None, seed: int = 0
) -> Tensor:
    """Guided Euler steps of our Wan."""
    device = next(model.parameters()).device
    x = torch.randn(LATENT, generator=torch.Generator().manual_seed(seed)).to(device)
    for step, sigma in enumerate(SIGMAS):
        t = torch.tensor([1000 * sigma], device=device)
        flows = []
        for branch, text in zip(("cond", "uncond"), texts(), strict=True):
            begin(step, branch)
            flows.append(model([x], t, [text.to(device)], TOKENS)[0])
        after = SIGMAS[step + 1] if step + 1 < STEPS else 0.0
        x = x + (after - sigma) * (flows[1] + 2 * (flows[0] - flows[1]))
    return x


@pytest.fixture(scope="module")
def model() -> WanModel:
    return tiny_dit()


@contextmanager
def watched(model: WanModel) -> Iterator[dict[str, list[Tensor]]]:
    """Everything a run does, kept whole by hooks of the test's own; two branches in turns."""
    kept: dict[str, list[Tensor]] = {"in": [], "out": [], "latent": [], "flow": []}
    handles = [model.register_forward_pre_hook(lambda m, a: kept["latent"].append(a[0][0]))]
    handles += [model.register_forward_hook(lambda m, a, o: kept["flow"].append(o[0]))]
    for block in model.blocks:
        handles += [block.register_forward_pre_hook(lambda m, a: kept["in"].append(a[0][0]))]
        handles += [block.register_forward_hook(lambda m, a, o: kept["out"].append(o[0]))]
    yield kept
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module")
def seen(model: WanModel) -> dict[str, list[Tensor]]:
    with watched(model) as kept:
        kept["final"] = [sample(model)]
    return kept


@pytest.fixture(scope="module")
def profile(model: WanModel) -> Profile:
    watch = recorder()
    with watch.attached(model):
        latent = sample(model, watch.begin)
    return watch.finish(latent, **FACTS)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(mask="file", mask_source="gone.npy"), "masks gone.npy: .*No such file"),
        (Settings(mask="sam2", mask_source="gone"), "SAM 2 weights gone: no config.json there"),
    ],
)
def test_what_a_mask_needs_is_tried_before_the_run(settings: Settings, says: str) -> None:
    with pytest.raises(ProfileError, match=says):
        recorder(settings=settings)


def deltas(seen: dict[str, list[Tensor]], branch: int) -> Tensor:
    """(S, B, tokens, D)."""
    added = torch.stack(seen["out"]) - torch.stack(seen["in"])
    return added.unflatten(0, (STEPS, 2, DEPTH))[:, branch]


def test_recording_changes_nothing(model: WanModel, seen: dict) -> None:
    classes = [type(module) for module in model.modules()]
    watch = recorder()
    with watch.attached(model):
        latent = sample(model, watch.begin)
    assert torch.equal(latent, seen["final"][0])
    assert torch.equal(sample(model), seen["final"][0])
    assert [type(module) for module in model.modules()] == classes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_steps_are_compared_as_defined(profile: Profile, seen: dict) -> None:
    for c in range(2):
        flows = torch.stack(seen["flow"][c::2]).flatten(1).double()
        change = (flows[1:] - flows[:-1]).abs().mean(dim=1)
        before = flows[:-1].abs().mean(dim=1)
        cosine = torch.cosine_similarity(flows[1:], flows[:-1])
        assert np.allclose(profile.arrays["l1"][0, c], change, rtol=1e-5)
        assert np.allclose(profile.arrays["l1_relative"][0, c], change / before, rtol=1e-5)
        assert np.allclose(profile.arrays["cosine"][0, c], cosine, atol=1e-6)


def test_gram_holds_the_mean_products(profile: Profile, seen: dict) -> None:
    rows = [*seen["flow"][0::2], *seen["flow"][1::2], *seen["latent"][0::2], seen["final"][0]]
    rows = torch.stack([row.flatten() for row in rows]).double()
    assert profile.arrays["gram"].dtype == np.float64
    assert np.allclose(profile.arrays["gram"][0], rows @ rows.T / rows.shape[1], rtol=1e-6)


def test_drift_and_delta_gram_on_all_tokens(profile: Profile, seen: dict) -> None:
    for c in range(2):
        whole = deltas(seen, c).flatten(2).double()  # (S, B, numbers)
        drift = (whole[1:] - whole[:-1]).norm(dim=-1) / whole[:-1].norm(dim=-1)
        assert np.allclose(profile.arrays["drift"][0, c], drift, rtol=1e-3)
        cosine = torch.cosine_similarity(whole[1:], whole[:-1], dim=-1)
        assert np.allclose(profile.arrays["delta_cosine"][0, c], cosine, atol=1e-5)
        rows = whole.transpose(0, 1).flatten(0, 1)
        gram = rows @ rows.T / rows.shape[1]
        assert np.allclose(profile.arrays["delta_gram.blocks"][c], gram, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_wide_blocks_under_bf16_autocast_are_recorded_in_fp32(device: str) -> None:
    wide, signs = tiny_dit(dim=512).to(device), projection(512)
    fingerprint = ModelFingerprint(
        family="toy", name="wide", block_lists={"blocks": DEPTH}, width=512
    )
    watch = recorder(model=fingerprint)
    with torch.autocast(device, torch.bfloat16):
        with watched(wide) as kept, watch.attached(wide):
            latent = sample(wide, watch.begin)
        found = watch.finish(latent, **FACTS).arrays
    for c in range(2):
        small = (deltas(kept, c).cpu().double() @ signs).flatten(2)  # (S, B, numbers)
        drift = (small[1:] - small[:-1]).norm(dim=-1) / small[:-1].norm(dim=-1)
        assert np.allclose(found["drift"][0, c], drift, rtol=1e-4)
        cosine = torch.cosine_similarity(small[1:], small[:-1], dim=-1)
        assert np.allclose(found["delta_cosine"][0, c], cosine, atol=1e-6)
        rows = small.transpose(0, 1).flatten(0, 1)
        assert np.allclose(found["delta_gram.blocks"][c], rows @ rows.T / rows.shape[1], rtol=1e-4)


def test_magnitude_is_the_mean_growth_of_a_tokens_residual(profile: Profile, seen: dict) -> None:
    for c in range(2):
        norms = deltas(seen, c).sum(dim=1).norm(dim=-1)  # (S, tokens)
        ratios = (norms[1:] / norms[:-1]).mean(dim=1)
        assert np.allclose(profile.arrays["magnitude"][0, c], ratios, rtol=1e-5)


def test_sampled_tokens_estimate_the_drift(model: WanModel, profile: Profile) -> None:
    watch = recorder(settings=Settings(attention_every=0, delta_tokens=12))
    with watch.attached(model):
        sampled = watch.finish(sample(model, watch.begin), **FACTS)
    ratio = sampled.arrays["drift"] / profile.arrays["drift"]
    assert not np.allclose(ratio, 1, atol=1e-4)
    assert 0.8 < ratio.min() and ratio.max() < 1.25
    assert not sampled.has_attention


def test_flops_are_those_of_the_layers(profile: Profile) -> None:
    text, ffn = TINY_DIT["text_len"], TINY_DIT["ffn_dim"]
    linears = 6 * TOKENS * WIDTH**2 + 2 * text * WIDTH**2 + 2 * TOKENS * WIDTH * ffn
    attention = 2 * TOKENS * (TOKENS + text) * WIDTH
    assert profile.arrays["block_flops"].tolist() == [2.0 * (linears + attention)] * DEPTH


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_attention_share_of_every_block_and_step(
    model: WanModel, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    """Against dense attention: R_attn and chance by their definition, with a mask of our own."""
    dense: list[Tensor] = []
    plain = wan.model.attention

    def attention(q: Tensor, k: Tensor, v: Tensor, key_lens=None) -> Tensor:
        if k.shape[1] == TOKENS:
            scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / q.shape[-1] ** 0.5
            dense.append(scores.softmax(dim=-1).mean(dim=(0, 1, 2)))
        return plain(q, k, v, key_lens)

    monkeypatch.setattr(wan.model, "attention", attention)
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[0, :2, :3] = True
    monkeypatch.setattr("profiling_core.recording.arrays.foreground_mask", lambda kind, **_: mask)
    watch = recorder()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), watch.attached(model):
        profile = watch.finish(sample(model, watch.begin), **FACTS)
    received = torch.stack(dense).unflatten(0, (STEPS, 2, DEPTH))[::2].transpose(0, 1)
    high = received > received.quantile(0.8, dim=-1, keepdim=True)
    high = high.unflatten(-1, GRID)[..., 0, :, :]  # the frame that holds foreground
    share = (high & mask[0]).sum(dim=(-2, -1)) / 6
    assert np.allclose(profile.arrays["attention_share"][0], share)
    assert np.allclose(profile.arrays["attention_chance"][0], high.float().mean(dim=(-2, -1)))
    maps = received[0] / received[0].mean(dim=-1, keepdim=True)
    found = profile.arrays["attention_maps"][0].reshape(2, DEPTH, TOKENS)
    assert np.allclose(found, maps, atol=2e-3)
    assert wan.model.attention is attention


def test_a_full_run_is_needed(model: WanModel) -> None:
    watch = recorder()
    with pytest.raises(ProfileError, match="step 1, cond: a profile needs a full run of 4 steps"):
        watch.begin(1, "cond")
    with watch.attached(model), pytest.raises(ProfileError, match="called without a position"):
        sample(model)
    with watch.attached(model):
        watch.begin(0, "cond")
        model([torch.zeros(LATENT)], torch.tensor([900.0]), [texts()[0]], TOKENS)
    with pytest.raises(ProfileError, match="made 1 of 8 model calls"):
        watch.finish(torch.zeros(LATENT), **FACTS)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda net: net.blocks[1].ffn[2], "delta of block 1 at step 0, cond, is not finite"),
        (lambda net: net.head.head, "prediction of step 0, cond is not finite"),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite_is_named(part: Callable, message: str, device: str) -> None:
    watch, broken = recorder(), tiny_dit().to(device)
    part(broken).bias.data[0] = math.nan
    with watch.attached(broken), pytest.raises(ProfileError, match=message):
        sample(broken, watch.begin)


class OnGpu(Tensor):
    """A tensor of the host in place of a GPU's: a copy that nobody waits for never arrives."""

    @staticmethod
    def __new__(cls, data: Tensor) -> OnGpu:
        made = Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype, device="cuda")
        made.held = data
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.copy_.default and args[2:]:  # without waiting
            return args[0]
        if kwargs.get("non_blocking"):
            return torch.zeros_like(args[0].held)
        given = [arg.held if isinstance(arg, OnGpu) else arg for arg in args]
        found = func(*given, **kwargs)
        stays = func is not torch.ops.aten._to_copy.default and isinstance(found, Tensor)
        return OnGpu(found) if stays else found


def test_a_prediction_on_a_gpu_is_checked_once_its_copy_has_arrived(profile: Profile) -> None:
    recording = Recording(profile.subject, torch.device("cpu"))
    recording.see_prediction(0, "cond", [OnGpu(torch.ones(LATENT))])
    assert torch.equal(recording.predictions["cond"][0].tensors[0], torch.ones(LATENT))
    with pytest.raises(ProfileError, match="prediction of step 1, cond is not finite"):
        recording.see_prediction(1, "cond", [OnGpu(torch.full(LATENT, math.nan))])


def test_a_model_of_another_depth_or_width_is_refused(model: WanModel) -> None:
    with pytest.raises(ProfileError, match="tiny has 3 blocks, this model 2"):
        recorder().attach(tiny_dit(num_layers=2))
    with pytest.raises(ProfileError, match="tiny has hidden width 48, this model 96"):
        recorder().attach(tiny_dit(dim=96))


def test_runs_are_added_to_the_file(model: WanModel, tmp_path: Path) -> None:
    path = tmp_path / "tiny.profile"
    for seed in (1, 2):
        watch = recorder(path)
        with watch.attached(model):
            watch.finish(sample(model, watch.begin, seed), **FACTS | {"seed": seed})
    profile = Profile.load(path)
    assert [run.seed for run in profile.runs] == [1, 2]
    assert profile.settings == EVERY_TOKEN
    before = path.read_bytes()
    with pytest.raises(ProfileError, match="has steps 4, this run 3"):
        recorder(path, steps=3, sigmas=SIGMAS[:3])
    watch = recorder(path)
    with watch.attached(model), pytest.raises(ProfileError, match=r"latent \(16, 2, 6, 8\), this"):
        watch.begin(0, "cond")
        model([torch.zeros(16, 3, 6, 8)], torch.tensor([900.0]), [texts()[0]], 36)
    assert path.read_bytes() == before


def test_attention_that_is_not_seen_is_named(model: WanModel, monkeypatch) -> None:
    before = wan.model.attention
    hidden = tiny_dit()
    attend = hidden.blocks[2].self_attn
    monkeypatch.setattr(attend, "forward", lambda x, rope, key_lens: x)
    monkeypatch.setattr(hidden.blocks[2].cross_attn, "forward", lambda x, context: x)
    watch = recorder()
    with (
        watch.attached(hidden),
        pytest.raises(ProfileError, match="block 2 ran without a call of its attention"),
    ):
        sample(hidden, watch.begin)
    assert wan.model.attention is before


def test_blocks_without_an_attention_function_are_refused() -> None:
    from toys import ToyWan

    toy = ToyWan(depth=DEPTH, width=WIDTH)
    toy.patch_size = (1, 2, 2)
    watch = recorder()
    with watch.attached(toy), pytest.raises(ProfileError, match="no access to queries and keys"):
        watch.begin(0, "cond")
        toy([torch.zeros(16, 2, 6, 48)], torch.tensor([1.0]), torch.zeros(1))

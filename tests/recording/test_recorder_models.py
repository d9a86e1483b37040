"""The recorder sees the same in our models and in diffusers' with the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffusers_pairs as pairs
from profiling_core.plan.schema import ModelFingerprint
from profiling_core.profile.profile import Profile, Settings
from profiling_core.recording.perturbed_run import PerturbedRun
from profiling_core.recording.recorder import Recorder

SIGMAS = (0.9, 0.6, 0.3)
SETTINGS = Settings(attention_every=1, delta_tokens=1000)
Call = Callable[[nn.Module, Tensor, Tensor], Tensor]


def recorder(lists: dict[str, int], width: int, settings: Settings = SETTINGS) -> Recorder:
    fingerprint = ModelFingerprint(family="toy", name="tiny", block_lists=lists, width=width)
    return Recorder(
        settings=settings,
        model=fingerprint,
        steps=len(SIGMAS),
        sigmas=SIGMAS,
        solver="euler",
        shift=1.0,
        branches=("cond",),
    )


@torch.no_grad()
def sample(
    net: nn.Module, call: Call, x: Tensor, begin: Callable[[int, str], None] | None = None
) -> Tensor:
    """Euler steps; call(net, x, t) is the prediction."""
    for step, (sigma, after) in enumerate(zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True)):
        if begin is not None:
            begin(step, "cond")
        x = x + (after - sigma) * call(net, x, torch.full((len(x),), 1000 * sigma))
    return x


def record(watch: Recorder, net: nn.Module, call: Call, x: Tensor) -> Profile:
    with watch.attached(net):
        latent = sample(net, call, x, watch.begin)
    return watch.finish(latent, prompt="p", seed=0, guidance=None)


def assert_alike(ours: Profile, theirs: Profile) -> None:
    """Same figures; times and what depends on a threshold's last digit aside."""
    assert ours.subject == theirs.subject
    for name in ("l1", "cosine", "magnitude", "drift", "gram", "attention_maps"):
        assert np.allclose(ours.arrays[name], theirs.arrays[name], rtol=2e-3, atol=2e-4), name
    for name in ours.subject.model.block_lists:
        gram = f"delta_gram.{name}"
        assert np.allclose(ours.arrays[gram], theirs.arrays[gram], rtol=1e-3, atol=1e-5)
    assert np.abs(ours.arrays["attention_share"] - theirs.arrays["attention_share"]).max() < 0.05


@pytest.mark.parametrize("batch", [1, 2])
def test_diffusers_wan(batch: int) -> None:
    model, reference = pairs.wan_pair()
    x, text = pairs.wan_inputs(batch)
    lists = {"blocks": pairs.WAN_SIZES["num_layers"]}

    def our_call(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return torch.stack(net(list(x), t, list(text), seq_len=3 * 4 * 6))

    def their_call(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return net(x, t, text, return_dict=False)[0]

    ours = record(recorder(lists, 96), model, our_call, x)
    theirs = record(recorder(lists, 96), reference, their_call, x)
    assert ours.subject.grid == (3, 4, 6)
    assert np.array_equal(ours.arrays["block_flops"], theirs.arrays["block_flops"])
    assert_alike(ours, theirs)


@pytest.mark.parametrize("lens", [(12,), (12, 5)])
def test_diffusers_hunyuan_and_image_tokens_alone(lens: tuple[int, ...]) -> None:
    from hyvideo.rope import rope_tables

    ours, theirs = pairs.hunyuan_pair(guidance=True)
    generator = torch.Generator().manual_seed(1)
    frames, rows, columns = pairs.GRID
    x = torch.randn(len(lens), 16, frames, 2 * rows, 2 * columns, generator=generator)
    size = (len(lens), pairs.TEXT_LEN, pairs.TEXT)
    text = torch.randn(size, generator=generator)
    pooled = torch.randn(len(lens), pairs.POOLED, generator=generator)
    mask = (torch.arange(pairs.TEXT_LEN) < torch.tensor(lens)[:, None]).long()
    guidance = torch.full((len(lens),), 6000.0)
    rope = rope_tables(pairs.GRID, pairs.ROPE)

    def our_call(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return net(x, t, text, mask, pooled, *rope, guidance)["x"]

    def their_call(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return net(x, t, text, mask, pooled, guidance, return_dict=False)[0]

    lists = {"double_blocks": pairs.DOUBLE, "single_blocks": pairs.SINGLE}
    ours = record(recorder(lists, pairs.WIDTH), ours, our_call, x)
    theirs = record(recorder(lists, pairs.WIDTH), theirs, their_call, x)
    assert ours.subject.grid == pairs.GRID
    assert ours.arrays["mask"].shape == (1, *pairs.GRID)
    assert_alike(ours, theirs)


class Constant(nn.Module):
    """Predicts the same whatever the latent: an error stays what it was."""

    patch_size, dim = (1, 2, 2), 4

    def __init__(self, slope: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.slope = slope

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.blocks[0](torch.zeros(1, 12, 4))
        return self.slope * x + t.view(-1, 1, 1, 1, 1).sin()


@pytest.mark.parametrize("slope", [0.0, 1.5])
@pytest.mark.parametrize("step", [1, 2])
def test_sensitivity_is_what_is_left_of_an_error(slope: float, step: int) -> None:
    net, settings = Constant(slope), Settings(attention_every=0, sensitivity=(step,))
    watch, x = recorder({"blocks": 1}, 4, settings), torch.randn(1, 16, 2, 4, 6)

    def call(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return net(x, t)

    with watch.attached(net):
        latent = sample(net, call, x, watch.begin)

    def again(perturbed: PerturbedRun) -> Tensor:
        with perturbed.attached(net):
            return sample(net, call, x, perturbed.begin)

    watch.measure_sensitivity(latent, again)
    found = watch.finish(latent, prompt="p").arrays["sensitivity"][0]
    levels = (*SIGMAS, 0.0)
    grown = math.prod(1 + slope * (levels[s + 1] - levels[s]) for s in range(step, 3))
    assert found[step] == pytest.approx(abs(grown), rel=1e-4)
    assert np.isnan(np.delete(found, step)).all()
    assert type(net) is Constant


def test_compiled_blocks_are_recorded_too() -> None:
    from copy import deepcopy

    model, _ = pairs.wan_pair()
    x, text = pairs.wan_inputs(1)

    def call(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return torch.stack(net(list(x), t, list(text), seq_len=3 * 4 * 6))

    lists = {"blocks": pairs.WAN_SIZES["num_layers"]}
    plain = record(recorder(lists, 96), model, call, x)
    compiled = deepcopy(model)
    for block in compiled.blocks:
        block.compile(backend="eager")
    assert_alike(plain, record(recorder(lists, 96), compiled, call, x))

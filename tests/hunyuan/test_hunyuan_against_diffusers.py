"""The transformer against diffusers' HunyuanVideoTransformer3DModel with equal random weights."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from diffusers_pairs import DOUBLE, GRID, POOLED, ROPE, SINGLE, TEXT, TEXT_LEN, WIDTH, hunyuan_pair
from hunyuan_clips import planned
from hyvideo.model import HYVideoDiffusionTransformer
from hyvideo.rope import rope_tables
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan.presets import build_preset
from profiling_core.plan.regrid import regrid


@pytest.fixture(scope="module", params=[True, False], ids=["guidance", "no guidance"])
def models(request):
    return hunyuan_pair(request.param)


def inputs(lens: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """Arguments by our names; `lens` are the valid text tokens of each prompt."""
    random = torch.Generator().manual_seed(seed)
    batch, (frames, rows, columns) = len(lens), GRID
    return {
        "x": torch.randn(batch, 16, frames, 2 * rows, 2 * columns, generator=random),
        "t": torch.tensor([937.5, 125.0])[:batch],
        "text_states": torch.randn(batch, TEXT_LEN, TEXT, generator=random),
        "text_mask": (torch.arange(TEXT_LEN) < torch.tensor(lens)[:, None]).long(),
        "text_states_2": torch.randn(batch, POOLED, generator=random),
        "guidance": torch.tensor([6016.0, 1000.0])[:batch],
    }


def ours_of(model: HYVideoDiffusionTransformer, given: dict[str, Tensor]) -> Tensor:
    given = given if model.guidance_embed else {k: v for k, v in given.items() if k != "guidance"}
    cos, sin = rope_tables(GRID, ROPE)
    return model(**given, freqs_cos=cos, freqs_sin=sin)["x"]


def theirs_of(model: HunyuanVideoTransformer3DModel, given: dict[str, Tensor]) -> Tensor:
    return model(
        hidden_states=given["x"],
        timestep=given["t"],
        encoder_hidden_states=given["text_states"],
        encoder_attention_mask=given["text_mask"],
        pooled_projections=given["text_states_2"],
        guidance=given["guidance"] if model.config.guidance_embeds else None,
        return_dict=False,
    )[0]


LENS = [(TEXT_LEN,), (5,), (1,), (TEXT_LEN, TEXT_LEN), (7, 7), (4, 9), (TEXT_LEN, 1)]


@pytest.mark.parametrize("lens", LENS)
@torch.no_grad()
def test_prediction_equals_diffusers(models, lens: tuple[int, ...]) -> None:
    given = inputs(lens)
    ours, theirs = ours_of(models[0], given), theirs_of(models[1], given)
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-5


@torch.no_grad()
def test_padded_text_changes_nothing(models) -> None:
    given = inputs((5, 3))
    other = {**given, "text_states": given["text_states"].clone()}
    other["text_states"][0, 5:] = 7.0
    other["text_states"][1, 3:] = -3.0
    assert (ours_of(models[0], given) - ours_of(models[0], other)).abs().max() < 1e-6


@torch.no_grad()
def test_samples_of_a_batch_equal_themselves_alone(models) -> None:
    given = inputs((4, 9))
    batch = ours_of(models[0], given)
    for index in range(2):
        alone = ours_of(models[0], {name: v[index : index + 1] for name, v in given.items()})
        assert (batch[index] - alone[0]).abs().max() < 1e-5


@pytest.mark.parametrize("lens", [(5,), (4, 9)])
@pytest.mark.parametrize("preset", ["paper", "release", "balanced"])
@torch.no_grad()
def test_cached_clip_equals_the_cached_clip_of_diffusers(models, preset, lens) -> None:
    plan = build_preset(planned(WIDTH, DOUBLE, SINGLE), preset)
    kept = range(0, 50, 2)  # every second level, so that the test takes half the time
    plan = regrid(plan, [plan.sigmas[i] for i in kept], solver="euler", shift=plan.shift)
    clips = []
    for model, call in zip(models, (ours_of, theirs_of), strict=True):
        cache, given, outputs = DeltaCache(plan), inputs(lens), []
        with cache.attached(model):
            for step, sigma in enumerate(plan.sigmas):
                given["t"] = torch.full((len(lens),), 1000 * sigma)
                cache.begin(step)
                outputs.append(call(model, given))
                following = (*plan.sigmas, 0.0)[step + 1]
                given["x"] = given["x"] + outputs[-1] * (following - sigma)
        assert cache.stats.block_runs == plan.expected.block_runs < 25 * (DOUBLE + SINGLE)
        clips.append(torch.stack(outputs))
    assert clips[0].std() > 0.1
    assert (clips[0] - clips[1]).abs().max() < 1e-4

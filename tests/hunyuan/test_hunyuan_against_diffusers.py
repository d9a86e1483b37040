"""The transformer against diffusers' HunyuanVideoTransformer3DModel with equal random weights."""

import re

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor

from hunyuan_walk import planned
from hyvideo.model import HYVideoDiffusionTransformer
from hyvideo.rope import rope_tables
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan.presets import build_preset
from profiling_core.plan.regrid import regrid

WIDTH, HEADS, DOUBLE, SINGLE, ROPE = 96, 4, 4, 6, (4, 10, 10)
TEXT, POOLED, TEXT_LEN, GRID = 40, 24, 12, (3, 4, 6)

# ours -> theirs, the part before .weight and .bias; tensors that are split stand below
TOP = {
    "img_in.proj": "x_embedder.proj",
    "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
LISTS = {
    "txt_in.individual_token_refiner.blocks": "context_embedder.token_refiner.refiner_blocks",
    "double_blocks": "transformer_blocks",
    "single_blocks": "single_transformer_blocks",
}
REFINER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "self_attn_proj": "attn.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm_out.linear",
}
DOUBLE_BLOCK = {
    "img_mod.linear": "norm1.linear",
    "img_attn_q_norm": "attn.norm_q",
    "img_attn_k_norm": "attn.norm_k",
    "img_attn_proj": "attn.to_out.0",
    "img_mlp.fc1": "ff.net.0.proj",
    "img_mlp.fc2": "ff.net.2",
    "txt_mod.linear": "norm1_context.linear",
    "txt_attn_q_norm": "attn.norm_added_q",
    "txt_attn_k_norm": "attn.norm_added_k",
    "txt_attn_proj": "attn.to_add_out",
    "txt_mlp.fc1": "ff_context.net.0.proj",
    "txt_mlp.fc2": "ff_context.net.2",
}
SINGLE_BLOCK = {
    "modulation.linear": "norm.linear",
    "q_norm": "attn.norm_q",
    "k_norm": "attn.norm_k",
    "linear2": "proj_out",
}
BLOCK = {**REFINER, **DOUBLE_BLOCK, **SINGLE_BLOCK}
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
SPLIT = {
    "self_attn_qkv": QKV,
    "img_attn_qkv": QKV,
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": (*QKV, "proj_mlp"),
}


def to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to diffusers'; the width is read off the tensors."""
    converted = {}
    width = state["img_in.proj.bias"].shape[0]
    for name, tensor in state.items():
        path, kind = name.rsplit(".", 1)
        if path in TOP:
            if path.startswith("final_layer.adaLN"):
                tensor = torch.cat(tensor.chunk(2)[::-1])  # shift, scale -> scale, shift
            converted[f"{TOP[path]}.{kind}"] = tensor
            continue
        block_list, number, part = re.fullmatch(r"(.+blocks)\.(\d+)\.(.+)", path).groups()
        prefix = f"{LISTS[block_list]}.{number}"
        names = SPLIT.get(part) or (BLOCK[part],)
        rows = [width] * 3 + [len(tensor) - 3 * width] * (len(names) - 3)
        parts = tensor.split(rows) if part in SPLIT else (tensor,)
        for own, piece in zip(names, parts, strict=True):
            converted[f"{prefix}.{own}.{kind}"] = piece
    return converted


def pair(guidance: bool) -> tuple[HYVideoDiffusionTransformer, HunyuanVideoTransformer3DModel]:
    """Ours with random weights, and diffusers' with the same."""
    torch.manual_seed(0)
    ours = HYVideoDiffusionTransformer(
        hidden_size=WIDTH,
        heads_num=HEADS,
        mm_double_blocks_depth=DOUBLE,
        mm_single_blocks_depth=SINGLE,
        rope_dim_list=ROPE,
        text_states_dim=TEXT,
        text_states_dim_2=POOLED,
        guidance_embed=guidance,
    ).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "norm" in name:  # q and k norms, the refiner's: not all one
                parameter.add_(0.2 * torch.randn_like(parameter))
    theirs = HunyuanVideoTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        guidance_embeds=guidance,
        text_embed_dim=TEXT,
        pooled_projection_dim=POOLED,
        rope_axes_dim=ROPE,
    ).eval()
    theirs.load_state_dict(to_diffusers(ours.state_dict()), strict=True)
    return ours, theirs


@pytest.fixture(scope="module", params=[True, False], ids=["guidance", "no guidance"])
def models(request):
    return pair(request.param)


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

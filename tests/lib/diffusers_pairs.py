"""Our transformers and diffusers' with the same random weights."""

import re

import torch
from diffusers import (
    HunyuanVideoTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor

from hyvideo.model import HYVideoDiffusionTransformer
from wan.model import WanModel
from wan.vace_model import VaceWanModel

WAN_TEXT_LEN, WAN_TEXT = 512, 64
WAN_SIZES = {"dim": 96, "ffn_dim": 160, "num_heads": 2, "num_layers": 4, "text_dim": WAN_TEXT}
WAN_PICTURE = {"image_tokens": 5, "image_dim": 24}
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


def hunyuan_pair(
    guidance: bool,
) -> tuple[HYVideoDiffusionTransformer, HunyuanVideoTransformer3DModel]:
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


def wan_pair(model_type: str = "t2v") -> tuple[WanModel, WanTransformer3DModel]:
    """Ours with a head that does not start at zero; diffusers' through its own conversion."""
    torch.manual_seed(0)
    pictures = {"in_dim": 36, **WAN_PICTURE} if model_type in ("i2v", "flf2v") else {}
    if model_type == "vace":
        ours = VaceWanModel(vace_layers=(0, 1, 3), **WAN_SIZES).eval()
    else:
        ours = WanModel(model_type, **WAN_SIZES, **pictures).eval()
    for parameter in ours.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return ours, diffusers_wan(ours)


def diffusers_wan(ours: WanModel) -> WanTransformer3DModel:
    """diffusers' transformer with the weights of ours."""
    width, image = ours.dim // ours.num_heads, {}
    if ours.image_shape[0]:
        image = {"image_dim": ours.image_shape[1], "added_kv_proj_dim": ours.dim}
    if ours.model_type == "flf2v":
        image["pos_embed_seq_len"] = ours.image_shape[0]
    kind = WanTransformer3DModel
    if ours.model_type == "vace":
        kind = WanVACETransformer3DModel
        image = {"vace_layers": list(ours.vace_layers), "vace_in_channels": ours.vace_in_dim}
    theirs = kind(
        **{"num_attention_heads": ours.num_heads, "attention_head_dim": width, **image},
        **{"text_dim": ours.text_dim, "ffn_dim": ours.blocks[0].ffn[0].out_features},
        **{"num_layers": len(ours.blocks), "in_channels": ours.in_dim, "out_channels": 16},
    )
    converted = convert_wan_transformer_to_diffusers(dict(ours.state_dict()))
    if ours.model_type == "flf2v":  # which that conversion leaves out
        converted["condition_embedder.image_embedder.pos_embed"] = converted.pop("img_emb.emb_pos")
    theirs.load_state_dict(converted, strict=True)
    return theirs.eval()


def wan_inputs(batch: int, sizes: tuple[int, int, int] = (3, 8, 12)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 16, *sizes, generator=generator)
    return x, torch.randn(batch, WAN_TEXT_LEN, WAN_TEXT, generator=generator)

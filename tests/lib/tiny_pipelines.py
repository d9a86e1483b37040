"""diffusers' real pipeline classes with tiny random parts; prompts are given as embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

STEPS = 10
FRAMES, SIZE, WIDTH = 5, 32, 24


@dataclass(frozen=True)
class Tiny:
    """A pipeline and what a call of it needs."""

    pipe: Any
    arguments: dict[str, Any]

    def latents(self, **changes: Any) -> torch.Tensor:
        """The final latents of a call with seed 0."""
        given = {"generator": torch.Generator().manual_seed(0), "output_type": "latent"}
        given |= {"num_inference_steps": STEPS}
        return self.pipe(**self.arguments | given | changes).frames

    def video(self, **changes: Any) -> torch.Tensor:
        """Decoded frames."""
        return torch.as_tensor(self.latents(output_type="pt", **changes))


def embeddings(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, tokens, width, generator=generator)


def picture() -> Image.Image:
    values = torch.rand(SIZE, SIZE, 3, generator=torch.Generator().manual_seed(3))
    return Image.fromarray((values * 255).byte().numpy())


def wan_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[0, 1, 1]
    )


def wan_transformer(channels: int = 16, image: int | None = None) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        **{"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 6},
        **{"text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "patch_size": (1, 2, 2)},
        **{"cross_attn_norm": True, "rope_max_seq_len": 32, "image_dim": image},
        in_channels=channels,
        out_channels=16,
    )


def wan(boundary: float | None = None, scheduler: Any = None) -> Tiny:
    """Wan2.1 T2V; with a boundary Wan2.2's two transformers."""
    scheduler = scheduler or UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=wan_vae(),
        scheduler=scheduler,
        transformer=wan_transformer(),
        transformer_2=None if boundary is None else wan_transformer(),
        boundary_ratio=boundary,
    )
    return Tiny(_quiet(pipe), _clip() | _guided_embeddings() | {"guidance_scale": 4.0})


def wan22() -> Tiny:
    return wan(boundary=0.7)


def wan_i2v() -> Tiny:
    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        image_encoder=CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=SIZE,
                patch_size=16,
            )
        ),
        image_processor=CLIPImageProcessorPil(
            crop_size={"height": SIZE, "width": SIZE}, size={"shortest_edge": SIZE}
        ),
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=wan_transformer(36, image=8),
    )
    more = {"image": picture(), "guidance_scale": 4.0}
    return Tiny(_quiet(pipe), _clip() | _guided_embeddings() | more)


def hunyuan_transformer(channels: int = 4, condition: str | None = None) -> Any:
    return HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        **{"num_attention_heads": 2, "attention_head_dim": 10, "rope_axes_dim": (2, 4, 4)},
        **{"num_layers": 4, "num_single_layers": 4, "num_refiner_layers": 1},
        **{"patch_size": 1, "patch_size_t": 1, "text_embed_dim": 16, "pooled_projection_dim": 8},
        guidance_embeds=condition is None,
        image_condition_type=condition,
    )


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def hunyuan(true_cfg: float = 1.0) -> Tiny:
    pipe = HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=hunyuan_transformer(),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    return Tiny(_quiet(pipe), _clip() | _hunyuan_prompt() | {"true_cfg_scale": true_cfg})


def hunyuan_cfg() -> Tiny:
    return hunyuan(true_cfg=3.0)


def hunyuan_i2v() -> Tiny:
    pipe = HunyuanVideoImageToVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=hunyuan_transformer(2 * 4 + 1, "latent_concat"),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        image_processor=None,
    )
    more = {"image": picture(), "true_cfg_scale": 3.0}
    return Tiny(_quiet(pipe), _clip() | _hunyuan_prompt() | more)


def cogvideox() -> Tiny:
    pipe = CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=AutoencoderKLCogVideoX(
            in_channels=3,
            out_channels=3,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        transformer=CogVideoXTransformer3DModel(
            **{"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 6},
            **{"in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 16},
            **{"sample_width": 4, "sample_height": 4, "sample_frames": 5, "patch_size": 2},
            **{"temporal_compression_ratio": 4, "max_text_seq_length": 6},
        ),
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    )
    return Tiny(_quiet(pipe), _clip() | _guided_embeddings() | {"guidance_scale": 4.0})


def ltx_vae() -> AutoencoderKLLTXVideo:
    sizes = {"latent_channels": 8, "patch_size": 1, "patch_size_t": 1}
    sizes |= {"upsample_residual": (False,) * 4, "upsample_factor": (1,) * 4}
    for part in ("", "decoder_"):
        sizes |= {f"{part}block_out_channels": (8,) * 4, f"{part}layers_per_block": (1,) * 5}
        sizes[f"{part}spatio_temporal_scaling"] = (True, True, False, False)
    causal = {"encoder_causal": True, "decoder_causal": False}
    return AutoencoderKLLTXVideo(**sizes, **causal, decoder_inject_noise=(False,) * 5)


def ltx() -> Tiny:
    pipe = LTXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=ltx_vae(),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=6,
            caption_channels=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
    )
    prompt = _guided_embeddings() | _masks() | {"guidance_scale": 3.0}
    return Tiny(_quiet(pipe), _clip() | prompt)


def mochi() -> Tiny:
    pipe = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=AutoencoderKLMochi(
            latent_channels=12,
            out_channels=3,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=None,
        tokenizer=None,
        transformer=MochiTransformer3DModel(
            **{"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 6},
            **{"in_channels": 12, "out_channels": None, "patch_size": 2, "text_embed_dim": 16},
            **{"pooled_projection_dim": 16, "time_embed_dim": 4, "max_sequence_length": 6},
            **{"qk_norm": "rms_norm", "activation_fn": "swiglu"},
        ),
    )
    prompt = _guided_embeddings() | _masks() | {"guidance_scale": 3.0, "num_frames": 7}
    return Tiny(_quiet(pipe), _clip() | prompt)


def hunyuan15() -> Tiny:
    pipe = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=HunyuanVideo15Transformer3DModel(
            **{"num_attention_heads": 2, "attention_head_dim": 16, "rope_axes_dim": (4, 6, 6)},
            **{"num_layers": 6, "num_refiner_layers": 1, "mlp_ratio": 2.0},
            **{"in_channels": 2 * 4 + 1, "out_channels": 4, "patch_size": 1, "patch_size_t": 1},
            **{"text_embed_dim": 16, "text_embed_2_dim": 8, "image_embed_dim": 12},
        ),
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            spatial_compression_ratio=8,
            temporal_compression_ratio=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    pipe.vision_num_semantic_tokens = 8
    prompt = {}
    for number, sign in enumerate(("", "negative_")):
        prompt |= {
            f"{sign}prompt_embeds": embeddings(6, 16, number),
            f"{sign}prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
            f"{sign}prompt_embeds_2": embeddings(4, 8, number),
            f"{sign}prompt_embeds_mask_2": torch.ones(1, 4, dtype=torch.long),
        }
    return Tiny(_quiet(pipe), _clip() | prompt)


ALL: dict[str, Callable[[], Tiny]] = {
    "wan": wan,
    "wan22": wan22,
    "wan_i2v": wan_i2v,
    "hunyuan": hunyuan,
    "hunyuan_cfg": hunyuan_cfg,
    "hunyuan_i2v": hunyuan_i2v,
    "cogvideox": cogvideox,
    "ltx": ltx,
    "mochi": mochi,
    "hunyuan15": hunyuan15,
}


def build(name: str) -> Tiny:
    """A pipeline of ALL with weights from a seed."""
    torch.manual_seed(5)
    return ALL[name]()


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _clip() -> dict[str, Any]:
    return {"height": SIZE, "width": SIZE, "num_frames": FRAMES}


def _guided_embeddings() -> dict[str, Any]:
    return {"prompt_embeds": embeddings(6, 16), "negative_prompt_embeds": embeddings(6, 16, seed=1)}


def _masks() -> dict[str, Any]:
    mask = torch.ones(1, 6, dtype=torch.bool)
    return {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


def _hunyuan_prompt() -> dict[str, Any]:
    found = _guided_embeddings()
    for number, sign in enumerate(("", "negative_")):
        found[f"{sign}pooled_prompt_embeds"] = embeddings(1, 8, number)[0]
        found[f"{sign}prompt_attention_mask"] = torch.ones(1, 6, dtype=torch.long)
    return found

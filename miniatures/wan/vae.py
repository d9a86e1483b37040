"""The Wan miniature's video autoencoder: diffusers' own class at a small size."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanDecoder3d,
    WanEncoder3d,
    WanResample,
    patchify,
    unpatchify,
)
from torch import Tensor

from miniatures.autoencoder import Autoencoder, Stage

FILE = "Wan2.1_VAE.pth"
# Three levels over 2x2 pixel patches: 4x8x8 as the official one, but no full-resolution level.
CONFIG = {
    "base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [True, True],
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
}


def build(**overrides: object) -> AutoencoderKLWan:
    return AutoencoderKLWan(**CONFIG | overrides)


# diffusers walks a clip in chunks with caches. A whole clip at once gives the same values with
# fewer, larger operations; only the two temporal resamplings need a word of their own.


def encode(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latent (B, 16, f, h, w) of a video (B, 3, T, H, W)."""
    encoder: WanEncoder3d = vae.encoder
    x = encoder.conv_in(patchify(video, vae.config.patch_size))
    for layer in encoder.down_blocks:
        x = _down(layer, x) if isinstance(layer, WanResample) else layer(x)
    x = encoder.conv_out(F.silu(encoder.norm_out(encoder.mid_block(x))))
    mean, logvar = vae.quant_conv(x).chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def decode(vae: AutoencoderKLWan, latent: Tensor) -> Tensor:
    """Video (B, 3, T, H, W) of a latent, not clamped."""
    decoder: WanDecoder3d = vae.decoder
    x = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latent)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = resnet(x)
        if block.upsamplers is not None:
            x = _up(block.upsamplers[0], x)
    x = decoder.conv_out(F.silu(decoder.norm_out(x)))
    return unpatchify(x, vae.config.patch_size)


def _down(layer: WanResample, x: Tensor) -> Tensor:
    x = layer(x)  # without a cache: the spatial half
    return torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)


def _up(layer: WanResample, x: Tensor) -> Tensor:
    later = layer.time_conv(x[:, :, 1:])  # (B, 2C, T - 1, H, W)
    b, _, t, h, w = later.shape
    later = later.view(b, 2, -1, t, h, w).movedim(1, 3).reshape(b, -1, 2 * t, h, w)
    return layer(torch.cat([x[:, :, :1], later], dim=2))


def read(folder: Path) -> AutoencoderKLWan:
    """The autoencoder in a checkpoint folder of ours, fp32."""
    vae = build()
    file = torch.load(folder / FILE, weights_only=True, map_location="cpu")
    state = convert_wan_vae_to_diffusers({name: tensor.float() for name, tensor in file.items()})
    vae.load_state_dict(state)
    return vae


AUTOENCODER = Autoencoder(
    build,
    encode,
    decode,
    read,
    stages=(
        Stage(0.25, 16, 9, 64),
        Stage(0.5, 8, 9, 64),
        Stage(0.75, 4, 17, 64),
        Stage(0.95, 4, 33, 64),
        Stage(1.0, 2, 33, 128),
    ),
    refining=Stage(1.0, 4, 33, 64),
)

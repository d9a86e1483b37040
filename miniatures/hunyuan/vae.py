"""The HunyuanVideo miniature's video autoencoder: diffusers' own class at a small size."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn

from miniatures.autoencoder import Autoencoder, Stage

FILE = Path("hunyuan-video-t2v-720p") / "vae" / "pytorch_model.pt"
# Four levels as the official one, the first at full resolution: narrow there, wide below.
CONFIG = {
    "block_out_channels": [8, 16, 32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 1,  # of 8 channels: smaller groups lose the colours they normalise
    "latent_channels": 16,
}


def build() -> AutoencoderKLHunyuanVideo:
    vae = AutoencoderKLHunyuanVideo(**CONFIG)
    vae.use_framewise_encoding = vae.use_framewise_decoding = False  # 33 frames are one tile
    init_weights(vae)
    return vae


@torch.no_grad()
def init_weights(vae: AutoencoderKLHunyuanVideo) -> None:
    """Start as a blurred copy: residual blocks do nothing, resampling is a mean and a repetition.

    With torch's own start a convolution without a residual path loses two thirds of the variance,
    and what comes from the latents is drowned: 100 steps did not reach the clip's mean colour.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv3d):
            continue
        weight = module.weight  # (out, in, t, h, w); causal: the last tap in t is the present
        nn.init.zeros_(module.bias)
        nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        if name.endswith("conv2.conv"):
            nn.init.zeros_(weight)
        elif "conv_shortcut" in name:
            nn.init.orthogonal_(weight.flatten(1))
        elif "samplers" in name:
            same = torch.eye(len(weight))
            weight.mul_(0.3)
            if "upsamplers" in name:
                weight[:, :, -1, 1, 1] += same
            else:
                weight.add_(same[..., None, None, None] / weight[0, 0].numel())


def encode(vae: AutoencoderKLHunyuanVideo, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latent (B, 16, f, h, w) of a video (B, 3, T, H, W)."""
    mean, logvar = vae.quant_conv(vae.encoder(video)).chunk(2, dim=1)
    return mean, torch.clamp(logvar, -30, 20)


def decode(vae: AutoencoderKLHunyuanVideo, latent: Tensor) -> Tensor:
    """Video (B, 3, T, H, W) of a latent, not clamped."""
    return vae.decoder(vae.post_quant_conv(latent))


def read(folder: Path) -> AutoencoderKLHunyuanVideo:
    """The autoencoder in a checkpoint folder of ours, fp32."""
    vae = build()
    file = torch.load(folder / FILE, weights_only=True, map_location="cpu")
    vae.load_state_dict({name: tensor.float() for name, tensor in file["state_dict"].items()})
    return vae


@torch.no_grad()
def fold_statistics(vae: AutoencoderKLHunyuanVideo, mean: list[float], std: list[float]) -> None:
    """Change the 1x1x1 convolutions around the latent so that its channels have mean 0, std 1.

    The official file format knows one scaling factor for all channels; the result is the same
    autoencoder with another basis of the same latent.
    """
    shift, scale = (torch.tensor(values) for values in (mean, std))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= scale.view(-1, 1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - shift) / scale
    quant.bias[channels:] -= 2 * scale.log()  # of the variance
    post.bias += (post.weight[:, :, 0, 0, 0] * shift).sum(dim=1)
    post.weight *= scale.view(1, -1, 1, 1, 1)


AUTOENCODER = Autoencoder(
    build,
    encode,
    decode,
    read,
    stages=(
        Stage(0.45, 32, 5, 32),
        Stage(0.68, 16, 9, 48),
        Stage(0.88, 8, 17, 64),
        Stage(1.0, 4, 33, 64),
    ),
    refining=Stage(1.0, 4, 33, 64),
)

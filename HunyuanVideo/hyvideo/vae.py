"""The video VAE: official weight and configuration files, diffusers' model, official tiles."""

from contextlib import AbstractContextManager
from functools import cache, partial
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLHunyuanVideo
from loguru import logger
from torch import Tensor

from profiling_core.errors import InputError
from profiling_core.files import first_line
from profiling_core.parallel.ranks import Ranks
from profiling_core.parallel.vae_tiles import shared_tiles
from profiling_core.runtime.checkpoint_files import check_counts, read_json
from profiling_core.runtime.state_dicts import (
    assign,
    check_types,
    plain_state,
    read_torch_file,
    types_of,
)

from .layers import no_autocast
from .weights import DTYPES

# names in the official config.json -> names of diffusers' arguments; the others are not sizes
NAMES = {
    **{
        name: name
        for name in (
            "in_channels",
            "out_channels",
            "latent_channels",
            "block_out_channels",
            "layers_per_block",
            "act_fn",
            "norm_num_groups",
            "scaling_factor",
            "mid_block_add_attention",
            "spatial_compression_ratio",
            "temporal_compression_ratio",
        )
    },
    "time_compression_ratio": "temporal_compression_ratio",
}
SCALE, TIME_SCALE = 8, 4  # pixels along a side, and frames, of one latent
TILE_PIXELS, TILE_FRAMES = 256, 64  # sample_size and sample_tsize of the official VAE
CUDNN_BROKEN, CUDNN_FIXED = 90800, 91500  # for 3-D convolutions in half precision
TILE_STRIDE = 0.75  # of a tile; neighbours overlap by the rest and are blended there


def build_vae(config_file: Path) -> AutoencoderKLHunyuanVideo:
    """The VAE of a config.json on the meta device, its tiles set; absent keys are official."""
    given = read_json(config_file)
    check_counts(config_file, {k: v for k, v in given.items() if v is not None}, least=1)
    kwargs = {NAMES[name]: value for name, value in given.items() if name in NAMES}
    try:
        levels = len(kwargs.get("block_out_channels", range(4)))
        with torch.device("meta"), torch.no_grad():
            model = AutoencoderKLHunyuanVideo(
                **kwargs,
                down_block_types=("HunyuanVideoDownBlock3D",) * levels,
                up_block_types=("HunyuanVideoUpBlock3D",) * levels,
            )
            clip = model.decode(torch.empty(1, model.config.latent_channels, 2, 2, 2)).sample
    except Exception as error:  # the module checks nothing itself: any error of torch's
        raise InputError(f"{config_file}: {first_line(error)}") from None
    if clip.shape != (1, 3, 5, 16, 16):
        raise InputError(
            f"{config_file}: 2 latents of 2x2 become a clip of shape {tuple(clip.shape[1:])}, "
            "expected (3, 5, 16, 16): these are not the sizes of a HunyuanVideo VAE"
        )
    factor = model.config.scaling_factor
    if not isinstance(factor, int | float) or not isfinite(factor) or factor <= 0:
        raise InputError(f"{config_file}: scaling_factor is {factor!r}, expected a number above 0")
    _set_tiles(model, config_file, given)
    return model


def _set_tiles(model: AutoencoderKLHunyuanVideo, config_file: Path, given: dict[str, Any]) -> None:
    """Official tiles: of sample_size pixels and sample_tsize frames, overlapping by a quarter."""
    spatial, temporal = model.spatial_compression_ratio, model.temporal_compression_ratio
    pixels, pixel_stride = _tile(config_file, given, "sample_size", TILE_PIXELS, spatial)
    frames, frame_stride = _tile(config_file, given, "sample_tsize", TILE_FRAMES, temporal)
    model.enable_tiling(
        tile_sample_min_height=pixels,
        tile_sample_min_width=pixels,
        tile_sample_min_num_frames=frames,
        tile_sample_stride_height=pixel_stride,
        tile_sample_stride_width=pixel_stride,
        tile_sample_stride_num_frames=frame_stride,
    )


def _tile(
    config_file: Path, given: dict[str, Any], name: str, official: int, ratio: int
) -> tuple[int, int]:
    """A tile's size and stride, both whole latents."""
    size = given.get(name, official)
    if isinstance(size, list) and size:  # [height, width], always alike
        size = size[0]
    if type(size) is not int or int(size // ratio * TILE_STRIDE) < 1:
        raise InputError(f"{config_file}: {name} is {size!r}, expected at least {2 * ratio}")
    return size, int(size // ratio * TILE_STRIDE) * ratio


def read_vae_file(path: Path) -> dict[str, Tensor]:
    """The VAE's tensors, without the wrappings that official files may have."""
    content = read_torch_file(path)
    state = plain_state(path, content.get("state_dict", content))
    if any(name.startswith("vae.") for name in state):
        own = {name: tensor for name, tensor in state.items() if name.startswith("vae.")}
        state = {name.removeprefix("vae."): tensor for name, tensor in own.items()}
    check_types(path, types_of(state), "take the official file")
    return state


class VaeSizes(NamedTuple):
    """What the memory of a decode is counted from."""

    parameters: int
    channels: int = 128  # at full size
    pixels: int = TILE_PIXELS  # along a tile's side
    frames: int = TILE_FRAMES


def vae_sizes(config_file: Path) -> VaeSizes:
    model = build_vae(config_file)
    return VaeSizes(
        sum(p.numel() for p in model.parameters()),
        model.config.block_out_channels[0],
        model.tile_sample_min_height,
        model.tile_sample_min_num_frames,
    )


def decode_bytes(
    latent: tuple[int, ...],
    dtype: torch.dtype,
    channels: int = 128,
    pixels: int = TILE_PIXELS,
    frames: int = TILE_FRAMES,
) -> int:
    """The most memory that decoding a latent (z, f, h, w) takes beside the weights.

    Tiles are decoded one by one. With c = `channels` at full size, V voxels of a tile and V' of its
    padded copy (two more along every side), alive at the largest point are, in half precision
    under autocast, which runs the group norm in fp32, a convolution's input of 2c channels, the
    activation in fp32, its padded copy in fp32 and in half, and the output; in fp32 the upsampled
    input of 2c, the frames joined to it, their padded copy, the output and smaller ones. Decoded
    tiles and their blends take twice the F frames of the clip:

        half:  c (14 V + 12 V') + 4 * 3 F H W  bytes
        fp32:  c (28 V +  8 V') + 8 * 3 F H W
    """
    ratios, limits = (TIME_SCALE, SCALE, SCALE), (frames, pixels, pixels)
    tile = [min(n, limit // r) for n, r, limit in zip(latent[1:], ratios, limits, strict=True)]
    tile[0] = min(latent[1], frames // TIME_SCALE + 1)  # a tile of frames takes one latent more
    sides = (TIME_SCALE * (tile[0] - 1) + 1, *(n * SCALE for n in tile[1:]))
    voxels, padded = prod(sides), prod(n + 2 for n in sides)
    clip = 3 * (TIME_SCALE * (latent[1] - 1) + 1) * latent[2] * latent[3] * SCALE**2
    if dtype == torch.float32:
        return channels * (28 * voxels + 8 * padded) + 8 * clip
    return channels * (14 * voxels + 12 * padded) + 4 * clip


@cache
def warn_once(warning: str | None) -> None:
    if warning is not None:
        logger.warning(warning)


def slow_convolutions(release: str, cudnn: int | None, cuda: str | None) -> str | None:
    """A warning where torch runs half-precision 3-D convolutions without cuDNN.

    Torch 2.9.0 does so with cuDNN 9.8 and newer, 2.9.1 with 9.8 to 9.14: those gave wrong results.
    """
    if not release.startswith("2.9.") or cudnn is None or cudnn < CUDNN_BROKEN:
        return None
    first = release.startswith("2.9.0")
    if cudnn >= CUDNN_FIXED and not first:
        return None
    package = f"nvidia-cudnn-cu{(cuda or '12').partition('.')[0]}"
    newer = f'torch 2.9.1 and "{package}>=9.15"' if first else f'"{package}>=9.15"'
    return (
        f"torch {release} runs half-precision 3-D convolutions without cuDNN {cudnn}: the VAE "
        f"decodes more slowly and takes more memory than is counted; install {newer}, take torch "
        "2.10 or newer, or give --vae-precision fp32"
    )


class VideoVAE:
    """Clips (3, F, H, W) in [0, 1] to scaled latents (z, f, h, w) and back.

    On a GPU it works in `precision`, fp16 officially, under autocast. Host processors lack or crawl
    through half-precision convolutions: there the same rounded weights are computed in fp32.
    """

    def __init__(
        self,
        config_file: Path,
        checkpoint: Path,
        device: torch.device | str,
        precision: str = "fp16",
        *,
        autocast: bool = True,
    ) -> None:
        """Load on the host; InputError when the weights or the configuration are unusable."""
        self.device, self.autocast = torch.device(device), autocast
        self.dtype = DTYPES[precision]
        self.model = build_vae(config_file)
        state = {name: t.to(self.dtype) for name, t in read_vae_file(checkpoint).items()}
        if self.device.type == "cpu" and self.dtype != torch.float32:
            logger.info(f"the VAE computes in fp32 on the CPU, its weights rounded to {precision}")
            self.dtype = torch.float32
            state = {name: tensor.float() for name, tensor in state.items()}
        if self.device.type == "cuda" and self.dtype != torch.float32:
            cudnn = torch.backends.cudnn.version()
            warn_once(slow_convolutions(torch.__version__, cudnn, torch.version.cuda))
        assign(self.model, state, checkpoint)

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Latent of a clip: the posterior's mean, scaled, fp32."""
        with self._precision():
            clip = (2 * video[None].float() - 1).to(self.dtype)
            mean = self.model.encode(clip).latent_dist.mode()
        return mean[0].float() * self.model.config.scaling_factor

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Clip (3, F, H, W) of a latent, fp32 in [0, 1], also inside an autocast region."""
        with self._precision():
            scaled = latent[None].float() / self.model.config.scaling_factor
            clip = self.model.decode(scaled.to(self.dtype)).sample[0]
        return (clip / 2 + 0.5).clamp(0, 1).float()

    def decode_shared(self, latent: Tensor, ranks: Ranks) -> Tensor | None:
        """`decode` on several processes, a tile on each: the clip on rank 0, None on the others.

        Every process has to call it. The tiles are those of one process, and so is the clip.
        """
        shape = partial(_decoded_shape, self.model.config.out_channels)
        with shared_tiles(self.model.decoder, ranks, shape):
            video = self.decode(latent)
        return video if ranks.first else None

    def _precision(self) -> AbstractContextManager:
        if self.dtype == torch.float32 or not self.autocast:
            return no_autocast(self.device)
        return torch.autocast(self.device.type, self.dtype)


def _decoded_shape(channels: int, latent: tuple[int, ...], _: bool) -> tuple[int, ...]:
    """What the decoder makes of a tile."""
    batch, _, frames, height, width = latent
    return batch, channels, TIME_SCALE * (frames - 1) + 1, height * SCALE, width * SCALE

"""The video VAE: official weight file, diffusers' model, fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor

from profiling_core.errors import InputError
from profiling_core.files import first_line
from profiling_core.parallel.ranks import Ranks
from profiling_core.parallel.vae_tiles import shared_tiles, tile_grid
from profiling_core.runtime.checkpoint_files import check_counts, read_json
from profiling_core.runtime.state_dicts import assign, read_weights

from .model import no_autocast

BASE_DIM = 96  # of the official VAE
SCALE = 8  # pixels along a side of one latent
OVERLAP, LEAST_TILE = 64, 128  # pixels, of tiles that several processes share out


def build_vae(checkpoint: Path) -> AutoencoderKLWan:
    """The VAE on the meta device; sizes as in the JSON file beside it, or the official ones."""
    sizes = checkpoint.with_suffix(".json")
    kwargs = read_json(sizes) if sizes.exists() else {}
    check_counts(sizes, kwargs, least=1)
    try:
        with torch.device("meta"), torch.no_grad():
            model = AutoencoderKLWan(**kwargs)
            clip = model.decode(torch.empty(1, model.config.z_dim, 2, 2, 2)).sample
    except Exception as error:  # the module checks nothing itself: any error of torch's
        raise InputError(f"{sizes}: {first_line(error)}") from None
    if clip.shape != (1, 3, 5, 16, 16):
        raise InputError(
            f"{sizes}: 2 latents of 2x2 become a clip of shape {tuple(clip.shape[1:])}, "
            "expected (3, 5, 16, 16): these are not the sizes of a Wan2.1 VAE"
        )
    for name in ("latents_mean", "latents_std"):
        _check_statistics(f"{sizes}: {name}", model.config[name], model.config.z_dim)
    if min(model.config.latents_std) <= 0:
        raise InputError(f"{sizes}: latents_std holds {min(model.config.latents_std)}, not above 0")
    return model


def _check_statistics(what: str, values: Any, channels: int) -> None:
    """Refuse a single number, which would silently serve all channels."""
    if not isinstance(values, list | tuple) or len(values) != channels:
        raise InputError(f"{what} is {values!r}, expected a list of z_dim {channels} numbers")
    for value in values:
        if not isinstance(value, int | float) or not isfinite(value):
            raise InputError(f"{what} holds {value!r}, expected finite numbers")


def base_dim(checkpoint: Path) -> int:
    """Channels at full size."""
    sizes = checkpoint.with_suffix(".json")
    return read_json(sizes).get("base_dim", BASE_DIM) if sizes.exists() else BASE_DIM


def decode_bytes(latent: tuple[int, ...], base_dim: int = BASE_DIM, ranks: int = 1) -> int:
    """The most memory that decoding a latent (z, f, h, w) takes beside the weights.

    Latent frames are decoded one by one into 4 frames each, in fp32. The largest point is the
    padding before a convolution of b = base_dim channels at full size: alive are the block's input,
    the last convolution's output and the activation (4 frames each), the frames joined to the two
    before them and their padded copy (6 each), and two frames that every convolution keeps, of
    which 8 have b channels at full size, 6 have 2b at half, 6 have 4b at a quarter and some at an
    eighth, together 51 of b. The clip of F frames is there twice, when a piece is joined:

        4 H W (51 b + 6 F)  bytes; 18 b in place of 51 b where F = 1

    On several ranks the first term is a tile's.
    """
    _, frames, height, width = latent
    rows, columns = tile_grid(height * SCALE, width * SCALE, ranks, OVERLAP, LEAST_TILE)
    tile = 1
    for side, count in ((height * SCALE, rows), (width * SCALE, columns)):
        tile *= -(-side // count) + OVERLAP * (count > 1)
    clip = height * width * SCALE**2 * (4 * (frames - 1) + 1)
    return 4 * (tile * base_dim * (51 if frames > 1 else 18) + 6 * clip)


class VideoVAE:
    """Clips (3, F, H, W) in [-1, 1] to normalised latents (z, f, h, w) and back."""

    def __init__(self, checkpoint: Path, device: torch.device | str) -> None:
        """Load; InputError when the weights or the sizes beside them are unusable."""
        self.model = build_vae(checkpoint)
        state = {name: tensor.float() for name, tensor in read_weights(checkpoint).items()}
        assign(self.model, convert_wan_vae_to_diffusers(state), checkpoint)
        self.model.to(device)
        column = (1, -1, 1, 1, 1)
        mean, std = self.model.config.latents_mean, self.model.config.latents_std
        self.mean = torch.tensor(mean, device=device).view(column)
        # 1 / s rounded to fp32 and divided by again below: equal to the official arithmetic
        self.inverse_std = 1.0 / torch.tensor(std, device=device).view(column)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Latent of a clip: the posterior's mean, normalised; frames beyond 4n+1 are dropped."""
        with no_autocast(self.mean.device):
            posterior = self.model.encode(video[None].float()).latent_dist
            return ((posterior.mode() - self.mean) * self.inverse_std)[0]

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Clip (3, F, H, W) of a latent, fp32 in [-1, 1], also inside an autocast region."""
        with no_autocast(self.mean.device):
            return self.model.decode(latent[None].float() / self.inverse_std + self.mean).sample[0]

    def decode_shared(self, latent: Tensor, ranks: Ranks) -> Tensor | None:
        """`decode` on several processes: the clip on rank 0, None on the others.

        Every process has to call it. Where it pays the clip is decoded in overlapping tiles that
        diffusers blends: at their borders values differ from those of a decode in one piece.
        """
        rows, columns = self._tiles(latent.shape[-2:], ranks.world)
        if rows * columns == 1:
            return self.decode(latent) if ranks.first else None
        with self._tiled(latent.shape[-2:], rows, columns):
            config = self.model.config
            shape = partial(_decoded_shape, config.out_channels, SCALE // (config.patch_size or 1))
            with shared_tiles(self.model.decoder, ranks, shape, goes_on="first_chunk"):
                video = self.decode(latent)
        return video if ranks.first else None

    def _tiles(self, latent: tuple[int, ...], ranks: int) -> tuple[int, int]:
        height, width = (side * SCALE for side in latent)
        return tile_grid(height, width, ranks, OVERLAP, LEAST_TILE)

    @contextmanager
    def _tiled(self, latent: tuple[int, ...], rows: int, columns: int) -> Iterator[None]:
        """Decode in this many tiles, each OVERLAP pixels larger than its share."""
        strides = [-(-side // n) * SCALE for side, n in zip(latent, (rows, columns), strict=True)]
        sizes = [
            stride + OVERLAP * (n > 1) for stride, n in zip(strides, (rows, columns), strict=True)
        ]
        self.model.enable_tiling(sizes[0], sizes[1], strides[0], strides[1])
        try:
            yield
        finally:
            self.model.disable_tiling()


def _decoded_shape(
    channels: int, scale: int, latent: tuple[int, ...], first: bool
) -> tuple[int, ...]:
    """What one latent frame becomes: the first of a clip one frame, every other one four."""
    batch, _, _, height, width = latent
    return batch, channels, 1 if first else 4, height * scale, width * scale

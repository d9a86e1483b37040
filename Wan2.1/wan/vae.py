"""The video VAE: official weight file, diffusers' model, fp32."""

from math import isfinite
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor

from .checkpoint import check_counts, first_line, read_json
from .errors import InputError
from .model import no_autocast
from .weights import assign, read_torch_file


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
    """One number would be stretched over all channels silently."""
    if not isinstance(values, list | tuple) or len(values) != channels:
        raise InputError(f"{what} is {values!r}, expected a list of z_dim {channels} numbers")
    for value in values:
        if not isinstance(value, int | float) or not isfinite(value):
            raise InputError(f"{what} holds {value!r}, expected finite numbers")


class VideoVAE:
    """Clips (3, F, H, W) in [-1, 1] to normalised latents (z, f, h, w) and back."""

    def __init__(self, checkpoint: Path, device: torch.device | str) -> None:
        """Load; InputError when the weights or the sizes beside them are unusable."""
        self.model = build_vae(checkpoint)
        state = {name: t.float() for name, t in read_torch_file(checkpoint).items()}
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

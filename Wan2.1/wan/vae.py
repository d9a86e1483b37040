"""The video VAE: official weight file, diffusers' model, fp32."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor

from .checkpoint import read_json
from .errors import InputError
from .model import no_autocast
from .weights import assign, read_torch_file


class VideoVAE:
    """Clips (3, F, H, W) in [-1, 1] to normalised latents (z, f, h, w) and back."""

    def __init__(self, checkpoint: Path, device: torch.device | str) -> None:
        """Sizes come from a JSON file beside the checkpoint, or are the official ones."""
        sizes = checkpoint.with_suffix(".json")
        kwargs = read_json(sizes) if sizes.exists() else {}
        try:
            with torch.device("meta"):
                self.model = AutoencoderKLWan(**kwargs)
        except (TypeError, ValueError, IndexError) as error:
            raise InputError(f"{sizes}: {error}") from None
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

"""Image to video: a clip that begins with a picture, or with one and ends with another."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from profiling_core.plan.plan import CachePlan
from profiling_core.recording.recorder import Recorder

from .clip import ImageEncoder
from .configs import size_like
from .pictures import fitted
from .text2video import WanT2V


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as (3, H, W), fp32 in [-1, 1]."""
    values = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    return (values.float() / 255 - 0.5) / 0.5


def frame_mask(frames: int, known: tuple[int, ...], rows: int, columns: int) -> Tensor:
    """1 where a latent frame comes from a frame that is given: (4, f, rows, columns).

    Latent frame 0 stands for one frame of the clip, every other one for four, a channel each.
    Officially the mask for two pictures has 81 frames whatever the clip has, and other clips fail.
    """
    line = torch.zeros(frames)
    line[list(known)] = 1
    folded = torch.cat((line[:1].repeat(4), line[1:])).view(-1, 4).T
    return folded[:, :, None, None].expand(-1, -1, rows, columns)


class WanI2V(WanT2V):
    """A loaded image-to-video model: arguments as `WanT2V`'s."""

    def _load_encoders(self, folder: Path, device: torch.device, sharded: bool) -> None:
        super()._load_encoders(folder, device, sharded)
        half = self.device.type == "cuda" and not self.fp32  # officially fp16
        self.image_encoder = ImageEncoder(
            folder / self.config.clip_checkpoint, torch.float16 if half else torch.float32
        )

    def _parts(self) -> list[tuple[str, Any, str, Any]]:
        tokens, width = self.image_encoder.shape
        found = (tokens * len(self.config.pictures), width)
        own = ("CLIP's tokens and width", found, "image shape", self.model.image_shape)
        return [*super()._parts(), own]

    def generate(
        self,
        input_prompt: str,
        img: Image.Image,
        max_area: int = 720 * 1280,
        frame_num: int = 81,
        shift: float = 5.0,
        sample_solver: str = "unipc",
        sampling_steps: int = 40,
        guide_scale: float = 5.0,
        n_prompt: str = "",
        seed: int = -1,
        offload_model: bool | None = None,
        **options: Any,
    ) -> Tensor | None:
        """A clip (3, F, H, W) that begins with `img`, an RGB picture.

        max_area: pixels of a frame at most, whose aspect is the picture's; everything else as in
        `WanT2V.generate`.
        """
        sampling = sampling_of(shift, sample_solver, sampling_steps, guide_scale)
        prompts = [input_prompt, n_prompt]
        return self._from_pictures(
            prompts, [img], max_area, frame_num, sampling, seed, offload_model, **options
        )

    def _from_pictures(
        self,
        prompts: list[str],
        pictures: list[Image.Image],
        max_area: int,
        frame_num: int,
        sampling: dict[str, Any],
        seed: int,
        offload_model: bool | None,
        *,
        plan: CachePlan | None = None,
        recorder: Recorder | None = None,
        noise_device: torch.device | str | None = None,
        progress: bool = True,
    ) -> Tensor | None:
        self.config.check_frames(frame_num)
        size = size_like(pictures[0].size, max_area)
        return self._make_clip(
            [prompts[0], prompts[1] or self.config.sample_neg_prompt],
            self.config.latent_shape(size, frame_num),
            seed,
            noise_device,
            {**sampling, "progress": progress},
            condition=lambda: self.encode_pictures(pictures, size, frame_num, offload_model),
            offload_model=offload_model,
            plan=plan,
            recorder=recorder,
        )

    def encode_pictures(
        self,
        pictures: list[Image.Image],
        size: tuple[int, int],
        frame_num: int,
        offload_model: bool | None = None,
    ) -> dict[str, Any]:
        """What `denoise` takes as `condition`: CLIP's features, and a mask with the latent.

        The latent is that of a clip of `size` (width, height) that holds the first picture, grey,
        and the last picture where there is one, fitted to the first.
        """
        pictures = [fitted(picture, pictures[0].size) for picture in pictures]
        offload = self.offload_model if offload_model is None else offload_model
        self.make_room(offload)
        tensors = [to_tensor(picture).to(self.device) for picture in pictures]
        self.image_encoder.to(self.device)
        features = self.image_encoder(tensors)
        if offload:
            self.image_encoder.to("cpu")
        width, height = size
        known = (0, frame_num - 1)[: len(pictures)]
        clip = torch.zeros(3, frame_num, height, width, device=self.device)
        for frame, picture in zip(known, tensors, strict=True):
            # on the CPU, as officially: devices round bicubic differently
            scaled = F.interpolate(picture[None].cpu(), (height, width), mode="bicubic")
            clip[:, frame] = scaled[0].to(self.device)
        latent = self.vae.encode(clip)
        mask = frame_mask(frame_num, known, *latent.shape[2:]).to(latent)
        return {"clip_fea": features.float(), "y": [torch.cat((mask, latent))]}


class WanFLF2V(WanI2V):
    """A loaded model for clips between a first and a last frame: arguments as `WanT2V`'s."""

    def generate(
        self,
        input_prompt: str,
        first_frame: Image.Image,
        last_frame: Image.Image,
        max_area: int = 720 * 1280,
        frame_num: int = 81,
        shift: float = 16.0,
        sample_solver: str = "unipc",
        sampling_steps: int = 50,
        guide_scale: float = 5.5,
        n_prompt: str = "",
        seed: int = -1,
        offload_model: bool | None = None,
        **options: Any,
    ) -> Tensor | None:
        """A clip (3, F, H, W) from `first_frame` to `last_frame`, RGB pictures.

        frame_num: any 4n + 1 from 5 on, where the official code takes 81 alone. A last picture of
        another size is scaled to cover the first and cut to it; officially it is cut or padded
        without being scaled. Everything else as in `WanI2V.generate`.
        """
        sampling = sampling_of(shift, sample_solver, sampling_steps, guide_scale)
        prompts, pictures = [input_prompt, n_prompt], [first_frame, last_frame]
        return self._from_pictures(
            prompts, pictures, max_area, frame_num, sampling, seed, offload_model, **options
        )


def sampling_of(shift: float, solver: str, steps: int, guide_scale: float) -> dict[str, Any]:
    """Arguments of `denoise`."""
    grid = {"shift": shift, "sample_solver": solver, "sampling_steps": steps}
    return {**grid, "guide_scale": guide_scale}

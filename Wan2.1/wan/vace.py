"""VACE: a clip from a video, a mask and reference pictures, any of which may be absent."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

from profiling_core.plan.cost import block_runs, block_runs_full, model_calls
from profiling_core.plan.plan import CachePlan
from profiling_core.recording.recorder import Recorder

from .image2video import WanFLF2V, WanI2V, sampling_of, to_tensor
from .sources import Sources, Video, read_sources, sampled
from .text2video import WanT2V
from .vace_model import VaceWanModel

Lists = tuple[list[Tensor], list[Tensor], list[list[Tensor] | None]]


def load_sources(sources: Sources, device: torch.device | str = "cpu") -> Lists:
    """`input_frames`, `input_masks` and `input_ref_images` of `WanVace.generate`, for one clip.

    Without a video the frames are 0, mid grey; without a mask it is 1 everywhere.
    """
    width, height = sources.size
    frames = torch.zeros(3, sources.frame_num, height, width, device=device)
    mask = torch.ones_like(frames[:1])
    if sources.video is not None:
        numbers = sampled(sources.video.frames, sources.frame_num)
        frames = _frames(sources.video, numbers, sources.size).to(device)
        if sources.mask is not None:
            known = _frames(sources.mask, numbers, sources.size)[:1]
            mask = ((known + 1) / 2).clamp(0, 1).to(device)
    canvases = [on_canvas(to_tensor(p), sources.size).to(device) for p in sources.pictures]
    return [frames], [mask], [canvases or None]


def _frames(video: Video, numbers: list[int], size: tuple[int, int]) -> Tensor:
    """(3, F, H, W), fp32 in [-1, 1]: scaled to cover `size` (width, height), the centre cut out.

    As officially the scaled frames have 8 bits.
    """
    width, height = size
    found = []
    for frame in video.at(numbers):
        values = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None]
        rows, columns = values.shape[2:]
        if (rows, columns) != (height, width):
            scale = max(width / columns, height / rows)
            sides = (round(scale * rows), round(scale * columns))
            values = F.interpolate(values, sides, mode="bicubic", antialias=True)
            top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
            values = values[:, :, top : top + height, left : left + width]
        found.append(values[0])
    return torch.stack(found, dim=1).float().div_(127.5).sub_(1)


def on_canvas(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (3, h, w) in [-1, 1] whole on a white canvas of `size`: (3, 1, H, W)."""
    width, height = size
    rows, columns = picture.shape[1:]
    canvas = torch.ones(3, 1, height, width)
    scale = min(height / rows, width / columns)
    sides = (max(1, int(rows * scale)), max(1, int(columns * scale)))
    top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
    if sides != (rows, columns):
        picture = F.interpolate(picture[None], sides, mode="bilinear")[0]
    canvas[:, 0, top : top + sides[0], left : left + sides[1]] = picture
    return canvas


def mask_channels(mask: Tensor, latent_frames: int) -> Tensor:
    """A mask (1, F, H, W) as (64, latent_frames, H / 8, W / 8).

    Each cell of 8 x 8 pixels becomes channels, row by row; of the frames the nearest are taken.
    """
    cells = F.pixel_unshuffle(mask[0, :, None], 8).transpose(0, 1)[None]  # (1, 64, F, h, w)
    return F.interpolate(cells, (latent_frames, *cells.shape[3:]), mode="nearest-exact")[0]


class WanVace(WanT2V):
    """A loaded VACE model: arguments as `WanT2V`'s."""

    model: VaceWanModel

    def _parts(self) -> list[tuple[str, Any, str, Any]]:
        channels = self.config.context_channels
        own = ("the task's context channels", channels, "vace_in_dim", self.model.vace_in_dim)
        return [*super()._parts(), own]

    def prepare_source(
        self,
        src_video: list[str | Path | None],
        src_mask: list[str | Path | None],
        src_ref_images: list[list[str | Path] | None],
        num_frames: int,
        image_size: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> Lists:
        """Read the files of one clip, a list of length 1 each; what `generate` takes.

        image_size: (width, height). InputError for files that do not serve (`read_sources`).
        """
        (video,), (mask,), (pictures,) = src_video, src_mask, src_ref_images
        sources = read_sources(video, mask, pictures or [], image_size, num_frames)
        return load_sources(sources, device)

    def generate(
        self,
        input_prompt: str,
        input_frames: list[Tensor],
        input_masks: list[Tensor],
        input_ref_images: list[list[Tensor] | None],
        size: tuple[int, int] = (1280, 720),
        frame_num: int = 81,
        context_scale: float = 1.0,
        shift: float = 5.0,
        sample_solver: str = "unipc",
        sampling_steps: int = 50,
        guide_scale: float = 5.0,
        n_prompt: str = "",
        seed: int = -1,
        offload_model: bool | None = None,
        *,
        plan: CachePlan | None = None,
        recorder: Recorder | None = None,
        noise_device: torch.device | str | None = None,
        progress: bool = True,
    ) -> Tensor | None:
        """A clip (3, F, H, W) of the frames' size, as `WanT2V.generate` returns it.

        Each list holds the input of one clip (`prepare_source` makes all three). input_frames:
        (3, F, H, W) in [-1, 1]; input_masks: (1 or 3, F, H, W), 1 where frames are to be made;
        input_ref_images: pictures (3, 1, H, W), or None; size, frame_num: without effect, as
        officially, the frames have both; context_scale: of the hints. Everything else as in
        `WanT2V.generate`.
        """
        (frames,), (mask,), (pictures,) = input_frames, input_masks, input_ref_images
        _, count, height, width = frames.shape
        shape = self._latent_shape((width, height), count)
        cut = len(pictures or ())
        sampling = sampling_of(shift, sample_solver, sampling_steps, guide_scale)
        return self._make_clip(
            [input_prompt, n_prompt or self.config.sample_neg_prompt],
            (shape[0], shape[1] + cut, *shape[2:]),
            seed,
            noise_device,
            {**sampling, "progress": progress},
            condition=lambda: {
                "vace_context": [self.encode_sources(frames, mask, pictures, offload_model)],
                "vace_context_scale": context_scale,
            },
            cut=cut,
            offload_model=offload_model,
            plan=plan,
            recorder=recorder,
        )

    def encode_sources(
        self,
        frames: Tensor,
        mask: Tensor,
        pictures: list[Tensor] | None,
        offload_model: bool | None = None,
    ) -> Tensor:
        """The context (96, pictures + f, h, w) of a clip; arguments as in `generate`.

        Channels 0-15 are the latent of the frames that stay, 16-31 of those that are to be made,
        both with grey (0) where the other has pixels, by the mask rounded to 0 and 1; 32-95 the
        mask itself, as officially not rounded (`mask_channels`). Every picture is a latent frame in
        front of these, with 0 in channels 16-95.
        """
        self.make_room(offload_model)
        made = (mask.to(self.device) > 0.5).float()
        frames = frames.to(self.device)
        latent = torch.cat([self.vae.encode(frames * part) for part in (1 - made, made)])
        del made, frames
        channels = mask_channels(mask[:1].to(latent), latent.shape[1])
        context = torch.cat((latent, channels))
        front = [self.vae.encode(picture.to(self.device)) for picture in pictures or ()]
        padded = [F.pad(z, (0, 0) * 3 + (0, len(context) - len(z))) for z in front]
        return torch.cat((*padded, context), dim=1)

    def _log_plan(self, plan: CachePlan, noise: Tensor) -> None:
        super()._log_plan(plan, noise)
        if plan.interval_sites:
            hints, blocks = len(self.model.vace_blocks), len(self.model.blocks)
            full = block_runs_full(plan) * (blocks + hints) / blocks
            runs = block_runs(plan) + hints * model_calls(plan)
            logger.info(
                f"the {hints} hint blocks run at every model call beside these: with them the "
                f"ideal speed-up is {full / runs:.2f}x"
            )


PIPELINES: dict[str, type[WanT2V]] = {
    "t2v": WanT2V,
    "i2v": WanI2V,
    "flf2v": WanFLF2V,
    "vace": WanVace,
}

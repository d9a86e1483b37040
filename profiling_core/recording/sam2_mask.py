"""Foreground by SAM 2: transformers' Sam2Model on the prediction's principal components as RGB.

Transformers' own preparation of images needs torchvision, so it is done here: every frame is
resized to the model's square, normalised like ImageNet images, and segmented on its own.

The prompt of a frame comes from `pca_mask.saliency`, which is positive on the more compact side of
the best Otsu split. The positive point is the strongest foreground token after averaging over its
3 x 3 neighbours, so that a lone outlier does not win. The negative point is the token farthest from
it within the quarter of least saliency. A frame without foreground tokens has an empty mask.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from profiling_core.errors import ProfileError
from profiling_core.files import PLAIN_TYPES, stand_in
from profiling_core.recording.pca_mask import saliency

MODEL_TYPES = ("sam2", "sam2_video")  # only the image part of the latter is used
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYOUT = (
    "expected a folder in transformers' layout: config.json with model_type sam2 or sam2_video and "
    "model.safetensors, as `hf download facebook/sam2.1-hiera-large --local-dir FOLDER` makes it, "
    "or save_pretrained of a Sam2Model"
)


@torch.no_grad()
def sam2_mask(rgb: Tensor, folder: str | Path, grid: tuple[int, int, int]) -> Tensor:
    """Foreground tokens (f, h, w of `grid`, bool) of rgb (f, H, W, 3) uint8, as `to_rgb` makes it.

    `folder` holds the weights; ProfileError names what is missing there.
    """
    model = _load(str(Path(folder).resolve()), rgb.device)
    frames = rgb.permute(3, 0, 1, 2).float()  # (3, f, H, W)
    shown = saliency(frames, grid)
    mask = torch.zeros(grid, dtype=torch.bool, device=rgb.device)
    with torch.autocast(rgb.device.type, enabled=False):  # not in the caller's bf16
        for frame in range(grid[0]):
            if (shown[frame] > 0).any():
                mask[frame] = _segment(model, frames[:, frame], shown[frame])
    return mask


def prompt_points(shown: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Positive and negative prompt token (row, column) of one frame's saliency (h, w)."""
    around = F.avg_pool2d(shown[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    strongest = torch.where(shown > 0, around, float("-inf")).argmax()
    row, column = divmod(int(strongest), shown.shape[1])
    rows = torch.arange(shown.shape[0], device=shown.device)[:, None]
    columns = torch.arange(shown.shape[1], device=shown.device)
    distance = (rows - row).square() + (columns - column).square()
    quiet = shown <= shown.flatten().kthvalue(max(1, shown.numel() // 4)).values
    farthest = torch.where(quiet, distance, -1).argmax()
    return (row, column), divmod(int(farthest), shown.shape[1])


def _segment(model: Any, frame: Tensor, shown: Tensor) -> Tensor:
    """Foreground tokens (h, w) of one frame (3, H, W) in 0..255."""
    rows, columns = map(int, model.config.vision_config.backbone_config.image_size)
    image = F.interpolate(frame[None] / 255, (rows, columns), mode="bilinear", antialias=True)
    mean, std = (image.new_tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    height, width = shown.shape
    points = [  # x, y in pixels; the model adds half a pixel
        [(column + 0.5) * columns / width - 0.5, (row + 0.5) * rows / height - 0.5]
        for row, column in prompt_points(shown)
    ]
    output = model(
        pixel_values=(image - mean) / std,
        input_points=image.new_tensor(points)[None, None],  # (1, 1, 2, 2)
        input_labels=torch.tensor([[[1, 0]]], device=image.device),
    )
    best = int(output.iou_scores[0, 0].argmax())
    logits = output.pred_masks[0, 0, best][None, None].float()
    inside = F.interpolate(logits, (rows, columns), mode="bilinear") > 0
    return F.adaptive_avg_pool2d(inside.float(), (height, width))[0, 0] >= 0.5


@lru_cache(maxsize=1)  # called at every attention step
def _load(folder: str, device: torch.device) -> Any:
    """The model in fp32; ProfileError when the folder does not hold all of it."""
    check_weights(Path(folder))
    try:
        from transformers import Sam2Model
    except ImportError as error:
        raise ProfileError(f"masks by sam2 need transformers with Sam2Model: {error}") from None
    try:
        loaded: Any = Sam2Model.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = stand_in(Path(folder) / "model.safetensors") or error
        raise ProfileError(f"SAM 2 weights {folder}: {reason}; {LAYOUT}") from error
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        coded = {str(file.get_slice(name).get_dtype()) for name in file.keys()} - PLAIN_TYPES
    if coded:
        raise ProfileError(f"SAM 2 weights {folder}: {coded.pop()} needs scales; {LAYOUT}")
    model, report = loaded
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise ProfileError(
            f"SAM 2 weights {folder}: {len(missing)} tensors are missing or of another size, "
            f"{missing[0]} first; {LAYOUT}"
        )
    return model.to(device).eval().requires_grad_(False)


def check_weights(folder: Path) -> None:
    """ProfileError unless a folder of SAM 2's weights is there."""
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ProfileError(f"SAM 2 weights {folder}: no {name} there; {LAYOUT}")
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError):
        found = None
    if found not in MODEL_TYPES:
        raise ProfileError(f"SAM 2 weights {folder}: model_type {found!r}; {LAYOUT}")

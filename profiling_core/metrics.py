"""Quality of a clip against the full run of the same model, seed and prompt.

The videos are decoded and not yet compressed: arrays or CPU tensors (3, F, H, W) in [-1, 1],
measured on [0, 1]. Definitions differ between papers by decibels, so each is named:

psnr_frames   mean over frames of the frame's PSNR, capped at 100 dB (TeaCache, MagCache)
psnr_pooled   one PSNR of the squared error pooled over the clip (EasyCache); never above the other
ssim          scikit-image's structural_similarity, Gaussian window 11 x 11 (sigma 1.5), colour
              channels averaged, mean over frames
latent_error  ||latent - reference|| / ||reference||, before decoding
motion        energy of frame differences over the reference's: 1 keeps the motion, below 1 loses it
flicker       mean absolute second difference in time over the reference's
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MOST_DECIBELS = 100.0


@dataclass(frozen=True)
class Quality:
    """Metrics of one clip against its reference."""

    psnr_frames: float
    psnr_pooled: float
    ssim: float
    motion: float
    flicker: float

    def as_row(self) -> dict[str, float]:
        return asdict(self)


def compare(video: Any, reference: Any) -> Quality:
    """All video metrics of (3, F, H, W) in [-1, 1]; ValueError when the shapes differ."""
    video, reference = _unit_range(video), _unit_range(reference)
    if video.shape != reference.shape:
        raise ValueError(f"videos of shape {video.shape} and {reference.shape} cannot be compared")
    errors = (video - reference) ** 2
    return Quality(
        psnr_frames=_mean_decibels(errors),
        psnr_pooled=_decibels(errors.mean()),
        ssim=ssim(video, reference),
        motion=_ratio(_motion_energy(video), _motion_energy(reference)),
        flicker=_ratio(_second_difference(video), _second_difference(reference)),
    )


def psnr(video: Any, reference: Any) -> float:
    """psnr_frames alone, of (3, F, H, W) in [-1, 1]."""
    return _mean_decibels((_unit_range(video) - _unit_range(reference)) ** 2)


def ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Mean SSIM over frames; arrays (3, F, H, W) in [0, 1], at least 11 pixels a side."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        install = 'pip install "profiling-dit[report]"'
        raise ImportError(f"SSIM needs scikit-image: {install}") from error
    values = [
        structural_similarity(
            video[:, frame],
            reference[:, frame],
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for frame in range(video.shape[1])
    ]
    return float(np.mean(values))


def latent_error(latent: Any, reference: Any) -> float:
    """Relative L2 distance of two latents of equal shape."""
    latent, reference = np.asarray(latent, np.float64), np.asarray(reference, np.float64)
    if latent.shape != reference.shape:
        raise ValueError(f"latents of shape {latent.shape} and {reference.shape} differ")
    return float(np.linalg.norm(latent - reference) / np.linalg.norm(reference))


def _unit_range(video: Any) -> np.ndarray:
    array = np.asarray(video, np.float64)
    if array.ndim != 4 or array.shape[0] != 3:
        raise ValueError(f"expected a video (3, F, H, W), found shape {array.shape}")
    return (array.clip(-1, 1) + 1) / 2


def _mean_decibels(errors: np.ndarray) -> float:
    return float(np.mean([_decibels(error) for error in errors.mean(axis=(0, 2, 3))]))


def _decibels(squared_error: float) -> float:
    if squared_error <= 10 ** (-MOST_DECIBELS / 10):
        return MOST_DECIBELS
    return float(-10 * np.log10(squared_error))


def _motion_energy(video: np.ndarray) -> float:
    return float((np.diff(video, axis=1) ** 2).mean()) if video.shape[1] > 1 else 0.0


def _second_difference(video: np.ndarray) -> float:
    return float(np.abs(np.diff(video, n=2, axis=1)).mean()) if video.shape[1] > 2 else 0.0


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else (1.0 if value == 0 else float("inf"))

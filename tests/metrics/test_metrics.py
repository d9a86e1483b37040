"""Metrics against values worked out by hand and against scikit-image."""

import sys

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from profiling_core.metrics import compare, latent_error, ssim


def clip(frames=5, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (3, frames, 16, 16))


def test_equal_clips_score_the_cap_and_ones():
    quality = compare(clip(), torch.from_numpy(clip()))
    assert quality.as_row() == {
        "psnr_frames": 100.0,
        "psnr_pooled": 100.0,
        "ssim": pytest.approx(1.0),
        "motion": 1.0,
        "flicker": 1.0,
    }


def test_constant_error_of_a_tenth_is_twenty_decibels():
    reference = np.zeros((3, 4, 16, 16))
    quality = compare(reference + 0.2, reference)  # 0.2 of [-1, 1] is 0.1 of [0, 1]
    assert quality.psnr_frames == pytest.approx(20) and quality.psnr_pooled == pytest.approx(20)


def test_pooled_is_below_the_frame_mean_and_both_agree_with_scikit_image():
    reference, video = clip(), clip()
    video[:, 2] *= 0.5
    quality = compare(video, reference)
    a, b = (video + 1) / 2, (reference + 1) / 2
    pooled = peak_signal_noise_ratio(b, a, data_range=1.0)
    assert quality.psnr_pooled == pytest.approx(pooled)
    assert quality.psnr_pooled < quality.psnr_frames


def test_frozen_clip_has_no_motion():
    reference = clip()
    frozen = np.repeat(reference[:, :1], 5, axis=1)
    assert compare(frozen, reference).motion == 0
    assert compare(frozen, frozen).motion == 1


def test_latent_error_is_relative():
    latent = np.ones((2, 3))
    assert latent_error(latent * 1.1, latent) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("video", "text"),
    [(np.zeros((3, 4, 16, 15)), "cannot be compared"), (np.zeros((4, 16, 16)), "expected a video")],
)
def test_wrong_shapes_are_named(video, text):
    with pytest.raises(ValueError, match=text):
        compare(video, np.zeros((3, 4, 16, 16)))


def test_without_scikit_image_ssim_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(ImportError, match=r'scikit-image: pip install "profiling-dit\[report\]"$'):
        ssim(np.zeros((3, 1, 16, 16)), np.zeros((3, 1, 16, 16)))

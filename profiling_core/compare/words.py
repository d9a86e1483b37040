"""What the figures of a comparison mean, in the words of both the table and the page."""

from __future__ import annotations

MEANINGS = {
    "psnr_frames": "mean over frames of a frame's PSNR against the same frame of the full run, "
    "each capped at 100 dB",
    "psnr_pooled": "one PSNR of the squared error of the whole clip against the full run",
    "ssim": "mean over frames against the full run (scikit-image, Gaussian window of 11 pixels, "
    "sigma 1.5)",
    "lpips": "mean over frames against the full run (AlexNet, version 0.1, heads averaged over "
    "space)",
    "latent_error": "distance of the final latent from the full run's, over the length of that one",
    "motion": "energy of frame differences over the full run's: below 1 motion is lost",
    "flicker": "mean second difference in time over the full run's",
}
LATENCY = (
    "median seconds of the denoising loop, encoding and decoding left out, after a warm-up run"
)
SPEEDUP = (
    "median over clips of a full run's seconds over the plan's, both of one process: the full run "
    "of the same clip where that process took it, else the median of its full runs"
)
IDEAL = "block FLOPs of a full run over the plan's: what the blocks alone would allow"
HELD = "bytes of stored anchors at the worst moment"
SPREAD = "mean ± standard deviation over clips, in brackets the worst clip"
TENSORS = (
    "Every plan is compared with the full run of the same model, prompt, seed and settings, on "
    "tensors before any codec. A full run is no ground truth: another good clip would score badly."
)

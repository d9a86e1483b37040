"""foreground: masks on made signals, on drawn clips and from files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.filters import threshold_otsu
from torch import Tensor
from torch.nn import functional as F

from miniatures.clips import draw, parse
from profiling_core.errors import ProfileError
from profiling_core.recording.foreground import file_mask, foreground_mask, motion_mask
from profiling_core.recording.pca_mask import (
    looseness,
    otsu,
    pca_mask,
    principal_components,
    saliency,
    to_rgb,
)

GRID = (5, 16, 20)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def overlap(mask: Tensor, truth: Tensor) -> float:
    """Intersection over union."""
    return float((mask & truth).sum() / (mask | truth).sum())


def moving_region(shape: str) -> Tensor:
    """A square or disc, a few tokens wide, that moves one or two tokens a frame."""
    frames, rows, columns = GRID
    region = torch.zeros(GRID, dtype=torch.bool)
    for frame in range(frames):
        y = torch.arange(rows)[:, None] - (5 + frame)
        x = torch.arange(columns) - (5 + 2 * frame)
        near = torch.maximum(y.abs(), x.abs()) if shape == "square" else (y**2 + x**2).sqrt()
        region[frame] = near <= 2.5 + (shape == "disc")
    return region


def texture(kind: str) -> Tensor:
    """A background in -1..1."""
    frames, rows, columns = GRID
    x = torch.arange(columns, dtype=torch.float32).expand(rows, columns)
    y = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, columns)
    drawn = {
        "stripes": torch.where((x + y) % 6 < 3, 1.0, -1.0),
        "gradient": 2 * x / (columns - 1) - 1,
        "steep gradient": 2 * (2 * y / (rows - 1) - 1),
    }[kind]
    return drawn.expand(frames, rows, columns)


def mixed(parts: Tensor, noise: float, seed: int, channels: int = 16) -> Tensor:
    """Parts (n, f, h, w) mixed into channels of unit variance at 2 x 2 positions a token, plus
    white noise of the given variance."""
    mixture = torch.randn(channels, len(parts), generator=seeded(seed))
    signal = torch.einsum("cn,nfhw->cfhw", mixture, parts - parts.mean((1, 2, 3), keepdim=True))
    signal = signal / signal.std(dim=(1, 2, 3), keepdim=True)
    signal = signal.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return signal + noise**0.5 * torch.randn(signal.shape, generator=seeded(seed + 1))


# -- principal components


def test_components_are_those_of_the_covariance() -> None:
    signal = mixed(torch.randn(4, *GRID, generator=seeded(0)), 0.1, seed=1, channels=6)
    components = principal_components(signal, 3).double().flatten(1)
    covariance = components @ components.T / components.shape[1]
    values = torch.linalg.eigvalsh(torch.cov(signal.double().flatten(1), correction=0))
    torch.testing.assert_close(covariance, torch.diag(values.flip(0)[:3]), atol=1e-5, rtol=1e-5)


def test_component_signs_do_not_depend_on_the_order_of_positions() -> None:
    signal = mixed(torch.randn(3, *GRID, generator=seeded(0)), 0.5, seed=1)
    flipped = principal_components(signal.flip(2, 3)).flip(2, 3)
    torch.testing.assert_close(principal_components(signal), flipped, atol=1e-4, rtol=1e-4)


def test_colours_span_the_range_of_each_component() -> None:
    components = torch.stack([s * torch.randn(*GRID, generator=seeded(s)) for s in (1, 2, 9)])
    components[2] = 4.0
    rgb = to_rgb(components)
    assert rgb.shape == (*GRID, 3) and rgb.dtype == torch.uint8
    for channel in (0, 1):
        assert (rgb[..., channel] == 0).float().mean() == pytest.approx(0.01, abs=0.006)
        assert (rgb[..., channel] == 255).float().mean() == pytest.approx(0.01, abs=0.006)
    assert (rgb[..., 2] == 127).all()


def test_too_few_channels_are_refused() -> None:
    with pytest.raises(ProfileError, match=r"\(2, 5, 16, 20\) has no 3 principal components"):
        principal_components(torch.randn(2, *GRID))


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (torch.full((4, *GRID), float("nan")), "NaN or infinity"),
        (torch.zeros(4, 5, 17, 20), r"\(4, 5, 17, 20\) on a grid of \(5, 16, 20\)"),
    ],
)
def test_signals_that_cannot_be_split_are_refused(signal: Tensor, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        pca_mask(signal, GRID)


# -- pca


@pytest.mark.parametrize("sign", [1, -1], ids=["brighter", "darker"])
@pytest.mark.parametrize("kind", ["stripes", "gradient", "steep gradient"])
@pytest.mark.parametrize("shape", ["square", "disc"])
def test_a_moving_shape_is_found_under_noise(shape: str, kind: str, sign: int) -> None:
    region = moving_region(shape)
    background = torch.where(region, 0.0, texture(kind))
    for seed in range(3):
        signal = mixed(torch.stack([background, 3.0 * sign * region]), noise=1.0, seed=10 * seed)
        mask = pca_mask(signal, GRID)
        assert mask.shape == GRID and mask.dtype == torch.bool
        assert overlap(mask, region) > 0.6


@pytest.mark.parametrize("sign", [1, -1])
def test_the_subject_is_the_compact_side_whatever_its_sign(sign: int) -> None:
    region = moving_region("disc")
    signal = sign * torch.stack([region.float()] * 3)
    assert torch.equal(pca_mask(signal, GRID), region)
    assert (saliency(signal, GRID)[region] > 0).all()


def test_a_constant_signal_has_no_foreground() -> None:
    assert not pca_mask(torch.full((4, *GRID), 0.3), GRID).any()


def test_looseness_tells_subject_from_texture_and_surroundings() -> None:
    region = moving_region("disc")
    halves = texture("gradient") > 0
    assert looseness(region) < 0.2 < 0.8 < looseness(halves) < 1.4
    assert min(looseness(~region), looseness(texture("stripes") > 0)) > 1.4
    assert looseness(torch.zeros(GRID, dtype=torch.bool)) == float("inf")


@pytest.mark.parametrize("seed", range(6))
def test_otsu_is_that_of_scikit_image_to_the_bit(seed: int) -> None:
    draw = seeded(seed)
    values = torch.randn(700, generator=draw, dtype=(torch.float32, torch.float64)[seed % 2])
    values[:200] += 2.0 * seed
    assert otsu(values) == float(threshold_otsu(values.numpy()))


def test_otsu_of_constant_values_leaves_nothing_above() -> None:
    assert otsu(torch.full((10,), 2.5)) == 2.5
    assert 0 < otsu(torch.tensor([0.0, 0.1, 5.0, 5.1])) < 5


# -- drawn clips

CLIP_GRID = (9, 16, 16)  # 33 frames of 128 x 128
PROMPTS = (
    "red circle moving right over blue stripes",
    "yellow square orbiting over green gradient",
    "white star moving down over purple noise",
)


def drawn(prompt: str, seed: int) -> tuple[Tensor, Tensor]:
    """Clip (3, F, H, W) in 0..1, and the tokens that its shape covers.

    The shape is where a second drawing differs, with the same dice and another colour.
    """
    scene = parse(prompt)
    actor = scene.actors[0]
    repainted = replace(actor, colour="cyan" if actor.colour != "cyan" else "red")
    frames = draw(scene, np.random.default_rng(seed)).frames
    others = draw(replace(scene, actors=(repainted,)), np.random.default_rng(seed)).frames
    region = torch.from_numpy((frames != others).any(axis=-1)).float()
    return torch.from_numpy(frames).permute(3, 0, 1, 2) / 255, latent(region[None], 16)[0] >= 0.5


def latent(video: Tensor, size: int) -> Tensor:
    """What a causal VAE would see of (C, 33, 128, 128): one frame, then four each, pooled."""
    parts = [video[:, :1], *video[:, 1:].split(4, dim=1)]
    pooled = [F.adaptive_avg_pool3d(part[None], (1, size, size))[0] for part in parts]
    return torch.cat(pooled, dim=1)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_shape_of_a_drawn_clip_is_found_in_noisy_channels(prompt: str) -> None:
    video, region = drawn(prompt, seed=3)
    signal = mixed(latent(video, 16), noise=1.0, seed=5)
    assert overlap(pca_mask(signal, CLIP_GRID), region) > 0.6


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_moving_part_of_a_drawn_clip_is_its_shape(prompt: str) -> None:
    video, region = drawn(prompt, seed=3)
    mask = motion_mask(video, CLIP_GRID)
    assert mask.shape == CLIP_GRID and overlap(mask, region) > 0.5
    assert torch.equal(motion_mask(200 * video - 100, CLIP_GRID), mask)  # any range


def test_a_still_clip_has_no_moving_part() -> None:
    assert not motion_mask(torch.rand(3, 1, 8, 8).expand(3, 9, 8, 8), (3, 4, 4)).any()


def test_motion_follows_frames_of_any_number() -> None:
    video = torch.zeros(3, 12, 8, 8)
    for frame in range(12):
        video[:, frame, :, 2 * (frame // 3) : 2 * (frame // 3) + 2] = 1  # a bar, four places
    mask = motion_mask(video, (4, 2, 4))
    assert torch.equal(mask, torch.eye(4, dtype=torch.bool)[:, None].expand(4, 2, 4))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 1, 8, 8), "at least 3 frames"), ((3, 9, 9, 8), "9 x 8 pixels on 4 x 4 tokens")],
)
def test_clips_without_motion_or_off_the_grid_are_refused(shape: tuple, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        motion_mask(torch.zeros(shape), (3, 4, 4))


# -- files

FILE_GRID = (3, 2, 4)


def saved(folder: Path, array: np.ndarray) -> Path:
    path = folder / "masks.npy"
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    "dtype_and_full", [("bool", 1), ("uint8", 1), ("uint8", 255), ("float32", 1), ("int64", 1)]
)
@pytest.mark.parametrize(
    "shape", [(3, 2, 4), (3, 4, 8), (9, 6, 16)], ids=["grid", "latent", "clip"]
)
def test_masks_of_every_size_and_type(
    tmp_path: Path, shape: tuple[int, int, int], dtype_and_full: tuple[str, int]
) -> None:
    dtype, full = dtype_and_full
    mask = np.zeros(shape, dtype)
    mask[1:, : shape[1] // 2, shape[2] // 2 :] = full  # from the second frame on
    found = file_mask(saved(tmp_path, mask), 0, FILE_GRID)
    expected = np.zeros(FILE_GRID, bool)
    expected[1:, :1, 2:] = True
    assert found.numpy().tolist() == expected.tolist()


def test_a_token_is_foreground_from_half_of_its_area_on(tmp_path: Path) -> None:
    mask = np.zeros((9, 6, 12), bool)
    mask[1:3, :3, :3] = True  # two of four frames
    mask[5:7, :3, 3:6] = True
    mask[6, 0, 3] = False  # a pixel less
    found = file_mask(saved(tmp_path, mask), 0, FILE_GRID)
    assert torch.nonzero(found).tolist() == [[1, 0, 0]]


def test_each_run_takes_its_own_mask(tmp_path: Path) -> None:
    masks = np.zeros((2, *FILE_GRID), bool)
    masks[1] = True
    path = saved(tmp_path, masks)
    assert not file_mask(path, 0, FILE_GRID).any() and file_mask(path, 1, FILE_GRID).all()
    with pytest.raises(ProfileError, match="holds 2 runs, counted from 0; no run 2"):
        file_mask(path, 2, FILE_GRID)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 2, 4)), "found 4 frames of 2 x 4, expected 3 or 9 frames of a multiple of"),
        (np.zeros((2, 4)), r"found \(2, 4\), expected \(frames, rows, columns\)"),
        (np.full(FILE_GRID, np.nan), "values from nan"),
        (np.full(FILE_GRID, "x"), "dtype <U1"),
        (np.full(FILE_GRID, None), "Python objects"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        file_mask(saved(tmp_path, array), 0, FILE_GRID)


def test_missing_damaged_and_empty_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="No such file"):
        file_mask(tmp_path / "none.npy", 0, FILE_GRID)
    whole = saved(tmp_path, np.zeros(FILE_GRID)).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:140])
    with pytest.raises(ProfileError, match=r"cut.npy.*expected a .npy file or a folder of PNG"):
        file_mask(tmp_path / "cut.npy", 0, FILE_GRID)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ProfileError, match=r"no .png file"):
        file_mask(tmp_path / "folder", 0, FILE_GRID)


def test_png_frames_in_the_order_of_their_names(tmp_path: Path) -> None:
    for frame in range(9):
        image = np.zeros((4, 8), np.uint8)
        image[:, frame // 4 * 2 :] = 255
        Image.fromarray(image).save(tmp_path / f"{frame:03}.png")
    found = file_mask(tmp_path, 0, FILE_GRID)
    assert found[0].all() and found[2].tolist() == [[False, True, True, True]] * 2
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "009.png")
    with pytest.raises(ProfileError, match=r"009.png: found 4 x 4, expected 4 x 8"):
        file_mask(tmp_path, 0, FILE_GRID)
    (tmp_path / "000.png").write_bytes(b"no image")
    with pytest.raises(ProfileError, match=r"000.png.*expected a PNG image"):
        file_mask(tmp_path, 0, FILE_GRID)


# -- choice


def test_each_kind_reaches_its_mask(tmp_path: Path) -> None:
    region = moving_region("disc")
    signal = mixed(region[None].float(), noise=0.2, seed=0)
    path = saved(tmp_path, region.numpy())
    video = region[None].float().expand(3, *GRID)
    assert torch.equal(foreground_mask("pca", grid=GRID, signal=signal), pca_mask(signal, GRID))
    assert torch.equal(foreground_mask("motion", grid=GRID, video=video), motion_mask(video, GRID))
    assert torch.equal(foreground_mask("file", grid=GRID, path=path), region)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pca", "by pca needs a prediction"),
        ("file", "by file needs the path of the masks"),
        ("depth", "'depth': expected pca, sam2, motion or file"),
    ],
)
def test_what_a_kind_needs_is_named(kind: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        foreground_mask(kind, grid=GRID)

"""sam2: masks through a tiny random SAM 2, and folders that hold none."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from profiling_core.errors import ProfileError
from profiling_core.recording.foreground import foreground_mask
from profiling_core.recording.sam2_mask import prompt_points, sam2_mask


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


STAGES = [8, 16, 32, 64]
SAM_GRID = (2, 8, 10)


def tiny_parts() -> dict[str, dict]:
    """Sizes of a SAM 2 that takes 128 x 128 pixels."""
    backbone = {
        "hidden_size": STAGES[0],
        "image_size": [128, 128],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": STAGES,
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [3],
    }
    return {
        "vision_config": {
            "backbone_config": {"model_type": "sam2_hiera_det_model", **backbone},
            "backbone_channel_list": STAGES[::-1],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 32,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 128},
        "mask_decoder_config": {
            "hidden_size": 32,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
        },
    }


@pytest.fixture(scope="module")
def sam2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Sam2Config, Sam2Model

    folder = tmp_path_factory.mktemp("sam2")
    torch.manual_seed(0)
    Sam2Model(Sam2Config(**tiny_parts())).save_pretrained(folder)
    return folder


def shown_frames() -> Tensor:
    """A dark disc on a noisy gradient, 4 positions a token: rgb (2, 32, 40, 3) uint8."""
    frames, rows, columns = 2, 32, 40
    y, x = torch.arange(rows)[:, None], torch.arange(columns)
    level = 120 + 2.0 * x + torch.zeros(frames, rows, 1)
    for frame in range(frames):
        level[frame][(y - 10) ** 2 + (x - 14 - 12 * frame) ** 2 < 50] = 10.0
    noise = 5 * torch.randn(3, frames, rows, columns, generator=seeded(2))
    return (level + noise).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)


def test_sam2_runs_from_a_folder_and_repeats_itself(sam2_folder: Path) -> None:
    first, again = (sam2_mask(shown_frames(), sam2_folder, SAM_GRID) for _ in range(2))
    assert first.shape == SAM_GRID and first.dtype == torch.bool
    assert torch.equal(first, again)


def test_sam2_computes_in_fp32_inside_an_autocast_region(
    sam2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Sam2Model

    scores, plain = [], Sam2Model.forward

    def forward(self: Sam2Model, **given: Tensor) -> object:
        output = plain(self, **given)
        scores.append(output.pred_masks)
        return output

    monkeypatch.setattr(Sam2Model, "forward", forward)
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sam2_mask(shown_frames(), sam2_folder, SAM_GRID)
    frames = SAM_GRID[0]
    assert len(scores) == 2 * frames
    for outside, inside in zip(scores[:frames], scores[frames:], strict=True):
        assert torch.equal(outside, inside)


def test_sam2_is_asked_at_the_subject_and_its_best_mask_taken(
    sam2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Sam2Model

    asked = []

    def answer(self: Sam2Model, **given: Tensor) -> object:
        asked.append(given)
        masks = torch.full((1, 1, 3, 32, 32), -1.0)
        masks[0, 0, 1, :16] = 1.0  # the upper half
        masks[0, 0, 2] = 1.0
        scores = torch.tensor([[[0.2, 0.9, 0.5]]])
        return type("Output", (), {"pred_masks": masks, "iou_scores": scores})

    monkeypatch.setattr(Sam2Model, "forward", answer)
    mask = sam2_mask(shown_frames(), sam2_folder, SAM_GRID)
    assert mask[:, :4].all() and not mask[:, 4:].any()
    for frame, given in enumerate(asked):
        assert given["pixel_values"].shape == (1, 3, 128, 128)
        assert given["input_labels"].tolist() == [[[1, 0]]]
        positive, negative = given["input_points"][0, 0]
        centre = torch.tensor([(14.5 + 12 * frame) * 128 / 40, 10.5 * 128 / 32])  # x, y
        assert (positive - centre).norm() < 16  # a token is 12.8 x 16 pixels
        assert (negative - centre).norm() > 40
    assert len(asked) == 2
    white = torch.tensor([255.0, 255.0, 255.0]) / 255
    bound = (white - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert (asked[0]["pixel_values"].amax((0, 2, 3)) <= bound).all()


def test_prompt_points_are_not_lone_outliers() -> None:
    shown = torch.full((8, 10), -1.0)
    shown[1:4, 1:4] = 1.0
    shown[6, 8] = 3.0
    assert prompt_points(shown)[0] == (2, 2)
    shown[0, 9] = shown[7, 0] = -5.0
    shown[1:, 9] = shown[0, 4:9] = -2.0
    assert prompt_points(shown)[1] == (7, 9)


def in_eight_bits(file: Path) -> None:
    eight = {name: t.to(torch.float8_e4m3fn) for name, t in load_file(file).items()}
    save_file(eight, file, {"format": "pt"})


def test_a_video_checkpoint_serves_by_its_image_part(tmp_path: Path, sam2_folder: Path) -> None:
    from transformers import Sam2VideoConfig, Sam2VideoModel

    names = ("memory_attention_hidden_size", "memory_encoder_hidden_size")
    names += ("memory_fuser_embed_dim", "mask_downsampler_embed_dim")
    sizes = dict.fromkeys(names, 32) | {"memory_encoder_output_channels": 16}
    config = Sam2VideoConfig(**tiny_parts(), **sizes, image_size=128)
    Sam2VideoModel(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam2_video"
    assert sam2_mask(shown_frames(), tmp_path, SAM_GRID).shape == SAM_GRID


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors there"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type None"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "Sam2Model"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs/"),
            "is a git-lfs pointer",
        ),
        (lambda folder: in_eight_bits(folder / "model.safetensors"), "F8_E4M3 needs scales"),
    ],
)
def test_folders_that_hold_no_sam2_are_refused(
    tmp_path: Path, sam2_folder: Path, change: object, message: str
) -> None:
    for file in sam2_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change(tmp_path)
    with pytest.raises(ProfileError, match=message) as error:
        sam2_mask(shown_frames(), tmp_path, SAM_GRID)
    assert "config.json with model_type sam2" in str(error.value)


def test_weights_that_lack_tensors_are_refused(tmp_path: Path, sam2_folder: Path) -> None:
    tensors = load_file(sam2_folder / "model.safetensors")
    del tensors["no_memory_embedding"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((sam2_folder / "config.json").read_bytes())
    with pytest.raises(ProfileError, match=r"1 tensors are missing.*no_memory_embedding first"):
        sam2_mask(shown_frames(), tmp_path, SAM_GRID)


def test_the_kind_reaches_its_mask(sam2_folder: Path) -> None:
    signal = torch.randn(16, 2, 16, 20, generator=seeded(0))
    mask = foreground_mask("sam2", grid=SAM_GRID, signal=signal, path=sam2_folder)
    assert mask.shape == SAM_GRID and mask.dtype == torch.bool

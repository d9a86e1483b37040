"""What only Wan2.1 has of files; tests/trees holds what both trees share."""

from pathlib import Path

import pytest
import torch

from profiling_core.errors import InputError
from wan.video import check_target, to_image


def test_images_are_rounded() -> None:
    grey = 2 * 100.9 / 255 - 1
    clip = torch.tensor([grey, -1.0, 1.0, -3.0, 3.0]).expand(3, 1, 2, 5)
    assert to_image(clip)[0, :, 0].tolist() == [101, 0, 255, 0, 255]


def test_an_image_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"end its name in one of \.png"):
        check_target(tmp_path / "still.mp4", still=True)

"""Fixtures: checkpoint folders of tiny models; lib/ makes them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hunyuan_toys import write_checkpoint as write_hunyuan_checkpoint
from wan_toys import write_checkpoint

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder that no test may change."""
    return write_checkpoint(tmp_path_factory.mktemp("Wan2.1-tiny"))


@pytest.fixture
def new_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny checkpoint folder of this test's own."""
    return lambda **options: write_checkpoint(tmp_path / "ckpt", **options)


@pytest.fixture(scope="session")
def hunyuan_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny HunyuanVideo checkpoint folder that no test may change."""
    return write_hunyuan_checkpoint(tmp_path_factory.mktemp("HYVideo-tiny"))


@pytest.fixture
def new_hunyuan_checkpoint(hunyuan_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of it of this test's own."""
    return shutil.copytree(hunyuan_checkpoint, tmp_path / "ckpts")

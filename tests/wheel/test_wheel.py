"""The wheel works with the core's packages alone; check_wheel.py does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from check_wheel import check

ASK = ["download", "--quiet", "--no-deps", "--no-cache-dir", "--retries", "0", "--timeout", "10"]


def index_answers(folder: Path) -> bool:
    """Whether pip can fetch a small package now."""
    command = [sys.executable, "-m", "pip", *ASK, "-d", str(folder), "safetensors"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.slow
def test_the_wheel_works_with_the_core_alone(tmp_path: Path) -> None:
    if not index_answers(tmp_path):
        pytest.skip("no package index answers, so there is nothing to install from")
    folder = tmp_path / "wheel"
    folder.mkdir()
    check(folder)

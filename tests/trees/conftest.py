"""Every test of this folder that takes `tree` holds for both trees."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tree_cases import TreeCase, hunyuan_case, official_setting, wan_case


@pytest.fixture(scope="module", params=["wan", "hunyuan"])
def tree(
    request: pytest.FixtureRequest, checkpoint: Path, hunyuan_checkpoint: Path
) -> Iterator[TreeCase]:
    cases = {"wan": (wan_case, checkpoint), "hunyuan": (hunyuan_case, hunyuan_checkpoint)}
    make, folder = cases[request.param]
    with official_setting():
        yield make(folder)

"""HunyuanVideo's tiny model under the name HYVideo-tiny."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tree_cases import TreeCase, hunyuan_case, official_setting


@pytest.fixture(scope="module")
def tree(hunyuan_checkpoint: Path) -> Iterator[TreeCase]:
    with official_setting():
        yield hunyuan_case(hunyuan_checkpoint)

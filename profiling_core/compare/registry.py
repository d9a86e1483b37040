"""The trees by name."""

from __future__ import annotations

from profiling_core.compare.hunyuan import HunyuanModel
from profiling_core.compare.model import TreeModel
from profiling_core.compare.wan import WanModel

TREES: dict[str, type[TreeModel]] = {"wan": WanModel, "hunyuan": HunyuanModel}


def tree_class(name: str) -> type[TreeModel]:
    """The tree's model behind the face that both trees have."""
    return TREES[name]

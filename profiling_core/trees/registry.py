"""The trees by name."""

from __future__ import annotations

from profiling_core.trees.hunyuan import HunyuanModel
from profiling_core.trees.tree_model import TreeModel
from profiling_core.trees.wan import WanModel

TREES: dict[str, type[TreeModel]] = {"wan": WanModel, "hunyuan": HunyuanModel}


def tree_class(name: str) -> type[TreeModel]:
    """The tree's model behind the face that both trees have."""
    return TREES[name]

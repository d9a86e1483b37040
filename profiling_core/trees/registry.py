"""The trees by name."""

from __future__ import annotations

from profiling_core.trees.hunyuan import HunyuanModel
from profiling_core.trees.tree_model import TreeModel
from profiling_core.trees.wan import WanModel

TREES: dict[str, type[TreeModel]] = {tree.name: tree for tree in (WanModel, HunyuanModel)}


def tree_class(name: str) -> type[TreeModel]:
    """The adapter of the tree of this name: "wan" or "hunyuan"."""
    return TREES[name]

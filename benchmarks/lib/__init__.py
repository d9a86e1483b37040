"""What the benchmarks share. Its import puts both trees on the path: the one place that does."""

from pathlib import Path

from profiling_core.trees.registry import TREES
from profiling_core.trees.tree_model import import_tree

ROOT = Path(__file__).resolve().parents[2]
for tree in TREES.values():
    import_tree(tree)

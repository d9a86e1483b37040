"""What the page offers: the tasks of both trees with their defaults; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from profiling_core.errors import CompareError
from profiling_core.plan.presets import available
from profiling_core.trees.registry import TREES
from profiling_core.trees.tree_model import ModelRequest, TreeModel


@dataclass(frozen=True)
class Task:
    """A model of a tree, and what its command line takes where nothing is given."""

    tree: str
    model: str
    label: str
    sizes: tuple[str, ...]  # the default first
    frames: int
    steps: int
    pictures: tuple[str, ...]  # that a clip needs
    plans: tuple[str, ...]
    ready: bool  # its weights are bundled, or lie where the tree looks for them


def find_tasks() -> list[Task]:
    """Those that run at once first."""
    found = [_task(tree, model) for tree in TREES.values() for model in tree.models()]
    return sorted(found, key=lambda task: not task.ready)


def _task(tree: type[TreeModel], name: str) -> Task:
    ready = True
    try:
        model = tree(ModelRequest(name), "a clip")
    except CompareError:  # no weights
        ready, model = False, tree(ModelRequest(name, ckpt_dir="."), "a clip", incomplete=True)
    return Task(
        tree.name,
        name,
        f"{tree.folder} {name}",
        model.sizes,
        model.clip_shape[0],
        model.steps,
        model.pictures,
        tuple(available(model.plan_model)),
        ready,
    )

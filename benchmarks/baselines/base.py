"""What the peers share: settings, the bill of a video, and the seam through which a rule runs.

Nothing of the model is changed. While a peer is attached, an entry of the model's instance dict
stands before its `forward`; while a call is under way, others stand before its block lists where
the rule skips blocks; hooks on the blocks count what really runs. All of it is gone afterwards,
exceptions included.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

import benchmarks.lib  # noqa: F401  (puts the trees on the path)

if TYPE_CHECKING:
    from benchmarks.lib.clips import Inputs, Tree

BLOCK_LISTS = {"wan": ("blocks",), "hunyuan": ("double_blocks", "single_blocks")}
# the order of the calls of one step: Wan's loop calls the model twice, HunyuanVideo's once
BRANCHES = {"wan": ("cond", "uncond"), "hunyuan": ("cond",)}

BlockLists = dict[str, list[nn.Module]]


@dataclass(frozen=True)
class Variant:
    """Settings of a peer other than its threshold."""

    label: str


@dataclass
class Spent:
    """What one video took: blocks counted by hooks, bytes of the tensors kept between calls."""

    list_runs: dict[str, int]  # block runs per block list
    list_runs_full: dict[str, int]  # of the same video without the peer
    model_calls: int = 0
    reused_calls: int = 0  # calls answered without the blocks that follow the decision
    bytes_held: int = 0  # the most between two calls

    @property
    def block_runs(self) -> int:
        return sum(self.list_runs.values())

    @property
    def block_runs_full(self) -> int:
        return sum(self.list_runs_full.values())

    def share(self) -> float:
        """Part of the block runs that ran."""
        return self.block_runs / self.block_runs_full


@dataclass(frozen=True)
class Call:
    """One call of the model: its position, its arguments by name, and `run`, which makes it."""

    step: int
    branch: str
    arguments: dict[str, Any]
    run: Callable[[], Any]


class Rule(ABC):
    """A peer's decisions during one video."""

    reused_calls = 0

    @abstractmethod
    def answer(self, call: Call) -> Any:
        """The model's output, computed or not."""

    @abstractmethod
    def held(self) -> Iterable[Tensor]:
        """The tensors kept for later calls."""

    def walks(self, lists: BlockLists) -> dict[str, list[Callable[..., Any]]]:
        """What the model walks over instead of a block list, by the list's name; none by default.

        The model has to find one callable where it expects the blocks, and takes what it returns.
        """
        return {}


class Peer(ABC):
    """A caching policy with a threshold, for one tree at a time."""

    name: ClassVar[str]
    thresholds: ClassVar[tuple[float, float]]  # `span` of all variants, where one fits all

    @abstractmethod
    def variants(self, tree: Tree) -> list[Variant]:
        """The settings worth trying on this tree."""

    def span(self, variant: Variant) -> tuple[float, float]:
        """Thresholds between which the speed-up grows, from all computed to all reused.

        Values measured on calibration prompts, with a margin where the rule looks at the data.
        """
        return self.thresholds

    def calibrate(self, tree: Tree, inputs: Sequence[Inputs], *, solver: str | None = None) -> None:
        """Full runs of calibration prompts; nothing for a rule that needs none.

        solver: of these runs, the tree's own by default.
        """
        return None

    @abstractmethod
    def rule(self, tree: Tree, variant: Variant, threshold: float) -> Rule:
        """The rule at the start of a video."""

    @contextmanager
    def attached(self, tree: Tree, variant: Variant, threshold: float) -> Iterator[Spent]:
        """Inside, one `tree.denoise` of tree.steps steps runs with the rule.

        ValueError for a negative threshold, a variant of another tree, a missing calibration, or a
        loop that does not call the model as often as tree.steps says. 0 computes everything.
        """
        if isnan(threshold) or threshold < 0:
            raise ValueError(f"{self.name}: threshold {threshold} is not a number from 0 on")
        if variant not in self.variants(tree):
            known = ", ".join(each.label for each in self.variants(tree))
            raise ValueError(f"{self.name} on {tree.name}: no variant {variant!r}; it has: {known}")
        with intercepted(tree, self.rule(tree, variant, threshold)) as spent:
            yield spent


@contextmanager
def intercepted(tree: Tree, rule: Rule) -> Iterator[Spent]:
    """One video of the tree, every model call of which the rule answers."""
    video = _Video(tree, rule)
    hooks = [
        block.register_forward_pre_hook(video.counter(name))
        for name, blocks in video.lists.items()
        for block in blocks
    ]
    try:
        with standing_before(video.model, {"forward": video.forward}):
            yield video.spent
    finally:
        for hook in hooks:
            hook.remove()
    video.check_complete()


@contextmanager
def standing_before(model: nn.Module, entries: dict[str, Any]) -> Iterator[None]:
    """Attributes in the instance dict, which Python looks up before class and submodules."""
    own = {name: model.__dict__[name] for name in entries if name in model.__dict__}
    model.__dict__.update(entries)
    try:
        yield
    finally:
        for name in entries:
            model.__dict__.pop(name, None)
        model.__dict__.update(own)


class _Video:
    """Counts the model's calls of one video, derives their positions and keeps the bill."""

    def __init__(self, tree: Tree, rule: Rule) -> None:
        self.model = model = tree.pipeline.model
        self.rule, self.steps, self.branches = rule, tree.steps, BRANCHES[tree.name]
        self.calls = self.steps * len(self.branches)
        self.plain_forward = model.forward
        self.signature = inspect.signature(self.plain_forward)
        self.lists = {name: list(getattr(model, name)) for name in BLOCK_LISTS[tree.name]}
        full = {name: self.calls * len(blocks) for name, blocks in self.lists.items()}
        self.spent = Spent(dict.fromkeys(self.lists, 0), full)
        self.walks = rule.walks(self.lists)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stands before the model's forward."""
        spent = self.spent
        if spent.model_calls == self.calls:
            raise ValueError(f"a peer is attached for one video of {self.steps} steps: attach anew")
        step, branch = divmod(spent.model_calls, len(self.branches))
        output = self.rule.answer(
            Call(
                step,
                self.branches[branch],
                dict(self.signature.bind(*args, **kwargs).arguments),
                lambda: self._run(args, kwargs),
            )
        )
        spent.model_calls += 1
        spent.reused_calls = self.rule.reused_calls
        spent.bytes_held = max(spent.bytes_held, storage_bytes(self.rule.held()))
        return output

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # only now: a pipeline that asks for the length of a list has to find the list
        with standing_before(self.model, self.walks):
            return self.plain_forward(*args, **kwargs)

    def counter(self, name: str) -> Callable[..., None]:
        """A pre-hook for the blocks of one list."""

        def count(block: nn.Module, args: tuple[Any, ...]) -> None:
            self.spent.list_runs[name] += 1

        return count

    def check_complete(self) -> None:
        if self.spent.model_calls != self.calls:
            raise ValueError(
                f"the loop called the model {self.spent.model_calls} times instead of "
                f"{self.calls}: a peer's rule is for a whole video of {self.steps} steps"
            )


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind tensors, each piece once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def relative_l1(now: Tensor, before: Tensor) -> float:
    """mean |now - before| / mean |before|; one read of the device."""
    return ((now - before).abs().mean() / before.abs().mean()).item()


def latent_of(value: Any) -> Tensor:
    """The one tensor of a model's latents or prediction: Wan has lists, HunyuanVideo a dict."""
    if isinstance(value, dict):
        return value["x"]
    if isinstance(value, list):
        (latent,) = value
        return latent
    return value


def as_prediction(form: type, tensor: Tensor) -> Any:
    """`tensor` in a model's form of a prediction, the type of an earlier one."""
    if issubclass(form, dict):
        return {"x": tensor}
    return [tensor] if issubclass(form, list) else tensor

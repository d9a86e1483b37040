"""A package's cache for one video: diffusers' transformer in our loop, and the bill of it.

`PackageRule` stands in the place of our model, so that our loop, scheduler, noise and guidance
drive whatever cache is enabled on diffusers' transformer; the blocks that run are counted beneath
the cache.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, ClassVar

from torch import Tensor, nn

from benchmarks.baselines.base import Call, Peer, Rule, Spent, Variant
from benchmarks.baselines.diffusers_models import LISTS, PARTS, Shares, convert
from benchmarks.lib.clips import Tree

WHOLE = {name: ("",) for name in LISTS}  # the block itself


class Meter:
    """Counts what runs of the blocks, in blocks per sample: beneath any cache, in their forwards.

    A block whose parts are counted apart runs in shares; they are known at the first call.
    """

    def __init__(
        self, lists: dict[str, list[nn.Module]], parts: dict[str, tuple[str, ...]]
    ) -> None:
        self.runs: dict[str, float] = dict.fromkeys(lists, 0)
        self.shares: Shares = {name: {"": 1} for name in lists}
        for name, blocks in lists.items():
            for block in blocks:
                for part in parts[name]:
                    self._count(name, part, block.get_submodule(part))

    @property
    def total(self) -> float:
        return sum(self.runs.values())

    def _count(self, name: str, part: str, module: nn.Module) -> None:
        plain = module.forward

        @wraps(plain)  # cache-dit reads the signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            tokens = args[0] if args else kwargs["hidden_states"]
            self.runs[name] += self.shares[name][part] * len(tokens)
            return plain(*args, **kwargs)

        module.forward = forward


class PackageRule(Rule):
    """One video through diffusers' transformer, each call in the cache context of its branch.

    in_parts: attention and feed-forward are counted apart, for caches that skip within a block.
    """

    samples = 1  # of the loop's calls in one call of the transformer

    def __init__(self, tree: Tree, in_parts: bool = False) -> None:
        self.converted, self.steps, self.in_parts = convert(tree), tree.steps, in_parts
        self.transformer = self.converted.transformer
        self.meter = Meter(self.converted.lists, PARTS if in_parts else WHOLE)
        self.call: Call | None = None

    @property
    def timestep(self) -> float:
        """Timestep of the call under way, 0 to 1000; reads the device."""
        return float(self.call.arguments["t"][0])

    def answer(self, call: Call) -> Any:
        return self.converted.in_our_form(self._predict(call, call.arguments))

    def held(self) -> Iterable[Tensor]:
        return tensors_in(self._package_state())

    def context(self, call: Call) -> AbstractContextManager:
        """Where a package learns which call this is."""
        return self.transformer.cache_context(call.branch)

    def watching(self, tree: Tree) -> AbstractContextManager:
        """A region in which the rule learns of the loop what single calls do not say."""
        return nullcontext()

    def _predict(self, call: Call, arguments: dict[str, Any]) -> Tensor:
        self.call, before = call, self.meter.total
        if self.in_parts and not before:
            self.meter.shares = self.converted.shares(arguments)
        with self.context(call):
            prediction = self.converted(arguments)
        full = self.samples * self.converted.depth
        if self.meter.total - before < full - 1e-6:  # shares are rounded
            self.reused_calls += self.samples
        return prediction

    def _package_state(self) -> list[Any]:
        hooks = [
            hook
            for module in self.transformer.modules()
            if hasattr(module, "_diffusers_hook")
            for hook in module._diffusers_hook.hooks.values()
        ]
        states = [vars(hook).get(name) for hook in hooks for name in ("state", "state_manager")]
        return [*states, getattr(self.transformer, "_context_manager", None)]


class BatchedGuidance(PackageRule):
    """Wan's two calls of a step as one batch, unconditional first, as some caches expect it.

    The call for `cond` computes both predictions, the call for `uncond` takes the one that waits.
    """

    samples = 2

    def __init__(self, tree: Tree, in_parts: bool = False) -> None:
        super().__init__(tree, in_parts)
        self.context_null: Tensor | None = None
        self.waiting: Tensor | None = None

    def answer(self, call: Call) -> Any:
        if call.branch == "cond":
            given = call.arguments
            pair = {"x": 2 * given["x"], "context": [self.context_null, *given["context"]]}
            self.waiting, prediction = self._predict(call, {**given, **pair}).chunk(2)
        else:
            prediction, self.waiting = self.waiting, None
        return self.converted.in_our_form(prediction)

    @contextmanager
    def watching(self, tree: Tree) -> Iterator[None]:
        """The unconditional text stands in the loop's arguments before its first call needs it."""
        pipeline = tree.pipeline
        plain, had_own = pipeline.denoise, "denoise" in vars(pipeline)

        def denoise(context: Tensor, context_null: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.context_null = context_null
            return plain(context, context_null, *args, **kwargs)

        pipeline.denoise = denoise
        try:
            yield
        finally:
            if had_own:
                pipeline.denoise = plain
            else:
                del pipeline.denoise


class PackagePeer(Peer):
    """A cache of a package, enabled on a new transformer for every video."""

    in_parts: ClassVar[bool] = False  # it skips within blocks, which are then counted in shares

    @classmethod
    def missing(cls) -> str | None:
        """Why this peer cannot run here; None when it can."""
        return None

    def rule(self, tree: Tree, variant: Variant, threshold: float) -> PackageRule:
        if reason := self.missing():
            raise ModuleNotFoundError(reason)
        self.running = self._new_rule(tree)
        self.enable(self.running, tree, variant, threshold)
        return self.running

    @contextmanager
    def attached(self, tree: Tree, variant: Variant, threshold: float) -> Iterator[Spent]:
        """As Peer.attached; list_runs are fractions where the cache skips within blocks."""
        with super().attached(tree, variant, threshold) as spent:
            rule, self.running = self.running, None
            with rule.watching(tree):
                yield spent
            runs = rule.meter.runs.items()
            spent.list_runs = {
                name: round(count, 6) if self.in_parts else count for name, count in runs
            }

    def _new_rule(self, tree: Tree) -> PackageRule:
        return PackageRule(tree, self.in_parts)

    @abstractmethod
    def enable(self, rule: PackageRule, tree: Tree, variant: Variant, threshold: float) -> None:
        """Switch the cache on in `rule.transformer`."""


def tensors_in(value: Any, _seen: set[int] | None = None) -> Iterator[Tensor]:
    """Tensors in containers and in the attributes of a package's own objects."""
    seen = set() if _seen is None else _seen  # of those objects, which may refer to each other
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()), seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item, seen)
    elif _is_state(value) and id(value) not in seen:
        seen.add(id(value))
        yield from tensors_in(vars(value), seen)


def _is_state(value: Any) -> bool:
    package = type(value).__module__.partition(".")[0]
    own = package in ("diffusers", "cache_dit") and hasattr(value, "__dict__")
    return own and not isinstance(value, nn.Module)

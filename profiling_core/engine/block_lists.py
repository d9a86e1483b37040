"""The block lists and the hidden width of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from profiling_core.errors import PlanError

# names of the same block lists in other code bases
_ALIASES = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}


def block_list(
    inner: nn.Module, name: str, paths: dict[str, str] | None = None
) -> nn.ModuleList | None:
    """The block list that a plan calls `name`, at the attribute path given for it in `paths`.

    None where the model has no such attribute; PlanError where it is no ModuleList.
    """
    own = (paths or {}).get(name)
    for path in (own,) if own else (name, _ALIASES.get(name, name)):
        found: Any = inner
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is not None:
            if not isinstance(found, nn.ModuleList):
                raise PlanError(f"{path} of the model is no ModuleList: cannot walk its blocks")
            return found
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """The module under torch.compile, DDP, FSDP1 and guidance-parallel wrappers."""
    while True:
        children = model.__dict__.get("_modules", {})
        names = ("_orig_mod", "_fsdp_wrapped_module")
        if type(model).__name__ in ("DistributedDataParallel", "BranchPair"):
            names = ("module",)
        inner = next((children[name] for name in names if name in children), None)
        if inner is None:
            return model
        model = inner


def hidden_width(model: nn.Module) -> int | None:
    """The model's hidden width, from its attributes or its config; None where it has neither."""
    for name in ("dim", "hidden_size", "inner_dim"):
        width = getattr(model, name, None)
        if isinstance(width, int):
            return width
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    head_dim = getattr(config, "attention_head_dim", None)
    return heads * head_dim if isinstance(heads, int) and isinstance(head_dim, int) else None

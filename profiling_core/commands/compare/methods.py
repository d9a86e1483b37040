"""The plans that are compared: their labels in the table, and what identifies them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profiling_core.commands.compare.rows import FULL
from profiling_core.errors import CompareError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops
from profiling_core.runtime.options import resolve_plan
from profiling_core.trees.tree_model import TreeModel

LONGEST_LABEL = 60


@dataclass(frozen=True)
class Method:
    """One plan of a comparison; `ideal`: block FLOPs of a full run over the plan's, as it runs."""

    label: str
    plan: CachePlan  # as it was given; the run carries it over
    sha256: str
    ideal: float


def methods_of(values: Sequence[str], model: TreeModel) -> tuple[Method, ...]:
    """The plans that `--plans` names; PlanError for one that does not fit the model."""
    found: dict[str, Method] = {}
    for value in values:
        if value == FULL:
            raise CompareError("--plans full: the full run is always the reference, leave it out")
        plan = resolve_plan(value, model.plan_model)
        label = label_of(value)
        if label.lower() in map(str.lower, (*found, FULL)):
            raise CompareError(
                f"--plans {value}: another method is called {label!r}, too: rename the file"
            )
        sha256 = hashlib.sha256(plan.dumps().encode()).hexdigest()
        same = next((m.label for m in found.values() if m.sha256 == sha256), None)
        if same is not None:
            raise CompareError(f"--plans {value}: this is the plan {same!r} once more")
        plan = model.check_plan(plan)
        found[label] = Method(label, plan, sha256, speedup_flops(plan))
    return tuple(found.values())


def label_of(value: str) -> str:
    """A preset's name, or the file's without its ending: also the name of a folder of clips."""
    stem = Path(value).stem if value.endswith(".json") else Path(value).name
    return re.sub(r"[^\w.-]+", "_", stem).strip("._-")[:LONGEST_LABEL] or "plan"

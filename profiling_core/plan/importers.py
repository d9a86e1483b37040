"""Other caching schemes as plans: their decisions do not depend on the prompt, so they are data.

Each function gives the sites of a plan; `CachePlan.build(..., sites=...)` makes the file. What was
published of the full-size models lies in public_lists.json, with its sources and licences.
`from_document` reads files of other engines (formats.py), which it recognises by their content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from profiling_core.errors import PlanError
from profiling_core.plan import schedule
from profiling_core.plan.formats import (
    CacheDitFile,
    LightX2VLists,
    MagCacheFile,
    SglangSchedule,
    check_levels,
    checked,
)
from profiling_core.plan.schema import Branch


@cache
def public_document() -> dict[str, Any]:
    """public_lists.json: its sources, the grids of its models, then the lists of every source."""
    file = resources.files("profiling_core.plan") / "public_lists.json"
    return json.loads(file.read_text(encoding="utf-8"))


def from_steps(
    steps: int, computed: Iterable[int], branches: Sequence[str] = ("cond",), skip: str = "hold"
) -> list[dict]:
    """A list of compute steps for the whole prediction."""
    listed = schedule.explicit(steps, computed)
    return [_prediction(dict.fromkeys(branches, listed), skip)]


def from_mask(
    mask: Sequence[int], branches: Sequence[str] = ("cond",), skip: str = "hold"
) -> list[dict]:
    """A static step mask, 1 compute and 0 reuse (cache-dit's steps_computation_mask)."""
    for step, value in enumerate(mask):
        if value not in (0, 1):
            raise PlanError(f"mask[{step}] is {value!r}, expected 0 or 1")
    computed = [step for step, value in enumerate(mask) if value]
    return from_steps(len(mask), computed, branches, skip)


def from_shrinking(
    block_list: str,
    intervals: Sequence[tuple[int, int]],
    *,
    steps: int = 50,
    warmup: int = 6,
    longest: int = 12,
    shortest: int = 2,
    shape: str = "stepwise",
    reading: str = "walk",
    branches: Sequence[str] = ("cond", "uncond"),
    skip: str = "hold",
) -> list[dict]:
    """The paper's scheme: (Tmax, Tmin, s0) with shape 'stepwise', 'inverse' or 'average'."""
    shapes = {
        "stepwise": schedule.stepwise,
        "inverse": schedule.inverse,
        "average": schedule.average,
    }
    if shape not in shapes:
        raise PlanError(f"shape {shape!r} is unknown: take {', '.join(shapes)}")
    computed = shapes[shape](steps, warmup, longest, shortest, reading)
    return [
        {
            "kind": "intervals",
            "block_list": block_list,
            "intervals": [list(run) for run in intervals],
            "compute_steps": dict.fromkeys(branches, computed),
            "skip": skip,
        }
    ]


def from_magnitude_ratios(
    ratios: Mapping[str, Sequence[float]],
    *,
    threshold: float,
    most_skips: int,
    retention: float = 0.2,
    skip: str = "hold",
) -> list[dict]:
    """A MagCache schedule: per branch, the mean norm ratios of consecutive residuals.

    Since the last compute step the ratios are multiplied up and |1 - product| is summed; a step is
    skipped while the sum stays below `threshold` and at most `most_skips` follow each other. The
    first `retention` of the steps are computed.
    """
    compute_steps = {
        branch: _magnitude_steps(list(values), threshold, most_skips, retention)
        for branch, values in ratios.items()
    }
    return [_prediction(compute_steps, skip)]


def from_document(
    document: Any, sigmas: Sequence[float], branches: Sequence[Branch], source: str
) -> tuple[list[dict], str]:
    """The sites of a plan from a decoded file of another engine, and what the file is, in words.

    sigmas: noise levels of the run, one for each step; branches: of the model. PlanError, which
    begins with `source`, where the file is for other steps or levels or is not what it should be.
    """
    try:
        sites, what = _read(document, sigmas, branches)
        if any(0 not in steps for steps in sites[0]["compute_steps"].values()):
            raise PlanError("step 0 is not computed, so the next steps have nothing to reuse")
    except ValueError as error:
        raise PlanError(f"{source}: {error}") from None
    return sites, what


def _read(
    document: Any, sigmas: Sequence[float], branches: Sequence[Branch]
) -> tuple[list[dict], str]:
    steps = len(sigmas)
    if isinstance(document, list):
        return _of_list(document, steps, branches)
    if not isinstance(document, dict):
        raise PlanError(f"expected a JSON list or object, found {type(document).__name__}")
    if "schema" in document:
        found = checked(SglangSchedule, document)
        check_levels(found.request, sigmas)
        return from_steps(steps, found.full_steps, branches), "a schedule of SGLang"
    if "cache_config" in document:
        mask = checked(CacheDitFile, document).cache_config.steps_computation_mask
        return from_mask(_of_length("the mask", mask, steps), branches), "a config of cache-dit"
    if "caching_records" in document:
        return _of_lightx2v(checked(LightX2VLists, document), steps, branches)
    if "mag_ratios" in document:
        return _of_magcache(document, steps, branches)
    raise PlanError(
        "not known here: expected a list of steps, a 0/1 mask, or an object with schema (SGLang), "
        "cache_config (cache-dit), caching_records (LightX2V) or mag_ratios (MagCache)"
    )


def _of_list(values: list[Any], steps: int, branches: Sequence[Branch]) -> tuple[list[dict], str]:
    """A mask has an entry for each step, or 0 and 1 alone; other lists name the computed steps."""
    for place, value in enumerate(values):
        if not isinstance(value, int):
            raise PlanError(f"entry {place} is {value!r}, expected whole numbers")
    flags = len(values) > 2 and set(values) <= {0, 1}
    if flags or (len(values) == steps and values != list(range(steps))):
        return from_mask(_of_length("the mask", values, steps), branches), "a mask"
    return from_steps(steps, values, branches), "a list of steps"


def _of_lightx2v(
    lists: LightX2VLists, steps: int, branches: Sequence[Branch]
) -> tuple[list[dict], str]:
    records = [lists.caching_records, lists.caching_records_2 or lists.caching_records]
    compute_steps: dict[str, list[int]] = {
        branch: [step for step, computed in enumerate(_of_length("a list", own, steps)) if computed]
        for branch, own in zip(branches, records, strict=False)
    }
    return [_prediction(compute_steps, "hold")], "lists of LightX2V"


def _of_magcache(
    document: dict[str, Any], steps: int, branches: Sequence[Branch]
) -> tuple[list[dict], str]:
    """Ratios of each branch, one list for both, or the authors', where the branches take turns."""
    if isinstance(document["mag_ratios"], list):
        document = document | {"mag_ratios": {"both": document["mag_ratios"]}}
    file = checked(MagCacheFile, document)
    if file.num_inference_steps not in (None, steps):
        raise PlanError(
            f"num_inference_steps is {file.num_inference_steps}, but the run has {steps} steps"
        )
    both = file.mag_ratios.get("both")
    if both is None:
        ratios = dict(file.mag_ratios)
    elif len(branches) == 2 and len(both) == 2 * steps:
        ratios = {branch: both[number::2] for number, branch in enumerate(branches)}
    else:
        ratios = dict.fromkeys(branches, both)
    if set(ratios) != set(branches):
        raise PlanError(f"mag_ratios of {', '.join(ratios)}: expected {', '.join(branches)}")
    sites = from_magnitude_ratios(
        {branch: _of_length("mag_ratios", ratios[branch], steps) for branch in branches},
        threshold=file.threshold,
        most_skips=file.max_skip_steps,
        retention=file.retention_ratio,
    )
    return sites, f"MagCache's rule, threshold {file.threshold:g}, K {file.max_skip_steps},"


def _of_length(what: str, values: Sequence[Any], steps: int) -> Sequence[Any]:
    if len(values) != steps:
        raise PlanError(f"{what} has {len(values)} entries, but the run has {steps} steps")
    return values


def _magnitude_steps(
    ratios: list[float], threshold: float, most_skips: int, retention: float
) -> list[int]:
    computed = []
    product, error, skipped = 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        product *= ratio
        error += abs(1 - product)
        reuse = step >= int(len(ratios) * retention) and step > 0
        if reuse and error < threshold and skipped < most_skips:
            skipped += 1
            continue
        computed.append(step)
        product, error, skipped = 1.0, 0.0, 0
    return computed


def _prediction(compute_steps: Mapping[str, Sequence[int]], skip: str) -> dict:
    return {"kind": "prediction", "compute_steps": compute_steps, "skip": skip}

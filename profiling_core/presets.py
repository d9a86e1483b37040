"""The plans that are shipped: made here, written to plans/ by `python -m profiling_core presets`.

Three presets per model, each a file `<model>.<preset>.json`:

release   what the released code of the paper really runs on Wan: 6 warm-up steps, then every 6th,
          28 of 40 blocks reused between.
paper     the same blocks on the shrinking list of the release (equation 15's shape).
balanced  the whole prediction: first 10 and last 4 of 50 steps computed, 12 evenly between, the
          others stepped over by the solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from profiling_core.plan import BRANCHES, CachePlan, ModelFingerprint, PlanError
from profiling_core.schedule import RELEASED_STEPS, protected, uniform

STEPS = 50
WARMUP = 6
# background blocks of the 40 in the released Wan code, as runs
RELEASED_BACKGROUND = ((0, 0), (2, 7), (10, 20), (25, 32), (37, 38))
RELEASED_DEPTH = 40


@dataclass(frozen=True)
class PlannedModel:
    """What a preset needs to know of a model."""

    fingerprint: ModelFingerprint
    shift: float


MODELS = {
    "wan2.1-t2v-14B": PlannedModel(
        ModelFingerprint(
            family="wan2.1", name="wan2.1-t2v-14B", block_lists={"blocks": 40}, width=5120
        ),
        shift=5.0,
    ),
    "wan2.1-t2v-1.3B": PlannedModel(
        ModelFingerprint(
            family="wan2.1", name="wan2.1-t2v-1.3B", block_lists={"blocks": 30}, width=1536
        ),
        shift=5.0,
    ),
    "wan2.1-t2v-mini": PlannedModel(
        ModelFingerprint(
            family="wan2.1", name="wan2.1-t2v-mini", block_lists={"blocks": 12}, width=160
        ),
        shift=5.0,
    ),
}
PRESETS = ("paper", "release", "balanced")


def plans_folder() -> Path:
    """The folder of the shipped plans."""
    return Path(str(resources.files("profiling_core"))) / "plans"


def available(model: str) -> list[str]:
    """Names of the presets shipped for `model`."""
    names = sorted(file.name for file in plans_folder().iterdir())
    own = [name for name in names if name.startswith(f"{model}.") and name.endswith(".json")]
    return [name.removeprefix(f"{model}.").removesuffix(".json") for name in own]


def load_preset(model: str, preset: str) -> CachePlan:
    """The shipped plan of that name; PlanError lists what there is."""
    names = available(model)
    if preset not in names:
        raise PlanError(
            f"no preset {preset!r} for {model}: there are {', '.join(names) or 'none'}; "
            "or give the path of a plan file"
        )
    return CachePlan.load(plans_folder() / f"{model}.{preset}.json")


def build_preset(model: str, preset: str) -> CachePlan:
    """The plan behind a shipped file."""
    planned = MODELS[model]
    depth = planned.fingerprint.block_lists["blocks"]
    builders = {"release": _release, "paper": _paper, "balanced": _balanced}
    sites, source, settings = builders[preset](depth)
    return CachePlan.build(
        name=preset,
        model=planned.fingerprint,
        steps=STEPS,
        sigmas=[round(sigma, 6) for sigma in unipc_sigmas(STEPS, planned.shift)],
        solver="unipc",
        shift=planned.shift,
        sites=sites,
        provenance={
            "made_by": "profiling_core.presets",
            "source": source,
            "settings": settings,
        },
    )


def background_intervals(depth: int) -> tuple[tuple[int, int], ...]:
    """The released background runs on a model of `depth` blocks.

    Block b of depth d stands where block b (40 - 1) / (d - 1) of the released 40 stands and is
    background when that one (rounded) is; d = 40 gives the released list itself.
    """
    released = {b for first, last in RELEASED_BACKGROUND for b in range(first, last + 1)}
    scale = (RELEASED_DEPTH - 1) / (depth - 1)
    runs: list[tuple[int, int]] = []
    for block in range(depth):
        if int(block * scale + 0.5) not in released:
            continue
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return tuple(runs)


def unipc_sigmas(steps: int, shift: float) -> list[float]:
    """Noise levels of Wan's UniPC grid: 0.999 (as fp32) down to 0, last dropped, then shifted."""
    grid = np.linspace(float(np.float32(0.999)), 0.0, steps + 1)[:-1].astype(np.float32)
    return [float(s) for s in shift * grid / (1 + (shift - 1) * grid)]


def _release(depth: int) -> tuple[list[dict], str, dict]:
    source = (
        "what the released code of arXiv 2504.03140 runs on Wan: warm-up 6, then every 6th step"
    )
    return (
        [_intervals(depth, uniform(STEPS, WARMUP, 6))],
        source + _scaled(depth),
        {"warmup": WARMUP, "interval": 6},
    )


def _paper(depth: int) -> tuple[list[dict], str, dict]:
    source = "arXiv 2504.03140: background blocks, interval shrinking from 12 to 2 (released list)"
    return (
        [_intervals(depth, (*range(WARMUP), *RELEASED_STEPS))],
        source + _scaled(depth),
        {"warmup": WARMUP, "longest_interval": 12, "shortest_interval": 2},
    )


def _balanced(depth: int) -> tuple[list[dict], str, dict]:
    computed = protected(STEPS, first=10, last=4, between=12)
    site = {
        "kind": "prediction",
        "compute_steps": dict.fromkeys(BRANCHES, computed),
        "skip": "jump",
    }
    source = "by hand: first 10, last 4 and 12 evenly spaced steps, the solver jumps the others"
    return [site], source, {"first": 10, "last": 4, "between": 12}


def _intervals(depth: int, computed: tuple[int, ...]) -> dict:
    return {
        "kind": "intervals",
        "block_list": "blocks",
        "intervals": background_intervals(depth),
        "compute_steps": dict.fromkeys(BRANCHES, computed),
        "skip": "hold",
    }


def _scaled(depth: int) -> str:
    if depth == RELEASED_DEPTH:
        return "; its list of 28 of 40 blocks"
    return (
        f"; its list of 28 of 40 blocks scaled to {depth} by position, not profiled on this model"
    )

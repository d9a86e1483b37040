"""The plans that are shipped, and the recipes of the published ones.

`profiling-dit presets` writes all of them to plans/ (`searched_presets.make_preset`).
Each preset of each model is a file `<model>.<preset>.json`:

release     what the released code of the paper really runs. Wan: 6 warm-up steps, then every 6th,
            28 of 40 blocks reused between. HunyuanVideo: 14 of 20 double blocks in that rhythm, 24
            of 40 single blocks on a shrinking list of steps.
paper       the background blocks on the shrinking list of the release (equation 15's shape); of
            HunyuanVideo the single blocks alone.
foreground  HunyuanVideo only, the paper's counter-check: the other single blocks, the same steps.
quality, balanced, fast
            ours, at 1.5, 2 and 3 times the speed: the whole prediction is computed at the steps
            that a search finds. The others are stepped over by Wan's multistep solver; for
            HunyuanVideo's Euler solver they are forecast linearly in sigma and corrected at the
            next computed step. The miniatures' are searched on their own profiles, the official
            models' on published figures (`published`); their provenance names them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from profiling_core.errors import PlanError, nearest
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import MODELS, PlannedModel, Runs
from profiling_core.plan.regrid import SPEEDUPS
from profiling_core.plan.schedule import RELEASED_STEPS, uniform

STEPS = 50
WARMUP = 6
EVERY_SIXTH = uniform(STEPS, WARMUP, 6)
SHRINKING = (*range(WARMUP), *RELEASED_STEPS)
SHRINKING_SETTINGS = {"warmup": WARMUP, "longest_interval": 12, "shortest_interval": 2}
ORDER = ("paper", "release", "foreground", *SPEEDUPS)

Recipe = tuple[list[dict], str, dict]  # sites, source and settings of a plan


def plans_folder() -> Path:
    """The folder of the shipped plans."""
    return Path(str(resources.files("profiling_core"))) / "plans"


def available(model: str) -> list[str]:
    """Names of the presets shipped for `model`: the published ones, then ours."""
    files = {file.name for file in plans_folder().iterdir()}
    return [preset for preset in ORDER if f"{model}.{preset}.json" in files]


def load_preset(model: str, preset: str) -> CachePlan:
    """The shipped plan of that name; PlanError lists what there is."""
    names = available(model)
    if preset not in names:
        near = nearest(preset, names)
        meant = "" if near is None else f" (did you mean {near}?)"
        raise PlanError(
            f"no preset {preset!r} for {model}: there are {', '.join(names) or 'none'}; "
            f"or give the path of a plan file{meant}"
        )
    return CachePlan.load(plans_folder() / f"{model}.{preset}.json")


def presets_of(model: PlannedModel) -> list[str]:
    """Names of the model's presets, whether they are shipped or only built."""
    own = (*PRESETS[model.fingerprint.family], *SPEEDUPS)
    return [preset for preset in ORDER if preset in own]


def build_preset(planned: PlannedModel, preset: str) -> CachePlan:
    """The preset of a model, or the same for another size of its family.

    A published one by its recipe; of SPEEDUPS what is shipped, for another size the steps of the
    family's first official model.
    """
    if preset not in SPEEDUPS:
        return _built(planned, preset, PRESETS[planned.fingerprint.family][preset](planned))
    shipped = MODELS.get(planned.fingerprint.name)
    if shipped is None or shipped.fingerprint != planned.fingerprint:
        return _as_official(planned, preset)
    return load_preset(planned.fingerprint.name, preset)


def _as_official(planned: PlannedModel, preset: str) -> CachePlan:
    """The steps of the family's first official model, searched for that one."""
    official = next(m for m in MODELS.values() if m.family is planned.family)
    plan = load_preset(official.fingerprint.name, preset)
    sites = [site.model_dump(mode="json", exclude_none=True) for site in plan.sites]
    source = f"the steps of {plan.model.name}: {plan.provenance.source}"
    return _built(planned, preset, (sites, source, plan.provenance.settings))


def _built(planned: PlannedModel, preset: str, recipe: Recipe) -> CachePlan:
    sites, source, settings = recipe
    return CachePlan.build(
        name=preset,
        model=planned.fingerprint,
        steps=STEPS,
        sigmas=[round(sigma, 6) for sigma in planned.sigmas(STEPS)],
        solver=planned.family.solver,
        shift=planned.family.shift,
        sites=sites,
        provenance={
            "made_by": "profiling_core.presets",
            "source": source,
            "settings": settings,
        },
    )


def _wan_release(planned: PlannedModel) -> Recipe:
    source = (
        "what the released code of arXiv 2504.03140 runs on Wan: warm-up 6, then every 6th step"
    )
    return (
        [_background(planned, "blocks", EVERY_SIXTH)],
        f"{source}; {_its_list(planned, 'blocks')}",
        {"warmup": WARMUP, "interval": 6},
    )


def _hunyuan_release(planned: PlannedModel) -> Recipe:
    source = (
        "what the released code of arXiv 2504.03140 runs on HunyuanVideo: warm-up 6, then double "
        "blocks every 6th step, single blocks with an interval shrinking from 12 to 2"
    )
    lists = "; ".join(_its_list(planned, name) for name in planned.family.released)
    sites = [
        _background(planned, "double_blocks", EVERY_SIXTH),
        _background(planned, "single_blocks", SHRINKING),
    ]
    return sites, f"{source}; {lists}", {"warmup": WARMUP, "interval": 6, **SHRINKING_SETTINGS}


def _paper(planned: PlannedModel) -> Recipe:
    source = "arXiv 2504.03140: background blocks, interval shrinking from 12 to 2 (released list)"
    lists = planned.family.paper_lists
    words = "; ".join(_its_list(planned, name) for name in lists)
    sites = [_background(planned, name, SHRINKING) for name in lists]
    return sites, f"{source}; {words}", SHRINKING_SETTINGS


def _foreground(planned: PlannedModel) -> Recipe:
    source = "counter-check of arXiv 2504.03140: foreground blocks, the steps of its background"
    runs = planned.family.released["single_blocks"].foreground_at(planned.depth("single_blocks"))
    return (
        [_intervals(planned, "single_blocks", runs, SHRINKING)],
        f"{source}; all but {_its_list(planned, 'single_blocks')}",
        SHRINKING_SETTINGS,
    )


PRESETS: dict[str, dict[str, Callable[[PlannedModel], Recipe]]] = {
    "wan2.1": {"paper": _paper, "release": _wan_release},
    "hunyuan-video": {
        "paper": _paper,
        "release": _hunyuan_release,
        "foreground": _foreground,
    },
}


def _background(planned: PlannedModel, block_list: str, computed: tuple[int, ...]) -> dict:
    runs = planned.family.released[block_list].background_at(planned.depth(block_list))
    return _intervals(planned, block_list, runs, computed)


def _intervals(
    planned: PlannedModel, block_list: str, runs: Runs, computed: tuple[int, ...]
) -> dict:
    return {
        "kind": "intervals",
        "block_list": block_list,
        "intervals": runs,
        "compute_steps": dict.fromkeys(planned.family.branches, computed),
        "skip": "hold",
    }


def _its_list(planned: PlannedModel, block_list: str) -> str:
    """Where a list of blocks comes from, in words."""
    released, depth = planned.family.released[block_list], planned.depth(block_list)
    words = f"its list of {released.blocks} of {released.depth} {block_list}"
    if depth == released.depth:
        return words
    return f"{words} scaled to {depth} by position, not profiled on this model"

"""The plans that are shipped, and the recipes of the published ones.

`profiling-dit presets` writes all of them to plans/ (`search.preset_search.make_preset`).
Each preset of each model is a file `<model>.<preset>.json`:

release     what the options of the released code say. Wan: 6 warm-up steps, then every 6th, 28 of
            40 blocks reused between; the released command itself loops over 10,000 random block
            lists. HunyuanVideo: 14 of 20 double blocks in that rhythm, 24 of 40 single blocks on a
            shrinking list of steps.
paper       the background blocks on the shrinking list of the release (equation 15's shape).
foreground, split, alternate
            HunyuanVideo only, the other rows of the paper's table 3 on the same steps: the
            foreground single blocks; these early and the background late; both by turns. The 14
            double blocks are reused in every row, as the reported speeds ask for (docs/paper.md).
quality, balanced, fast
            ours, at 1.5, 2 and 3 times the speed: the whole prediction is computed at the steps
            that a search finds. The others are stepped over by Wan's multistep solver; for
            HunyuanVideo's Euler solver they are forecast by a line in log-SNR and corrected at the
            next computed step. The miniatures' are searched on their own profiles, the official
            models' are good in several worlds, laws fitted to public lists among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from math import inf
from pathlib import Path

from profiling_core.errors import PlanError, nearest
from profiling_core.plan import CachePlan
from profiling_core.plan.importers import from_document, from_steps, public_document
from profiling_core.plan.model_specs import BACKGROUND_ALONE, MODELS, PlannedModel
from profiling_core.plan.plan import decoded, small_file
from profiling_core.plan.regrid import SPEEDUPS
from profiling_core.plan.schedule import (
    BLOCKS,
    RELEASED_STEPS,
    reused_by_side,
    segments,
    uniform,
)

STEPS = 50
WARMUP = 6
EVERY_SIXTH = uniform(STEPS, WARMUP, 6)
SHRINKING = (*range(WARMUP), *RELEASED_STEPS)
SHRINKING_SETTINGS = {"warmup": WARMUP, "longest_interval": 12, "shortest_interval": 2}
ORDER = ("paper", "release", *BLOCKS[1:], *SPEEDUPS)

REPORTED = {  # speed-ups of the paper's tables 2 and 3
    "wan2.1": {"background": 2.01},
    "hunyuan-video": {"background": 1.87, "foreground": 1.57, "split": 1.65, "alternate": 1.65},
}

Recipe = tuple[list[dict], str, dict]  # sites, source and settings of a plan


def plans_folder() -> Path:
    """The folder of the shipped plans."""
    return Path(str(resources.files("profiling_core"))) / "plans"


def available(model: str) -> list[str]:
    """Names of the presets shipped for `model`: the published ones, then ours."""
    files = {file.name for file in plans_folder().iterdir()}
    planned = MODELS.get(model)
    others = available(planned.like) if planned and planned.like else []
    return [name for name in ORDER if f"{model}.{name}.json" in files or name in others]


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
    file = plans_folder() / f"{model}.{preset}.json"
    if file.is_file():
        return CachePlan.load(file)
    planned = MODELS[model]
    return _steps_of(load_preset(str(planned.like), preset), planned)


def public_plan(planned: PlannedModel, name: str) -> CachePlan:
    """A public list of steps as a plan that holds the prediction; PlanError lists what there is."""
    document = public_document()
    model = planned.fingerprint.name.removesuffix("-720P")  # LeMiCa has one list for both sizes
    found = {
        list_name: (source, steps)
        for source in ("lemica", "golden-path")
        for list_name, steps in document[source].get(model, {}).items()
    }
    if name not in found:
        near = nearest(name, found)
        meant = "" if near is None else f" (did you mean {near}?)"
        there = ", ".join(found) or "none"
        raise PlanError(f"no public list {name!r} for {model}: there are {there}{meant}")
    source, steps = found[name]
    facts = document["sources"][source]
    words = f"{name} of {facts['of']} ({facts['licence']}), held as published"
    count = planned.family.steps
    sites = from_steps(count, steps, planned.family.branches)
    return _built(planned, name, (sites, words, {}), count)


def plan_of_file(
    planned: PlannedModel, path: Path, steps: int | None = None, shift: float | None = None
) -> CachePlan:
    """A file of another engine (`importers.from_document`) as a plan that holds the prediction.

    steps, shift: of the run, None for the model's own. PlanError says what is wrong with the file.
    """
    own = planned.family
    if shift is not None and not 0 < shift < inf:
        raise PlanError(f"shift {shift:g}: expected a number above 0")
    family = replace(own, steps=steps or own.steps, shift=shift or own.shift)
    planned = replace(planned, family=family)
    source = f"file {path}"
    document = decoded(small_file(path, source), source)
    sites, what = from_document(document, planned.sigmas(family.steps), family.branches, source)
    return _built(planned, path.stem, (sites, f"{what} in {path.name}, held", {}), family.steps)


def presets_of(model: PlannedModel) -> list[str]:
    """Names of the model's own presets, whether they are shipped or only built."""
    published = [] if model.like else [*PRESETS[model.fingerprint.family]]
    return [preset for preset in ORDER if preset in [*published, *SPEEDUPS]]


def build_preset(planned: PlannedModel, preset: str) -> CachePlan:
    """The preset of a model, or the same for another size of its family.

    A published one by its recipe; of SPEEDUPS what is shipped, for another size the steps of the
    family's first official model.
    """
    if preset not in SPEEDUPS:
        return _built(planned, preset, PRESETS[planned.fingerprint.family][preset](planned))
    shipped = MODELS.get(planned.fingerprint.name)
    if shipped is None or shipped.fingerprint != planned.fingerprint:
        official = next(m for m in MODELS.values() if m.family is planned.family)
        return _steps_of(load_preset(official.fingerprint.name, preset), planned)
    return load_preset(planned.fingerprint.name, preset)


def _steps_of(plan: CachePlan, planned: PlannedModel) -> CachePlan:
    """The steps of another model's preset by their numbers."""
    sites = [site.model_dump(mode="json", exclude_none=True) for site in plan.sites]
    source = f"the steps of {plan.model.name}: {plan.provenance.source}"
    return _built(planned, plan.name, (sites, source, plan.provenance.settings), plan.steps)


def _built(planned: PlannedModel, preset: str, recipe: Recipe, steps: int = STEPS) -> CachePlan:
    sites, source, settings = recipe
    return CachePlan.build(
        name=preset,
        model=planned.fingerprint,
        steps=steps,
        sigmas=[round(sigma, 6) for sigma in planned.sigmas(steps)],
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
        "what the options of arXiv 2504.03140's released code say for Wan: warm-up 6, then every "
        "6th step (its command itself loops over 10,000 random block lists)"
    )
    return (
        paper_sites(planned, "background", EVERY_SIXTH),
        f"{source}; {_its_lists(planned)}",
        {"warmup": WARMUP, "interval": 6},
    )


def _hunyuan_release(planned: PlannedModel) -> Recipe:
    source = (
        "what the released code of arXiv 2504.03140 runs on HunyuanVideo: warm-up 6, then double "
        "blocks every 6th step, single blocks with an interval shrinking from 12 to 2"
    )
    double, _ = paper_sites(planned, "background", EVERY_SIXTH)
    _, single = paper_sites(planned, "background", SHRINKING)
    settings = {"warmup": WARMUP, "interval": 6, **SHRINKING_SETTINGS}
    return [double, single], f"{source}; {_its_lists(planned)}", settings


def _paper(blocks: str, planned: PlannedModel) -> Recipe:
    """One row of the paper's table 3; of Wan there is the first alone."""
    what = {
        "background": "background blocks",
        "foreground": "counter-check, foreground single blocks",
        "split": "foreground single blocks early, background ones late",
        "alternate": "foreground and background single blocks by turns",
    }[blocks]
    reported = REPORTED[planned.fingerprint.family][blocks]
    source = (
        f"arXiv 2504.03140, which reports {reported}x for the official model: {what}, interval "
        "shrinking from 12 to 2 (released list)"
    )
    sites = paper_sites(planned, blocks, SHRINKING)
    return sites, f"{source}; {_its_lists(planned)}", SHRINKING_SETTINGS


PRESETS: dict[str, dict[str, Callable[[PlannedModel], Recipe]]] = {
    "wan2.1": {"paper": partial(_paper, "background"), "release": _wan_release},
    "hunyuan-video": {
        "paper": partial(_paper, "background"),
        "release": _hunyuan_release,
        **{blocks: partial(_paper, blocks) for blocks in BLOCKS[1:]},
    },
}


def paper_sites(planned: PlannedModel, blocks: str, computed: Sequence[int]) -> list[dict]:
    """A row of the paper's tables 3 and 4 on the released lists: sites of a plan.

    blocks: one of `schedule.BLOCKS`; computed: the compute steps, of STEPS.
    """
    sites, parts = [], segments(STEPS, computed)
    for name, released in planned.family.released.items():
        depth = planned.depth(name)
        runs = {
            "background": released.background_at(depth),
            "foreground": released.foreground_at(depth),
        }
        row = "background" if name in BACKGROUND_ALONE else blocks
        for side, reused in reused_by_side(row, parts).items():
            steps = sorted(set(range(STEPS)).difference(*reused))
            sites.append(
                {
                    "kind": "intervals",
                    "block_list": name,
                    "intervals": runs[side],
                    "compute_steps": dict.fromkeys(planned.family.branches, steps),
                    "skip": "hold",
                }
            )
    return sites


def _its_lists(planned: PlannedModel) -> str:
    """Where the lists of blocks come from, in words."""
    found = []
    for name, released in planned.family.released.items():
        words = f"its list of {released.blocks} of {released.depth} {name}"
        if planned.depth(name) != released.depth:
            words += f" scaled to {planned.depth(name)} by position, not profiled on this model"
        found.append(words)
    return "; ".join(found)

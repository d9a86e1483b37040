"""The denoisers of a diffusers pipeline, their block lists, and named plans for them.

Everything is found by structure: the components called transformer..., the ModuleLists of blocks
that lie directly in them, the width in their config. A small table holds the classes that presets
are shipped for, and the lists that are not part of the walk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from profiling_core.engine.block_lists import hidden_width, unwrapped
from profiling_core.errors import PlanError
from profiling_core.loops.cached_loop import LoopModels
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import (
    HUNYUAN,
    MINI,
    MODELS,
    WAN,
    Family,
    PlannedModel,
    known_model,
)
from profiling_core.plan.presets import ORDER, PRESETS, available, build_preset, load_preset
from profiling_core.plan.regrid import SPEEDUPS
from profiling_core.plan.schema import ModelFingerprint
from profiling_core.plan.solvers import SOLVERS, skips_of

# families that presets are shipped for, by class: the plan's block lists and their attributes
_FAMILIES = {
    "WanTransformer3DModel": ("wan2.1", WAN, {"blocks": "blocks"}),
    "WanVACETransformer3DModel": ("wan2.1", WAN, {"blocks": "blocks"}),
    "HunyuanVideoTransformer3DModel": (
        "hunyuan-video",
        HUNYUAN,
        {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"},
    ),
    # of ComfyUI and of the official repositories
    "WanModel": ("wan2.1", WAN, {"blocks": "blocks"}),
    "HunyuanVideo": (
        "hunyuan-video",
        HUNYUAN,
        {"double_blocks": "double_blocks", "single_blocks": "single_blocks"},
    ),
}
_OTHER_LISTS = ("vace_blocks",)  # run beside the walk: hints of VACE


def loop_models(pipe: Any) -> LoopModels:
    """The denoisers of a pipeline in the order of use; PlanError where none has a block list."""
    names = [name for name in vars(pipe) if name.startswith("transformer")]
    models = [getattr(pipe, name) for name in sorted(names)]
    models = [model for model in models if isinstance(model, nn.Module) and _own_lists(model)]
    if not models:
        raise PlanError(
            f"{type(pipe).__name__} has no transformer with a list of blocks that a plan could be "
            "for: its parts are " + ", ".join(sorted(pipe.components))
        )
    if len(models) > 1 and fingerprint_of(models[0]) != fingerprint_of(models[1]):
        raise PlanError(
            f"{type(pipe).__name__} has {len(models)} transformers of different shape: attach a "
            "DeltaCache to each of them instead"
        )
    lists = named_lists(unwrapped(models[0]))
    if len(models) == 1:
        return LoopModels(tuple(models), lists)
    ratio = pipe.config.boundary_ratio
    return LoopModels(tuple(models), lists, lambda scheduler: _shares(pipe, scheduler), ratio)


def fingerprint_of(model: nn.Module) -> ModelFingerprint:
    """The model as a plan names it; a model that is known here has its shipped name."""
    inner = unwrapped(model)
    kind, width = type(inner).__name__, hidden_width(inner)
    if width is None:
        raise PlanError(f"{kind} has no known hidden width: neither dim, hidden_size nor heads")
    lists = {name: len(getattr(inner, path)) for name, path in named_lists(inner).items()}
    known = _known(inner)
    return known_model(known[0] if known else kind, lists, width)


def checked_name(plan: CachePlan | str | Path, model: ModelFingerprint) -> CachePlan | str:
    """The plan of a file, or a preset's name that there is a plan for; PlanError otherwise."""
    if isinstance(plan, CachePlan):
        return plan
    if str(plan) not in ORDER:
        return CachePlan.load(plan)
    names = presets_for(model)
    if str(plan) not in names:
        raise PlanError(
            f"no preset {str(plan)!r} for {model.name}: there are {', '.join(names)}; or give a "
            "plan, or the path of a plan file"
        )
    return str(plan)


def presets_for(model: ModelFingerprint) -> list[str]:
    """Names of the presets that `plan_for_solver` knows for a model."""
    own = available(model.name) or [*PRESETS.get(model.family, ()), *SPEEDUPS]
    return [preset for preset in ORDER if preset in own]


def plan_for_solver(plan: CachePlan | str, model: ModelFingerprint, solver: str) -> CachePlan:
    """A plan as it is, or the preset of that name, on the grid that it was made on.

    A shipped model has its own. Another size of its family, or a model without presets, gets the
    steps of an official one; provenance and notes name it.
    """
    if isinstance(plan, CachePlan):
        return plan
    if model.name in MODELS:
        own = load_preset(model.name, plan)
    elif model.family in PRESETS:
        family = next(one for name, one, _ in _FAMILIES.values() if name == model.family)
        own = build_preset(PlannedModel(family, model, MINI), plan)
    else:
        own = _borrowed(plan, model, solver)
    return _with_solver(own, solver)


def _borrowed(preset: str, model: ModelFingerprint, solver: str) -> CachePlan:
    """The compute steps of an official model whose solver is of the same kind."""
    family = WAN if solver in ("unipc", "dpm++") else HUNYUAN
    official = next(m for m in MODELS.values() if m.family is family)
    plan = load_preset(official.fingerprint.name, preset)
    source = (
        f"the steps of {plan.model.name}, not searched for {model.name}: for a better plan profile "
        "it (profile_pipeline) and search on the profile"
    )
    return plan.replace(
        model=model,
        sites=[plan.prediction],
        provenance=plan.provenance.model_copy(update={"source": source}),
        notes=(f"plan {preset!r} has {source}",),
    )


def _with_solver(plan: CachePlan, solver: str) -> CachePlan:
    """A preset with the solver's own reuse mode."""
    site = plan.prediction
    own = skips_of(solver)[-1] if solver in SOLVERS else "linear"
    if site is None or (site.skip == own and plan.solver == solver):
        return plan
    sites = [site.model_copy(update={"skip": own}), *plan.interval_sites]
    return plan.replace(solver=solver, sites=sites)


def _own_lists(model: nn.Module) -> list[str]:
    """Attribute names of the ModuleLists of blocks that lie directly in a model."""
    return [
        name
        for name, child in unwrapped(model).named_children()
        if isinstance(child, nn.ModuleList) and name.endswith("blocks") and len(child) > 1
        if name not in _OTHER_LISTS
    ]


def named_lists(inner: nn.Module) -> dict[str, str]:
    """The block lists: the plan's names and the model's attributes."""
    known = _known(inner)
    return known[2] if known else {name: name for name in _own_lists(inner)}


def _known(inner: nn.Module) -> tuple[str, Family, dict[str, str]] | None:
    """What _FAMILIES holds for a model's class, or for the nearest one that it derives from."""
    kinds = (kind.__name__ for kind in type(inner).__mro__)
    return next((_FAMILIES[kind] for kind in kinds if kind in _FAMILIES), None)


def expert_shares(scheduler: Any, boundary: float | None) -> list[int]:
    """Steps of Wan2.2's two models: at noisier timesteps than the boundary, and below it."""
    total = len(scheduler.timesteps)
    first = total if boundary is None else int((scheduler.timesteps >= boundary).sum())
    return [first, total - first]


def _shares(pipe: Any, scheduler: Any) -> list[int]:
    ratio = pipe.config.boundary_ratio
    boundary = None if ratio is None else ratio * scheduler.config.num_train_timesteps
    return expert_shares(scheduler, boundary)

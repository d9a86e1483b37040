"""`profiling-dit show` and `presets`: read plans and profiles, list and write the shipped plans."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from profiling_core.commands.arguments import (
    add_log_options,
    add_overwrite_option,
    at_least,
    check_new,
)
from profiling_core.errors import PlanError, nearest
from profiling_core.files import check_writable
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import bytes_held, held_anchors, speedup_flops
from profiling_core.plan.describe import format_bytes, picture, storage_words, summary_lines
from profiling_core.plan.model_specs import MODELS, PlannedModel
from profiling_core.plan.presets import available, load_preset, presets_of
from profiling_core.profile.profile import Profile, holds_profile, load_profile
from profiling_core.profile.summary import summary_lines as profile_lines
from profiling_core.runtime.options import resolve_plan
from profiling_core.search.preset_search import make_preset, missing_profiles, presets_from

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


def add_show_command(commands: Any) -> None:
    """Add `show` to the subcommands of the parser."""
    one = commands.add_parser("show", help="a readable summary of a plan or a profile")
    one.set_defaults(run=show)
    one.add_argument("plan", help="a preset (paper, balanced, fast, ...), a plan file or a profile")
    one.add_argument(
        "--model",
        default="wan2.1-t2v-14B",
        help="whose preset to show (default %(default)s); a file says it itself",
    )
    usual = "(default: of the model's usual clip)"
    one.add_argument("--tokens", type=at_least(1), help=f"tokens of the residual stream {usual}")
    one.add_argument("--latent", type=at_least(1), help=f"elements of the latent {usual}")
    one.add_argument(
        "--dtype",
        choices=sorted(ITEMSIZE),
        help="dtype of the residual stream (default: as the model runs)",
    )


def add_presets_command(commands: Any) -> None:
    """Add `presets` to the subcommands of the parser."""
    one = commands.add_parser(
        "presets",
        help="list the shipped plans, write them to files, or make quality, balanced, fast of a "
        "profile",
    )
    one.set_defaults(run=presets)
    one.add_argument("--profile", metavar="FILE", help="make those of this profile's model")
    one.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the files, made if missing (default with --profile: the working directory)",
    )
    add_overwrite_option(one)
    add_log_options(one)


def show(args: argparse.Namespace) -> list[str]:
    """A readable summary of a preset, a plan file or a profile."""
    planned_model(args.model)
    if args.plan not in available(args.model) and holds_profile(args.plan):
        for name in ("tokens", "latent", "dtype"):
            if getattr(args, name) is not None:
                raise PlanError(f"--{name} is for plans, but {args.plan} is a profile")
        return profile_lines(load_profile(args.plan))
    plan = resolve_plan(args.plan, args.model)
    lines = summary_lines(plan)
    lines.append(_grid_line(plan))
    lines += ["", *picture(plan), ""]
    lines += _memory_lines(plan, args)
    others = [name for name in MODELS if name != args.model and args.plan in available(name)]
    if others and args.plan in available(args.model):
        lines.append(f"also shipped for {', '.join(others)}: show it with --model")
    return lines


def planned_model(name: str) -> PlannedModel:
    """The model that --model names; PlanError lists those that plans are shipped for."""
    if name not in MODELS:
        near = nearest(name, MODELS)
        meant = "" if near is None else f" (did you mean {near}?)"
        raise PlanError(f"--model {name}: plans are shipped for {', '.join(MODELS)}{meant}")
    return MODELS[name]


def presets(args: argparse.Namespace) -> list[str]:
    """The shipped plans: listed, or made again as files in `args.out`; or those of a profile."""
    own = args.profile is not None
    if not own and args.out is None:
        return _listed()
    folder = Path(args.out or ".")
    if folder.exists() and not folder.is_dir():
        raise PlanError(f"--out {folder}: this is a file, name a folder")
    check_writable(folder / "plan.json", "--out")
    plans = presets_from(Profile.load(args.profile)) if own else _shipped()
    paths = [folder / f"{plan.model.name}.{plan.name}.json" for plan in plans]
    for path in paths:
        check_new(path, "--out", args)
    written = []
    for plan, path in zip(plans, paths, strict=True):
        plan.save(path)
        written.append(f"wrote {path}: {_in_short(plan)}" if own else f"wrote {path}")
    return written


def _listed() -> list[str]:
    """Every model with the names and the ideal speed-ups of its plans."""
    lines = ["--delta_cache takes these plans; speed-ups by block FLOPs:"]
    for model in MODELS:
        plans = ((name, load_preset(model, name)) for name in available(model))
        lines.append(f"{model}: {', '.join(f'{n} {speedup_flops(p):.2f}x' for n, p in plans)}")
    return [*lines, "profiling-dit show NAME --model MODEL shows one, --out DIR writes them all"]


def _in_short(plan: CachePlan) -> str:
    return f"{speedup_flops(plan):.2f}x, predicted error {plan.predicted_error:g}"


def _shipped() -> list[CachePlan]:
    """Every plan that is shipped; PlanError for a profile that is not there."""
    missing = missing_profiles()
    if missing:
        raise PlanError(
            f"no profile {missing[0]}: the miniatures' plans are searched on their profiles, which "
            "lie in a clone of the repository: install the package from there with pip install -e ."
        )
    return [make_preset(model, preset) for model in MODELS.values() for preset in presets_of(model)]


def _grid_line(plan: CachePlan) -> str:
    part = "" if plan.end is None else f", ends at {plan.end:.4f}"
    return (
        f"made for {plan.steps} {plan.solver} steps, shift {plan.shift:g}, sigma "
        f"{plan.sigmas[0]:.4f} to {plan.sigmas[-1]:.4f}{part}, branches {', '.join(plan.branches)}"
    )


def _memory_lines(plan: CachePlan, args: argparse.Namespace) -> list[str]:
    """Bytes of the anchors by the plan's formula, for the given or the model's usual sizes."""
    planned = MODELS.get(plan.model.name, MODELS[args.model])
    family, clip = planned.family, planned.clip
    tokens, latent = args.tokens or clip.tokens, args.latent or clip.latent
    usual = "" if args.tokens or args.latent else f" ({clip.size})"
    stream = args.dtype or family.stream
    held = bytes_held(
        plan,
        tokens=tokens,
        stream_itemsize=ITEMSIZE[stream],
        latent_numel=latent,
        prediction_itemsize=ITEMSIZE[family.prediction],
    )
    return [
        f"memory: {held_anchors(plan).formula(plan.model.width)} = {format_bytes(held)} at "
        f"{tokens} tokens, {latent} latent elements{usual}, residual stream in {stream}, "
        f"anchors in {storage_words(plan)}"
    ]

"""The commands of `python -m profiling_core` about profiles: profile, plan, and show of one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from profiling_core.commands.plan import (
    SEARCH_OPTIONS,
    add_search_options,
    add_store_options,
    search_plan,
    spelled,
    stored,
)
from profiling_core.errors import PlanError, ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.describe import picture, summary_lines
from profiling_core.plan.schema import first_mistake
from profiling_core.profile.profile import Profile, Settings, holds_profile, load_profile
from profiling_core.profile.summary import settings_lines
from profiling_core.profile.summary import summary_lines as profile_lines
from profiling_core.search.paper_method import BLOCKS, ORDERS, PATTERNS, paper_plan

WITH_SOURCE = {  # masks that read something, and what --mask_source has to be
    "sam2": "the folder of SAM2's weights (config.json and *.safetensors of transformers)",
    "file": "the masks",
}


def show_profile(path: str | Path) -> list[str]:
    """A readable summary of a profile."""
    return profile_lines(load_profile(path))


def prepare_profile(args: argparse.Namespace) -> list[str]:
    """Write a profile that holds settings alone; runs are added with --delta_profile."""
    path = Path(args.file)
    _check_folder(path, "FILE")
    if path.exists():
        raise ProfileError(f"{path} exists: settings are made before the first run, into a new one")
    settings = _settings(args)
    Profile(settings).save(path)
    return [
        f"wrote {path}",
        *settings_lines(settings),
        f"next: a full run for every calibration prompt with --delta_profile {path.absolute()}",
    ]


def make_plan(args: argparse.Namespace) -> list[str]:
    """Plan from a profile into a file; what it costs and its picture."""
    out = Path(args.out)
    if out.is_dir() or holds_profile(out):
        what = "a folder" if out.is_dir() else "a profile"
        raise PlanError(f"-o {out}: this is {what}, expected a plan file to write")
    plan, more = METHODS[_method(args)](load_profile(args.profile), args)
    out.parent.mkdir(parents=True, exist_ok=True)
    plan.save(out)
    return [
        *summary_lines(plan),
        "",
        *picture(plan),
        "",
        *more,
        f"wrote {out}: run it with --delta_cache {out.absolute()}",
    ]


def _method(args: argparse.Namespace) -> str:
    """The method that was named, or the one whose options were given; PlanError for a mixture."""
    given = {
        method: [name for name in names if getattr(args, name) is not None]
        for method, names in OWN_OPTIONS.items()
    }
    method = args.method or ("paper" if given["paper"] else "search")
    for other, names in given.items():
        if names and other != method:
            raise PlanError(f"--{spelled(names[0])} belongs to --method {other}, not {method}")
    return method


def _paper(profile: Profile, args: argparse.Namespace) -> tuple[CachePlan, list[str]]:
    """The paper's plan, or a row of its ablation tables."""
    names = ("blocks", "pattern", "order", "name", "tau", "share", "tmax", "tmin", "warmup")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    steps = None if args.steps is None else _integers(args.steps, "--steps")
    lists = None if args.lists is None else [name.strip() for name in args.lists.split(",")]
    return paper_plan(profile, **given, **stored(args), steps=steps, lists=lists), []


Method = Callable[[Profile, argparse.Namespace], tuple[CachePlan, list[str]]]
METHODS: dict[str, Method] = {"search": search_plan, "paper": _paper}
OWN_OPTIONS = {
    "search": SEARCH_OPTIONS,
    "paper": (
        "tau",
        "share",
        "lists",
        "blocks",
        "warmup",
        "tmax",
        "tmin",
        "pattern",
        "steps",
        "order",
    ),
}


def add_profile_commands(commands: Any) -> None:
    """Add `profile` and `plan` to the subcommands of the parser."""
    _add_profile(commands.add_parser("profile", help="prepare a profile with its settings"))
    _add_plan(commands.add_parser("plan", help="make a plan from a profile"))


def _add_profile(one: argparse.ArgumentParser) -> None:
    usual = Settings()
    one.set_defaults(run=prepare_profile)
    one.add_argument("file", metavar="FILE", help="profile to make; it must not exist yet")
    one.add_argument(
        "--mask",
        choices=("pca", "sam2", "motion", "file"),
        default=usual.mask,
        help="where the foreground mask comes from (default %(default)s)",
    )
    one.add_argument(
        "--mask_source",
        metavar="PATH",
        help="sam2: folder of the weights; file: the masks. Kept as an absolute path, so that runs "
        "from any folder find it",
    )
    one.add_argument(
        "--attention_every",
        type=int,
        metavar="N",
        default=usual.attention_every,
        help="measure attention at every N-th step (default %(default)s); 0: not at all",
    )
    one.add_argument(
        "--attention_queries",
        type=int,
        metavar="M",
        help="queries to sample per head (default: by the clip's size)",
    )
    high = one.add_mutually_exclusive_group()
    high.add_argument(
        "--high_share",
        type=float,
        metavar="S",
        help=f"tokens that count as high attention, as a share (default {usual.high_share:g})",
    )
    high.add_argument(
        "--high_threshold",
        type=float,
        metavar="T",
        help="or those above T times the mean attention",
    )
    one.add_argument(
        "--delta_tokens",
        type=int,
        metavar="M",
        default=usual.delta_tokens,
        help="tokens at which block deltas are compared (default %(default)s)",
    )
    one.add_argument(
        "--sensitivity",
        metavar="STEPS",
        default="",
        help="steps before which a small error is injected, one more run each: 1,3,6,12,20,32",
    )


def _add_plan(one: argparse.ArgumentParser) -> None:
    one.set_defaults(run=make_plan)
    one.add_argument("--profile", required=True, help="a profile recorded by --delta_profile")
    one.add_argument(
        "--method", choices=sorted(METHODS), help="how to plan (default: by the options given)"
    )
    one.add_argument("-o", "--out", required=True, metavar="PLAN", help="plan file to write")
    one.add_argument("--name", help="name of the plan (default: from its settings)")
    add_search_options(one)
    add_store_options(one)
    parts = one.add_argument_group("blocks (paper, equations 6 to 9)")
    tau = parts.add_mutually_exclusive_group()
    tau.add_argument("--tau", type=float, help="threshold of R_attn (default: by Otsu's method)")
    tau.add_argument("--share", type=float, help="or the share of blocks that is background: 0.6")
    parts.add_argument("--lists", help="block lists to reuse (default: those of the paper preset)")
    parts.add_argument(
        "--blocks",
        choices=BLOCKS,
        help="what is reused (default background)",
    )
    steps = one.add_argument_group("steps (paper, equations 12 and 15)")
    steps.add_argument("--warmup", type=int, help="first steps, all computed (default: by L1)")
    steps.add_argument("--tmax", type=int, help="longest interval (default: 12 of 50 steps)")
    steps.add_argument("--tmin", type=int, help="shortest interval (default: by L1)")
    steps.add_argument(
        "--pattern",
        choices=tuple(PATTERNS),
        help="intervals shrink, grow or stay (default stepwise)",
    )
    steps.add_argument("--steps", metavar="LIST", help="the compute steps themselves: 0,1,2,6,18")
    steps.add_argument(
        "--order",
        choices=ORDERS,
        help="reuse the last delta (default hold), or forecast it linearly in sigma",
    )


def _settings(args: argparse.Namespace) -> Settings:
    threshold, share = args.high_threshold, args.high_share
    if share is None and threshold is None:
        share = Settings().high_share
    try:
        return Settings(
            mask=args.mask,
            mask_source=_mask_source(args.mask, args.mask_source),
            attention_every=args.attention_every,
            attention_queries=args.attention_queries,
            high_share=share,
            high_threshold=threshold,
            delta_tokens=args.delta_tokens,
            sensitivity=_ascending(_integers(args.sensitivity, "--sensitivity")),
        )
    except ValidationError as error:
        raise ProfileError(f"--{first_mistake(error)}") from None


def _mask_source(mask: str, source: str | None) -> str | None:
    """The source as an absolute path, there already: not missed hours later, in another folder."""
    if mask not in WITH_SOURCE:
        if source is not None:
            raise ProfileError(
                f"--mask_source {source} goes with --mask {' or '.join(WITH_SOURCE)}, not {mask}"
            )
        return None
    if source is None:
        raise ProfileError(f"--mask {mask} needs --mask_source: {WITH_SOURCE[mask]}")
    path = Path(source).absolute()
    there = (path / "config.json").is_file() if mask == "sam2" else path.exists()
    if not there:
        raise ProfileError(f"--mask_source {source}: not found, expected {WITH_SOURCE[mask]}")
    return str(path)


def _integers(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise PlanError(f"{option} {text!r}: expected whole numbers, with commas between") from None


def _ascending(steps: tuple[int, ...]) -> tuple[int, ...]:
    for before, after in pairwise(steps):
        if after <= before:
            raise ProfileError(f"--sensitivity: {after} follows {before}, expected ascending steps")
    return steps


def _check_folder(path: Path, option: str) -> None:
    if not path.parent.is_dir():
        raise PlanError(f"{option} {path}: no folder {path.parent}, make it first")

"""`profiling-dit profile`: prepare a profile with the settings that its runs are recorded with."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from profiling_core.commands.arguments import add_log_options, integers_of
from profiling_core.errors import ProfileError
from profiling_core.files import check_writable
from profiling_core.plan.schema import first_mistake
from profiling_core.profile.profile import Profile, Settings
from profiling_core.profile.summary import settings_lines

WITH_SOURCE = {  # masks that read something, and what --mask-source has to be
    "sam2": "the folder of SAM2's weights (config.json and *.safetensors of transformers)",
    "file": "the masks",
}


def add_profile_command(commands: Any) -> None:
    """Add `profile` to the subcommands of the parser."""
    one = commands.add_parser("profile", help="prepare a profile with its settings")
    one.set_defaults(run=prepare_profile)
    one.add_argument("file", metavar="FILE", help="profile to make; it must not exist yet")
    _add_mask(one.add_argument_group("foreground"))
    _add_attention(one.add_argument_group("attention"))
    _add_deltas(one.add_argument_group("deltas and sensitivity"))
    add_log_options(one)


def prepare_profile(args: argparse.Namespace) -> list[str]:
    """Write a profile that holds settings alone; runs are added with --delta_profile."""
    path = Path(args.file)
    check_writable(path, "FILE")
    if path.exists():
        raise ProfileError(f"{path} exists: settings are made before the first run, into a new one")
    settings = _settings(args)
    Profile(settings).save(path)
    return [
        f"wrote {path}",
        *settings_lines(settings),
        f"next: a full run for every calibration prompt with --delta_profile {path.absolute()}",
    ]


def _add_mask(group: Any) -> None:
    group.add_argument(
        "--mask",
        choices=("pca", "sam2", "motion", "file"),
        default=Settings().mask,
        help="where the foreground mask comes from (default %(default)s)",
    )
    group.add_argument(
        "--mask-source",
        metavar="PATH",
        help="sam2: folder of the weights; file: the masks. Kept as an absolute path, so that runs "
        "from any folder find it",
    )


def _add_attention(group: Any) -> None:
    usual = Settings()
    group.add_argument(
        "--attention-every",
        type=int,
        metavar="N",
        default=usual.attention_every,
        help="measure attention at every N-th step (default %(default)s); 0: not at all",
    )
    group.add_argument(
        "--attention-queries",
        type=int,
        metavar="M",
        help="queries to sample per head (default: by the clip's size)",
    )
    high = group.add_mutually_exclusive_group()
    high.add_argument(
        "--high-share",
        type=float,
        metavar="S",
        help=f"tokens that count as high attention, as a share (default {usual.high_share:g})",
    )
    high.add_argument(
        "--high-threshold",
        type=float,
        metavar="T",
        help="or those above T times the mean attention",
    )


def _add_deltas(group: Any) -> None:
    group.add_argument(
        "--delta-tokens",
        type=int,
        metavar="M",
        default=Settings().delta_tokens,
        help="tokens at which block deltas are compared (default %(default)s)",
    )
    group.add_argument(
        "--sensitivity",
        metavar="STEPS",
        default="",
        help="steps before which a small error is injected, one more run each: 1,3,6,12,20,32",
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
            sensitivity=_ascending(integers_of(args.sensitivity, "--sensitivity")),
        )
    except ValidationError as error:
        field, colon, mistake = first_mistake(error).partition(":")
        raise ProfileError(f"--{field.replace('_', '-')}{colon}{mistake}") from None


def _mask_source(mask: str, source: str | None) -> str | None:
    """The source as an absolute path, there already: not missed hours later, in another folder."""
    if mask not in WITH_SOURCE:
        if source is not None:
            raise ProfileError(
                f"--mask-source {source} goes with --mask {' or '.join(WITH_SOURCE)}, not {mask}"
            )
        return None
    if source is None:
        raise ProfileError(f"--mask {mask} needs --mask-source: {WITH_SOURCE[mask]}")
    path = Path(source).absolute()
    there = (path / "config.json").is_file() if mask == "sam2" else path.exists()
    if not there:
        raise ProfileError(f"--mask-source {source}: not found, expected {WITH_SOURCE[mask]}")
    return str(path)


def _ascending(steps: tuple[int, ...]) -> tuple[int, ...]:
    for before, after in pairwise(steps):
        if after <= before:
            raise ProfileError(f"--sensitivity: {after} follows {before}, expected ascending steps")
    return steps

"""`profiling-dit report`: a profile and plans as a page, or as PNG files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from profiling_core.commands.arguments import (
    add_log_options,
    add_overwrite_option,
    check_new,
)
from profiling_core.commands.report import write_pngs, write_report
from profiling_core.commands.report.drawing import check_packages
from profiling_core.errors import ProfileError
from profiling_core.profile.profile import holds_profile, load_profile
from profiling_core.runtime.options import resolve_plan


def add_report_command(commands: Any) -> None:
    """Add `report` to the subcommands of the parser."""
    one = commands.add_parser("report", help="a profile and plans as one HTML page")
    one.set_defaults(run=report)
    one.add_argument("--profile", required=True, help="a profile recorded by --delta_profile")
    one.add_argument(
        "--plan",
        action="append",
        default=[],
        help="a plan file, or a preset of the profile's model; may be given several times",
    )
    one.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="FILE",
        help="an mp4 or webm to embed, the full run first; may be given several times",
    )
    one.add_argument("--png", metavar="DIR", help="write the figures as PNG files, too")
    one.add_argument("--title", help="of the page (default: the model's name)")
    one.add_argument("-o", "--out", required=True, metavar="HTML", help="page to write")
    add_overwrite_option(one)
    add_log_options(one)


def report(args: argparse.Namespace) -> list[str]:
    """Write the page, and PNG files with --png; one line per thing written."""
    check_packages()
    out = Path(args.out)
    _check_out(out, args)
    _check_pngs(args)
    profile = load_profile(args.profile)
    plans = [resolve_plan(plan, profile.recorded.model.name) for plan in args.plan]
    path = write_report(profile, out, plans=plans, videos=args.video, title=args.title)
    lines = [f"wrote {path} ({path.stat().st_size / 2**20:.2f} MiB): open it in a browser"]
    if args.png is not None:
        written = write_pngs(profile, args.png, plans=plans)
        lines.append(f"wrote {len(written)} figures as PNG into {args.png}")
    return lines


def _check_out(out: Path, args: argparse.Namespace) -> None:
    """Never write the page over what it is made from."""
    inputs = [args.profile, *args.plan, *args.video]
    if holds_profile(out) or any(out.exists() and _same(out, given) for given in inputs):
        raise ProfileError(f"-o {out}: the page would replace a profile, a plan or a video")
    check_new(out, "-o", args)


def _check_pngs(args: argparse.Namespace) -> None:
    """Figures replace nothing either: any PNG file in their folder may be one of them."""
    if args.png is not None:
        for path in sorted(Path(args.png).glob("*.png"))[:1]:
            check_new(path, "--png", args)


def _same(out: Path, given: str) -> bool:
    return Path(given).exists() and out.samefile(given)

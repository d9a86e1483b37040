"""python -m profiling_core: show a plan, write the shipped ones."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from profiling_core.cost import bytes_held, format_bytes, held_anchors, picture, summary_lines
from profiling_core.options import resolve_plan
from profiling_core.plan import CachePlan, PlanError
from profiling_core.presets import MODELS, PRESETS, available, build_preset, plans_folder

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 after one line on stderr for bad input."""
    args = _parser().parse_args(arguments)
    try:
        lines = args.run(args)
    except (PlanError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def show(args: argparse.Namespace) -> list[str]:
    """A readable summary of a preset or a plan file."""
    if args.model not in MODELS:
        raise PlanError(f"--model {args.model}: plans are shipped for {', '.join(MODELS)}")
    for name in ("tokens", "latent"):
        if getattr(args, name) < 1:
            raise PlanError(f"--{name} {getattr(args, name)}: expected at least 1")
    plan = resolve_plan(args.plan, args.model)
    lines = summary_lines(plan)
    lines.append(_grid_line(plan))
    lines += ["", *picture(plan), ""]
    lines += _memory_lines(plan, args)
    others = [name for name in MODELS if name != args.model and args.plan in available(name)]
    if others and args.plan in available(args.model):
        lines.append(f"also shipped for {', '.join(others)}: show it with --model")
    return lines


def write_presets(args: argparse.Namespace) -> list[str]:
    """Make the shipped plans again, as files in `args.out`."""
    folder = Path(args.out)
    if not folder.is_dir():
        raise PlanError(f"--out {folder}: no such folder")
    written = []
    for model in MODELS:
        for preset in PRESETS:
            path = folder / f"{model}.{preset}.json"
            build_preset(model, preset).save(path)
            written.append(f"wrote {path}")
    return written


def _grid_line(plan: CachePlan) -> str:
    return (
        f"made for {plan.steps} {plan.solver} steps, shift {plan.shift:g}, sigma "
        f"{plan.sigmas[0]:.4f} to {plan.sigmas[-1]:.4f}, branches {', '.join(plan.branches)}"
    )


def _memory_lines(plan: CachePlan, args: argparse.Namespace) -> list[str]:
    """Bytes of the anchors for the given sizes, by the plan's formula."""
    held = bytes_held(
        plan,
        tokens=args.tokens,
        stream_itemsize=ITEMSIZE[args.dtype],
        latent_numel=args.latent,
    )
    return [
        f"memory: {held_anchors(plan).formula(plan.model.width)} = {format_bytes(held)} at "
        f"{args.tokens} tokens, {args.latent} latent elements, residual stream in {args.dtype}"
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m profiling_core", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    one = commands.add_parser("show", help="a readable summary of a plan")
    one.add_argument("plan", help="a preset (paper, release, balanced) or a plan file")
    one.add_argument(
        "--model",
        default="wan2.1-t2v-14B",
        help="whose preset to show (default %(default)s); a file says it itself",
    )
    sizes = "(default %(default)s: 832x480, 81 frames)"
    one.add_argument("--tokens", type=int, default=32760, help=f"tokens of the model {sizes}")
    one.add_argument(
        "--latent", type=int, default=16 * 21 * 60 * 104, help=f"elements of the latent {sizes}"
    )
    one.add_argument(
        "--dtype",
        choices=sorted(ITEMSIZE),
        default="float32",
        help="dtype of the residual stream (default %(default)s, as Wan runs)",
    )
    one.set_defaults(run=show)
    all_ = commands.add_parser("presets", help="make the shipped plan files again")
    all_.add_argument("--out", default=str(plans_folder()), help="folder (default: the package's)")
    all_.set_defaults(run=write_presets)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`profiling-dit compare`: full and cached clips of a user's own model, measured."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiling_core.commands.arguments import add_log_options, log
from profiling_core.commands.compare.prompts import pairs_of, read_prompts, read_seeds
from profiling_core.commands.report.drawing import check_packages
from profiling_core.errors import CompareError
from profiling_core.trees.registry import TREES, tree_class
from profiling_core.trees.tree_model import ModelRequest, TreeModel

if TYPE_CHECKING:
    from profiling_core.commands.compare.runs import Comparison
    from profiling_core.lpips import Lpips

INTERRUPTED = 130
DESCRIPTION = """\
Runs your model in full and with every plan, for every prompt and seed, and measures how far the
cached clips are from the full ones and what they save. Writes DIR/table.md, DIR/report.html and
DIR/rows.jsonl. The same command goes on where it was stopped; prompts, seeds and plans may be
added later, any other setting needs a folder of its own.
"""


def add_compare_command(commands: Any) -> None:
    """Add `compare` to the subcommands of the parser."""
    one = commands.add_parser(
        "compare", help="full and cached clips of your own model, measured", description=DESCRIPTION
    )
    one.set_defaults(run=compare_clips)
    add_model_options(
        one.add_argument_group("model and clip (defaults: those of the tree's command line)")
    )
    _add_comparison(one.add_argument_group("comparison"))
    add_log_options(one)


def compare_clips(args: argparse.Namespace) -> list[str]:
    """Take every run that is missing; the table and what was written."""
    work, settings = prepare(args)
    with work.folder.opened(settings):
        return run(work, settings)


def prepare(args: argparse.Namespace) -> tuple[Comparison, dict[str, Any]]:
    """Everything that can be checked before weights are read; nothing is written."""
    prompts, seeds = read_prompts(Path(args.prompts)), read_seeds(args.seeds)
    first, *_ = prompts.values()
    model = tree_class(args.tree)(request_of(args), first.prompt)
    for number, one in prompts.items():
        try:
            model.read_pictures(one.pictures)
        except (CompareError, OSError) as error:
            raise CompareError(f"--prompts {args.prompts}: line {number}: {error}") from None
    pairs = pairs_of(prompts.values(), seeds)

    # torch takes seconds to import; a wrong argument is refused at once
    from profiling_core.commands.compare.exports import Exports
    from profiling_core.commands.compare.folder import Folder, check_out
    from profiling_core.commands.compare.methods import methods_of
    from profiling_core.commands.compare.runs import Comparison, facts_of

    check_packages("matplotlib", "skimage")
    methods = methods_of(args.plans, model)
    lpips = _lpips(args.lpips_weights, model)
    facts = facts_of(model.device)
    settings = {"tree": args.tree, **model.settings, "device": facts["device"]}
    settings["lpips"] = None if lpips is None else lpips.sha256
    check_out(Path(args.out), settings, model.clip_bytes, len(pairs))
    folder = Folder(Path(args.out))
    exports = Exports(folder.path, model, pairs) if args.save_videos else None
    return Comparison(model, folder, pairs, methods, lpips, exports, facts), settings


def run(work: Comparison, settings: dict[str, Any]) -> list[str]:
    """The missing runs, with the results written anew after every clip."""
    from profiling_core.commands.compare.results import closing_lines, write_results

    left, total = work.left(), len(work.pairs) * (1 + len(work.methods))
    log.info(f"{work.model.describe()}: {total - left} of {total} runs are done")
    try:
        if left:
            with work.model.loaded():
                work.run(lambda: write_results(work, settings))
        write_results(work, settings)
    except KeyboardInterrupt:
        done = total - work.left()
        log.error(
            f"interrupted: {done} of {total} runs are done, the same command goes on from there"
        )
        raise SystemExit(INTERRUPTED) from None
    return closing_lines(work)


def request_of(args: argparse.Namespace) -> ModelRequest:
    """The model and clip that the options of `add_model_options` name."""
    try:
        further = shlex.split(args.tree_options)
    except ValueError as error:
        raise CompareError(f"--tree-options {args.tree_options!r}: {error}") from None
    return ModelRequest.of(args, args.model, further)


def _lpips(paths: Sequence[str] | None, model: TreeModel) -> Lpips | None:
    if paths is None:
        return None
    from profiling_core.lpips import SMALLEST_SIDE, Lpips

    if len(paths) > 2:
        raise CompareError(f"--lpips-weights: {len(paths)} paths, expected one folder or two files")
    _, height, width = model.clip_shape
    if min(height, width) < SMALLEST_SIDE:
        raise CompareError(
            f"--lpips-weights: LPIPS needs {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, the clips "
            f"have {height} x {width}: leave it out"
        )
    return Lpips.load(*paths, device=model.device)


def add_model_options(group: Any) -> None:
    """Add the options of a model and its clip, under the same names on both trees."""
    add = group.add_argument
    add("--tree", choices=tuple(TREES), required=True, help="whose model")
    add("--model", "--task", metavar="NAME", help="t2v-14B, t2v-1.3B, HYVideo-T/2-cfgdistill, ...")
    add("--ckpt-dir", metavar="DIR", help="Wan2.1: checkpoint folder; HunyuanVideo: model base")
    add("--dit-weight", metavar="PATH", help="HunyuanVideo: the transformer's file or folder")
    add("--size", metavar="W*H", help="width*height in pixels on both trees, as 832*480")
    add("--frame-num", type=int, metavar="N", help="frames, 4n+1")
    add("--steps", type=int, metavar="N", help="steps of the solver")
    add("--solver", metavar="NAME", help="Wan2.1: unipc or dpm++")
    add("--shift", type=float, metavar="S", help="of the noise levels")
    add("--guidance", type=float, metavar="G", help="scale; HunyuanVideo: the embedded one")
    add(
        "--tree-options",
        default="",
        metavar="TEXT",
        help="further options of the tree's own command line, after an equals sign: "
        '--tree-options="--t5_cpu --offload_model false"',
    )


def _add_comparison(group: Any) -> None:
    add = group.add_argument
    add(
        "--prompts",
        required=True,
        metavar="FILE",
        help="UTF-8, a prompt a line, # a comment; .jsonl: objects of prompt, image, last_image",
    )
    add(
        "--seeds",
        default="1",
        metavar="N",
        help="how many, from 0 (3), or which, with commas (7,8,9; one: 42,); default %(default)s",
    )
    add(
        "--plans",
        nargs="+",
        required=True,
        metavar="PLAN",
        help="presets of the model or plan files; the full run is always taken, as reference",
    )
    add("--out", required=True, metavar="DIR", help="folder of the comparison, made if missing")
    add(
        "--lpips-weights",
        nargs="+",
        metavar="PATH",
        help="torchvision's AlexNet and lpips' heads: their folder, or the two files "
        "(alexnet-owt-7be5be79.pth, alex.pth)",
    )
    add(
        "--save-videos",
        action="store_true",
        help="also write every clip as mp4 for VBench and as PNG frames for FID tools",
    )

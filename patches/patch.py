"""Put `--delta_cache` and `--delta_profile` into a checkout of an official repository."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from anchors import load_upstreams
from commits import (
    HOLDS,
    LACKS,
    add_to_record,
    check_history,
    commit_of,
    commit_to_record,
    read_record,
    result_of,
)
from edits import InputError, PatchError
from proofs import lines_of, prove
from trees import Tree, apply, kind_of, read_tree, revert

HERE = Path(__file__).resolve().parent
RECORD = HERE / "upstreams.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when it is done or holds, 1 when it is refused or does not hold, 2 for bad input."""
    args = _parser().parse_args(arguments)
    try:
        return args.run(args)
    except PatchError as error:
        code, problem = 1, error
    except (InputError, OSError) as error:
        code, problem = 2, error
    sys.stderr.write(f"error: {' '.join(str(problem).split())}\n")
    return code


def status(args: argparse.Namespace) -> int:
    """Kind, commit, state, and whether the commit has been checked."""
    upstream = kind_of(args.folder, load_upstreams(HERE))
    try:
        state = _state(read_tree(args.folder, [upstream]))
    except PatchError as error:
        state = str(error)
    commit = commit_of(args.folder)
    _say(f"tree: {upstream.name}", f"state: {state}")
    _say(f"commit: {commit or 'none, no git checkout'}")
    if commit:
        entry = read_record(args.record).get(upstream.name, {}).get(commit)
        _say(f"checked: {entry['checked']}, {entry['result']}" if entry else "checked: not yet")
    return 0


def apply_lines(args: argparse.Namespace) -> int:
    """Insert the lines."""
    tree = read_tree(args.folder, load_upstreams(HERE))
    apply(tree)
    _say(f"{args.folder}: inserted", *_where(tree))
    return 0


def revert_lines(args: argparse.Namespace) -> int:
    """Take the lines out."""
    revert(read_tree(args.folder, load_upstreams(HERE)))
    _say(f"{args.folder}: the inserted lines are out, every other byte is as it was")
    return 0


def diff(args: argparse.Namespace) -> int:
    """Print what apply inserts."""
    data = read_tree(args.folder, load_upstreams(HERE)).diff()
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    return 0


def check(args: argparse.Namespace) -> int:
    """Prove on a copy that the patch does what its manifest promises."""
    proofs = prove(read_tree(args.folder, load_upstreams(HERE)))
    _say(*proofs)
    return 0 if result_of(proofs) == HOLDS else 1


def rebase(args: argparse.Namespace) -> int:
    """Put the lines at the anchors of this commit, whether they are in the tree or not."""
    tree = read_tree(args.folder, load_upstreams(HERE))
    commit = commit_to_record(tree) if args.record else None
    result = result_of(prove(tree))
    if commit:
        add_to_record(args.record, tree.upstream.name, {commit: result})
    if result != HOLDS:
        raise PatchError(result)
    new = tree.patched()
    stays = new == tree.now
    done = "the lines are at this commit's anchors" if stays else "put at this commit's anchors"
    tree.write(new)
    _say(f"{args.folder}: {done}", *_where(tree))
    return 0


def history(args: argparse.Namespace) -> int:
    """Check every commit of a git repository, bare or not."""
    past = check_history(args.folder, load_upstreams(HERE))
    for same in past.contents:
        _say(f"{len(same):4} commit(s), first {same[0][:10]}: {past.results[same[0]]}")
    results = list(past.results.values())
    held, absent = results.count(HOLDS), results.count(LACKS)
    broken = len(results) - held - absent
    _say(
        f"{past.name}: {len(results)} commits, {len(past.contents)} distinct contents: "
        f"{held} hold, {broken} do not, {absent} without the files"
    )
    if args.record:
        add_to_record(args.record, past.name, past.results)
    return 1 if broken or not held else 0


def _state(tree: Tree) -> str:
    if tree.untouched:
        return "not patched"
    if tree.complete and tree.patched() == tree.now:
        return "patched"
    return "patched, but not where this commit's anchors are: run rebase"


def _where(tree: Tree) -> list[str]:
    """One line per insertion: where its anchor is, in the file as it was read."""
    places = tree.places()
    return [
        f"  {one.name}: {one.file}, {len(one.lines)} line(s) {one.place} "
        f"{lines_of(places[one.name])}"
        for one in tree.upstream.insertions
    ]


def _say(*lines: object) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="patch.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    runs = {
        "status": status,
        "apply": apply_lines,
        "revert": revert_lines,
        "diff": diff,
        "check": check,
        "rebase": rebase,
        "history": history,
    }
    for name, run in runs.items():
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.add_argument("folder", type=Path, metavar="DIR", help="top directory of a checkout")
        command.set_defaults(run=run, record=RECORD)
        if name in ("rebase", "history"):
            command.add_argument(
                "--record",
                nargs="?",
                type=Path,
                const=RECORD,
                default=None,
                metavar="FILE",
                help="note commit, date and result in FILE (upstreams.json beside this script)",
            )
    return parser


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    if hasattr(signal, "SIGPIPE"):  # nobody reads on: `patch.py diff ... | head`
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())

"""`profiling-dit batch`: the clips of a jobs file, on one machine or a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiling_core.commands.arguments import add_log_options, at_least, log, shown
from profiling_core.commands.batch.jobs import Line, mistake_in, read_jobs
from profiling_core.errors import BatchError, UserError
from profiling_core.runtime.exit_codes import Interrupts
from profiling_core.runtime.terminal import printable, write_to

if TYPE_CHECKING:
    from profiling_core.commands.batch.clips import Clip
    from profiling_core.commands.batch.run import Batch, Runner

FAILED = 1
LEAVE_SECONDS = 15.0  # after a signal, mostly Ray's
MOST_MISTAKES = 10  # that are shown
DESCRIPTION = """\
Makes every clip of a jobs file, one JSON object a line: prompt and tree (wan, hunyuan), and where
they differ from the tree's defaults task, seed, size, frame_num, steps, solver, shift, guidance,
plan, ckpt_dir, dit_weight, name; image and last_image where the task starts from pictures, relative
to the jobs file. With Ray every worker keeps its model loaded; without it the
clips are made one after the other. The same command goes on where it was stopped.
"""


def add_batch_command(commands: Any) -> None:
    """Add `batch` to the subcommands of the parser."""
    one = commands.add_parser(
        "batch", help="many clips, on one machine or a Ray cluster", description=DESCRIPTION
    )
    add = one.add_argument
    add("jobs", metavar="JOBS.jsonl", help="the jobs file")
    add("--out", required=True, metavar="DIR", help="folder of the clips, made if missing")
    add(
        "--gpus-per-clip",
        type=at_least(0),
        metavar="N",
        help="GPUs that share a clip (default: 1 where there are GPUs, else 0, the CPU)",
    )
    add(
        "--workers", type=at_least(1), metavar="N", help="clips at a time (default: as many as fit)"
    )
    add("--address", metavar="ADDR", help="of a Ray cluster: host:port, ray://host:port or auto")
    add(
        "--retries",
        type=at_least(0),
        default=1,
        metavar="N",
        help="of a failed clip, default %(default)s",
    )
    add("--skip-bad", action="store_true", help="run the good lines of a file with bad ones")
    add("--no-ray", action="store_true", help="one after the other in this process")
    add_log_options(one)
    one.set_defaults(run=make_clips)


def make_clips(args: argparse.Namespace) -> list[str]:
    """Make what is missing; where it is and how it went. Exit code 1 when a clip failed."""
    clips = checked_clips(Path(args.jobs), skip_bad=args.skip_bad)

    from profiling_core.commands.batch.folder import Folder
    from profiling_core.commands.batch.run import Batch

    folder = Folder(Path(args.out))
    folder.check()
    with folder.opened():
        batch = Batch(clips, folder, args.retries)
        left = len(batch.left())
        log.info(f"{len(clips) - left} of {len(clips)} clips are done")
        batch.finish()  # from now on there is a summary, whatever happens
        with Interrupts(LEAVE_SECONDS, batch.leave) as interrupts:
            try:
                failed = batch.run(runner_of(args), check=interrupts.check) if left else 0
            except KeyboardInterrupt:
                log.error(f"interrupted: {_go_on(batch)}")
                raise SystemExit(interrupts.exit_code) from None
    lines = [
        f"{len(clips) - failed} of {len(clips)} clips in {folder.path / 'clips'}",
        f"wrote {folder.path / 'summary.csv'} and {folder.path / 'index.html'}",
    ]
    if failed:
        write_to(sys.stdout, "".join(f"{printable(line)}\n" for line in shown(lines, args)))
        if batch.disk_full:
            log.error(f"the disk is full: make room, {_go_on(batch)}")
        else:
            log.error(f"{failed} clips failed; their errors are in {folder.path / 'failed'}")
        raise SystemExit(FAILED)
    return lines


def _go_on(batch: Batch) -> str:
    done, total = len(batch.rows), len(batch.clips)
    return f"{done} of {total} clips are done; go on with the same command"


def checked_clips(path: Path, *, skip_bad: bool) -> list[Clip]:
    """The clips of a jobs file; BatchError lists what is wrong with its lines."""
    lines, mistakes = read_jobs(path)
    found, more = _clips(lines)
    mistakes = sorted(mistakes + more, key=lambda mistake: int(mistake.split(":")[0].split()[1]))
    for mistake in mistakes if skip_bad else ():
        log.warning(f"skipped: {mistake}")
    if mistakes and not skip_bad:
        shown = "; ".join(mistakes[:MOST_MISTAKES])
        rest = len(mistakes) - MOST_MISTAKES
        raise BatchError(
            f"{path}: {shown}{f'; and {rest} more' if rest > 0 else ''}; nothing was started "
            "(--skip-bad runs the other lines)"
        )
    if not found:
        raise BatchError(f"{path}: no line that can run")
    return found


def runner_of(args: argparse.Namespace) -> Runner:
    """Ray where it is installed, else this process."""
    from profiling_core.commands.batch.attempts import Sequential
    from profiling_core.commands.batch.cluster import Cluster, Size, missing

    absent = "as asked by --no-ray" if args.no_ray else missing()
    if absent is not None:
        for name in ("address", "workers", "gpus_per_clip"):
            if getattr(args, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise BatchError(f"{option} {getattr(args, name)} needs Ray: {absent}")
        log.info(f"without Ray, clip by clip in this process ({absent})")
        return Sequential()
    gpus = _gpus_here(args) if args.gpus_per_clip is None else args.gpus_per_clip
    size = Size(args.workers, max(1, gpus), min(1, gpus))
    return Cluster(size, args.address)


def _clips(lines: Sequence[Line]) -> tuple[list[Clip], list[str]]:
    """What the trees say to every job, and clips whose names or contents meet."""
    from profiling_core.commands.batch.clips import Checker
    from profiling_core.commands.batch.folder import check_names

    checker, found, mistakes = Checker(), [], []
    for line in lines:
        try:
            found.append((line.number, checker.clip(line.job)))
        except (UserError, OSError) as error:
            mistakes.append(mistake_in(line.number, error))
    wrong = check_names(found)
    bad = {int(text.split(":")[0].split()[1]) for text in wrong}
    return [clip for number, clip in found if number not in bad], mistakes + wrong


def _gpus_here(args: argparse.Namespace) -> int:
    """One where this machine has GPUs; of a cluster it has to be said."""
    import torch

    return int(args.address is None and torch.cuda.is_available())

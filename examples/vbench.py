"""VBench's prompts as a jobs file, and the finished clips as VBench's tools expect them.

    python examples/vbench.py jobs PROMPTS -o vbench.jsonl --tree wan --task t2v-14B --plans fast
    python -m profiling_core batch vbench.jsonl --out out/clips
    python examples/vbench.py layout out/clips

PROMPTS is VBench's own list: VBench_full_info.json, or one of its prompts/*.txt, a prompt a line.
VBench wants five clips of every prompt, the seeds 0 to 4. `layout` links every clip as
DIR-vbench/PLAN/<prompt>-<n>.mp4, with the prompts of the file names beside, and prints the commands
that measure them. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from profiling_core.commands.compare.exports import VBENCH, file_names
from profiling_core.errors import BatchError, UserError
from profiling_core.files import write_whole
from profiling_core.runtime.terminal import printable, write_to

SEEDS = 5
FULL = "full"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 after one line on stderr for bad input."""
    args = build_parser().parse_args(arguments)
    try:
        lines = args.run(args)
    except (UserError, OSError) as error:
        write_to(sys.stderr, f"error: {printable(str(error))}\n")
        return 2
    write_to(sys.stdout, "".join(f"{printable(line)}\n" for line in lines))
    return 0


def write_jobs(args: argparse.Namespace) -> list[str]:
    """A job for every prompt, seed and plan."""
    prompts = read_prompts(Path(args.prompts))
    shared = {name: getattr(args, name) for name in ("tree", "task", "size", "steps")}
    shared = {name: value for name, value in shared.items() if value is not None}
    jobs = [
        {**shared, "prompt": prompt, "seed": seed} | ({} if plan == FULL else {"plan": plan})
        for plan in args.plans
        for prompt in prompts
        for seed in range(args.seeds)
    ]
    text = "".join(json.dumps(job, ensure_ascii=False) + "\n" for job in jobs)
    target = Path(args.out)
    write_whole(target, text.encode())
    return [f"{len(jobs)} jobs of {len(prompts)} prompts in {target}"]


def read_prompts(path: Path) -> list[str]:
    """The prompts of VBench's JSON or text file, each once; BatchError for another file."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        try:
            found = [entry["prompt_en"] for entry in json.loads(text)]
        except (ValueError, TypeError, KeyError) as error:
            raise BatchError(
                f"{path}: expected VBench's list of objects with prompt_en ({error})"
            ) from None
    else:
        found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise BatchError(f"{path}: no prompt in it")
    return list(dict.fromkeys(found))


def lay_out(args: argparse.Namespace) -> list[str]:
    """Link the finished clips by their prompts; the commands that measure them."""
    out = Path(args.folder)
    rows = finished(out)
    names = dict(zip(dict.fromkeys(r["prompt"] for r in rows), _names(rows), strict=True))
    prompts: dict[str, dict[str, str]] = {}
    for row in rows:
        name = f"{names[row['prompt']]}-{row['seed']}.mp4"
        target = out.parent / f"{out.name}-vbench" / row["plan"] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(out / "clips" / f"{row['name']}.mp4", target)
        prompts.setdefault(row["plan"], {})[name] = row["prompt"]
    return list(_commands(out.parent / f"{out.name}-vbench", prompts))


def finished(out: Path) -> list[dict[str, Any]]:
    """Rows of the clips that are there; BatchError where there is no batch."""
    summary = out / "summary.json"
    if not summary.is_file():
        raise BatchError(f"{out}: no summary.json, run the batch into it first")
    rows = [row for row in json.loads(summary.read_text("utf-8")) if row["state"] == "done"]
    if not rows:
        raise BatchError(f"{out}: no clip is finished yet")
    return rows


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return file_names(list(dict.fromkeys(row["prompt"] for row in rows)))


def _link(clip: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    target.unlink(missing_ok=True)
    try:
        os.link(clip, target)
    except OSError:
        shutil.copyfile(clip, target)


def _commands(folder: Path, prompts: dict[str, dict[str, str]]) -> Iterator[str]:
    for plan, named in prompts.items():
        file = folder / f"{plan}.json"
        file.write_text(json.dumps(named, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        yield (
            f"vbench evaluate --videos_path {folder / plan} --dimension {' '.join(VBENCH)} "
            f"--mode=custom_input --prompt_file {file}"
        )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="command")
    jobs = commands.add_parser("jobs", help="write the jobs file")
    add = jobs.add_argument
    add("prompts", metavar="PROMPTS", help="VBench_full_info.json or a file of its prompts")
    add("-o", "--out", required=True, metavar="JOBS.jsonl")
    add("--tree", choices=("wan", "hunyuan"), required=True)
    add("--task", help="of the tree, t2v-14B")
    add("--size", help="width*height")
    add("--steps", type=int)
    add("--seeds", type=int, default=SEEDS, help="clips of a prompt (default %(default)s)")
    add("--plans", nargs="+", default=[FULL], help="presets or plan files; 'full' is none")
    jobs.set_defaults(run=write_jobs)
    layout = commands.add_parser("layout", help="the clips as VBench's tools expect them")
    layout.add_argument("folder", metavar="DIR", help="--out of the batch")
    layout.set_defaults(run=lay_out)
    return parser


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # nobody reads on
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())

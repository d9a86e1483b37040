"""What a batch costs beyond its clips, and whether clips of one size should share a model call.

overhead: many jobs that do nothing but write a small file, in this process and on Ray with two
workers; milliseconds per job, the start of Ray apart. together: one model call on 1, 2 and 4 clips
of the Wan miniature and of the model of middle size; seconds per clip over those of one clip.
Rows go to results/batch.jsonl.

    python benchmarks/batch.py --threads 1
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common import alternate, append_row, default_device, environment, table
from engine import MID_LATENT, MID_SIZE, MINIATURES
from profiling_core.batch.attempts import Say, Sequential
from profiling_core.batch.clips import Clip, Made
from profiling_core.batch.cluster import Cluster, Size, missing
from profiling_core.batch.folder import Folder
from profiling_core.batch.jobs import Job
from profiling_core.batch.run import Batch, Runner

NAME = "batch"
PARTS = ("overhead", "together")
COUNTS = (1, 2, 4)
MINI_LATENT = (16, 9, 16, 16)


class Nothing:
    """Makes clips of four frames of noise in no time; saves them as they are."""

    ranks: Any = None

    def make(self, clip: Clip, write: Any, say: Say) -> Made:
        write(self, torch.zeros(3, 4, 16, 16))
        return Made(0.0, 0.0, 0.0, 1, 1, 1, 0, "nothing")

    def save(self, video: torch.Tensor, path: Path) -> None:
        path.write_bytes(video.numpy().tobytes())


def overhead(jobs: int) -> Iterator[dict[str, Any]]:
    """Milliseconds per job without and with Ray."""
    runners = {"this process": lambda: Sequential(Nothing())}
    if missing() is None:
        runners["Ray, 2 workers"] = lambda: Cluster(Size(workers=2), maker=Nothing)
    for name, make in runners.items():
        start = time.perf_counter()
        runner = make()
        ready = time.perf_counter() - start
        seconds = _batch(runner, jobs)
        yield {
            **{"part": "overhead", "runner": name, "jobs": jobs},
            **{"start_seconds": round(ready, 2), "ms_per_job": round(1000 * seconds / jobs, 2)},
        }


def _batch(runner: Runner, jobs: int) -> float:
    clips = [
        Clip(Job(prompt="nothing", tree="wan", seed=n), f"{n:012x}", f"{n}", "none", "full")
        for n in range(jobs)
    ]
    with tempfile.TemporaryDirectory() as folder, Folder(Path(folder) / "out").opened() as opened:
        start = time.perf_counter()
        failed = Batch(clips, opened).run(runner, quiet=True)
        seconds = time.perf_counter() - start
    if failed:
        raise RuntimeError(f"{failed} of {jobs} jobs failed")
    return seconds


def together(rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds per clip of a call on several, over those of a call on one; processor time."""
    device = default_device()
    subjects = (
        (MINIATURES["wan"](device, False), MINI_LATENT),
        (MID_SIZE["wan"](torch.float32, device), MID_LATENT),
    )
    for subject, latent in subjects:
        calls = {str(count): _call(subject.model, latent, count) for count in COUNTS}
        found = alternate(calls, rounds, device, time.process_time)
        one = median(found["1"])
        for count in COUNTS:
            ratios = [a / count / b for a, b in zip(found[str(count)], found["1"], strict=True)]
            yield {
                **{"part": "together", "model": subject.name, "clips": count, "rounds": rounds},
                **{"seconds_of_one": round(one, 4), "per_clip": round(median(ratios), 3)},
            }


def _call(model: Any, latent: tuple[int, ...], count: int) -> Any:
    """One call of a Wan model on so many clips; all text rows in use."""
    _, frames, rows, columns = latent
    clips = [torch.randn(latent) for _ in range(count)]
    texts = [torch.randn(model.text_len, model.text_dim) for _ in range(count)]
    tokens = frames * rows * columns // 4

    def run() -> None:
        with torch.no_grad():
            model(clips, torch.full((count,), 500), texts, tokens)

    return run


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    lines = []
    for part in args.parts:
        rows = overhead(args.jobs) if part == "overhead" else together(args.rounds)
        for row in rows:
            append_row(NAME, {**row, **environment(default_device())})
            lines.append([f"{key} {value}" for key, value in list(row.items())[1:]])
    most = max(map(len, lines))
    lines = [line + [""] * (most - len(line)) for line in lines]
    sys.stdout.write(table([""] * most, lines) + "\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""What recording a profile costs: seconds and memory over a plain run, with and without attention.

Both miniatures through their pipelines (whole denoising loops and the making of the arrays), and
models of middle size for a few calls. On a CPU the seconds are the processor's, which other work
beside the run changes little. Rows go to results/recording.jsonl.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from calls import Subject
from common import (
    TREES,
    alternate,
    append_row,
    default_device,
    environment,
    paired_ratio,
    peak_memory,
    quiet_log,
    table,
)
from engine import MID_SIZE
from pipelines import BUILD, Tree
from profiling_core.profile import Settings
from profiling_core.profiler import Recorder

VARIANTS = {
    "full": None,
    "without attention": Settings(attention_every=0),
    "with attention": Settings(),
}
MID_STEPS = 10


def main() -> int:
    args = build_parser().parse_args()
    quiet_log()
    torch.set_num_threads(args.threads)
    device = default_device()
    if args.memory_of:
        name, variant = args.memory_of
        BENCHES[name](device)[variant]()
        sys.stdout.write(f"{most_bytes(device)}\n")
        return 0
    lines = []
    for name in args.benches:
        variants = BENCHES[name](device)
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        seconds = alternate(variants, args.rounds, device, clock)
        memory = {variant: memory_of(name, variant, args.threads) for variant in variants}
        for variant in variants:
            row = {
                "subject": name,
                "variant": variant,
                "clock": clock.__name__,
                "seconds": [round(value, 4) for value in seconds[variant]],
                "over_full": round(paired_ratio(seconds[variant], seconds["full"]), 4),
                "most_bytes": memory[variant],
                "memory_over_full": round(memory[variant] / memory["full"], 4),
            }
            append_row("recording", {**row, **environment(device)})
            cells = (f"{row['over_full']:.3f}", f"{row['memory_over_full']:.3f}")
            lines.append([name, variant, *cells, f"{memory[variant] / 2**20:.0f}"])
    header = ["subject", "variant", "seconds / full", "memory / full", "MiB"]
    sys.stdout.write(table(header, lines) + "\n")
    return 0


def miniature(tree: str, device: torch.device) -> dict[str, Callable[[], Any]]:
    """One clip of a miniature, latent to latent, the profile's arrays included."""
    made: Tree = BUILD[tree](device)
    inputs = made.inputs(made.prompt, 42)

    def run(settings: Settings | None) -> None:
        if settings is None:
            made.denoise(inputs)
            return
        recorder = made.recorder(settings)
        latent = made.denoise(inputs, recorder=recorder)
        recorder.finish(latent, prompt=made.prompt, seed=42, guidance=made.guidance)

    return {name: lambda settings=settings: run(settings) for name, settings in VARIANTS.items()}


def middle(tree: str, device: torch.device) -> dict[str, Callable[[], Any]]:
    """MID_STEPS calls of a model of middle size; steps and branches as its family has them."""
    subject: Subject = MID_SIZE[tree](torch.float32, device)
    family, fingerprint = subject.planned.family, subject.planned.fingerprint
    sigmas = tuple(1 - step / MID_STEPS for step in range(MID_STEPS))

    def run(settings: Settings | None) -> None:
        if settings is None:
            for _ in range(MID_STEPS * len(family.branches)):
                subject.call()
            return
        recorder = Recorder(
            settings=settings,
            model=fingerprint,
            steps=MID_STEPS,
            sigmas=sigmas,
            solver="euler",
            shift=1.0,
            branches=family.branches,
        )
        with recorder.attached(subject.model):
            for step in range(MID_STEPS):
                for branch in family.branches:
                    recorder.begin(step, branch)
                    subject.call()
        recorder.finish(recorder.recording.latents[0], prompt="random", seed=0)

    return {name: lambda settings=settings: run(settings) for name, settings in VARIANTS.items()}


BENCHES: dict[str, Callable[[torch.device], dict[str, Callable[[], Any]]]] = {
    **{f"{tree} miniature": lambda device, tree=tree: miniature(tree, device) for tree in TREES},
    **{f"{tree} mid-size": lambda device, tree=tree: middle(tree, device) for tree in TREES},
}


def memory_of(name: str, variant: str, threads: int) -> int:
    """Most bytes of a fresh process that runs the variant once."""
    command = [sys.executable, __file__, "--memory-of", name, variant, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def most_bytes(device: torch.device) -> int:
    """Of this process: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return peak_memory(device)
    # not getrusage: a child's ru_maxrss begins with what its parent held
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benches", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory-of", nargs=2, metavar=("BENCH", "VARIANT"), help="used by itself")
    return parser


if __name__ == "__main__":
    sys.exit(main())

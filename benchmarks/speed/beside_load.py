"""What another load on the machine costs a short run, by how torch's threads wait.

A run of the Wan miniature on --threads processors, alone and beside one busy loop on the same
processors, the least of the rounds: other work only adds. "passive": as every entry sets it;
"spinning": as libgomp waits by itself. Rows go to results/beside_load.jsonl.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile

from benchmarks.lib import ROOT
from benchmarks.lib.command_line import Parser, log
from benchmarks.lib.rows import append_row, default_device, environment, table

STEPS = 4
WAITING = {"passive": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}  # libgomp's own default


def main() -> int:
    args = build_parser().parse_args()
    if hasattr(os, "sched_setaffinity"):  # what is started here stays on these processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    seconds: dict[tuple[str, int], list[float]] = {}
    for number in range(args.rounds):
        for waiting in args.waiting:
            for busy in (0, 1):
                taken = run_seconds(args.threads, WAITING[waiting], busy)
                seconds.setdefault((waiting, busy), []).append(taken)
                log(f"round {number + 1}: {waiting}, {busy} busy loops: {taken:.2f} s")
    lines = []
    for waiting in args.waiting:
        alone, beside = seconds[waiting, 0], seconds[waiting, 1]
        row = {"tree": "wan", "steps": STEPS, "threads": args.threads, "waiting": waiting}
        row |= {"rounds": args.rounds, "alone": min(alone), "beside": min(beside)}
        row["ratio"] = round(row["beside"] / row["alone"], 3)
        append_row("beside_load", {**row, **environment(default_device())})
        lines.append([waiting, *(f"{row[name]:.2f}" for name in ("alone", "beside", "ratio"))])
    sys.stdout.write(table(["waiting", "s alone", "s beside a busy loop", "ratio"], lines) + "\n")
    return 0


def run_seconds(threads: int, waiting: dict[str, str], busy: int) -> float:
    """Seconds of the denoising loop, beside so many busy loops."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "RANK")}
    environ = {**inherited, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), **waiting}
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "Wan2.1" / "generate.py"), "--task", "t2v-mini"]
            command += ["--sample_steps", str(STEPS), "--base_seed", "1"]
            command += ["--save_file", f"{folder}/clip.mp4"]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    found = re.search(r"denoising took ([\d.]+) s", done.stdout)
    if found is None:
        raise ValueError(f"no seconds in the log of the run: {done.stdout[-200:]}")
    return float(found[1])


def build_parser() -> Parser:
    parser = Parser(__doc__, rounds=5)
    parser.set_defaults(threads=2)
    parser.add_argument("--waiting", nargs="+", choices=WAITING, default=list(WAITING))
    return parser


if __name__ == "__main__":
    sys.exit(main())

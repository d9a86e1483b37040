"""Records what examples/demo.py shows: rows in results/demo.jsonl.

python -m benchmarks.speed.demo --rounds 5
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from benchmarks.lib.command_line import Parser
from benchmarks.lib.rows import append_row, default_device, environment
from examples import demo


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    for name in args.trees:
        prompt = demo.PROMPTS[name]
        asked = {"prompt": prompt, "seed": args.seed, "rounds": args.rounds}
        runs = demo.run_all(name, demo.load(name, prompt), prompt, args.seed, args.rounds)
        for run in runs:
            found = environment(default_device())
            append_row("demo", {**row(name, run, runs[0]), **asked, **found})
        sys.stdout.write(demo.table([demo.cells(name, run, runs[0]) for run in runs]) + "\n")
    return 0


def row(tree: str, run: demo.Run, full: demo.Run) -> dict[str, Any]:
    """What the demo's table shows, in numbers."""
    quality = run.quality.as_row() if run.quality else {}
    return {
        "tree": tree,
        "run": run.name,
        "solver": run.stats.solver,
        "steps": run.stats.steps,
        "seconds": round(run.stats.denoise_seconds, 3),
        "ratio": round(run.ratio(full), 3),
        "ideal": round(run.ideal, 4),
        **{name: round(value, 4) for name, value in quality.items()},
        "bytes_held": run.stats.peak_bytes,
    }


def build_parser() -> Parser:
    parser = Parser(__doc__, rounds=5)
    parser.add_argument("--seed", type=int, default=42, help="of the noise, drawn on the CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())

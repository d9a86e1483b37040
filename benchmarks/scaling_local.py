"""The miniatures' loops on the processes of one launch, in full and with a plan: for scaling.py.

torchrun --nproc_per_node=2 benchmarks/scaling_local.py found.json ROUNDS wan hunyuan
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from common import alternate, paired_ratio, quiet_log
from pipelines import BUILD, Tree
from profiling_core.parallel.degrees import Degrees, world_size
from profiling_core.parallel.ranks import start

SEED, PLAN = 42, "balanced"


def main(target: str, rounds: str, *trees: str) -> None:
    quiet_log()
    torch.set_num_threads(1)
    device = torch.device("cpu")
    ranks = start(Degrees(ulysses=world_size()), device)
    found = []
    for name in trees:
        tree = BUILD[name](device, fp32=True, ranks=ranks)
        found.append({"tree": name, "processes": ranks.world, **loops(tree, int(rounds))})
    if ranks.first:
        Path(target).write_text(json.dumps(found))
    if ranks.world > 1:
        dist.destroy_process_group()


def loops(tree: Tree, rounds: int) -> dict[str, Any]:
    """Seconds of the denoising loop in turn, and the plan's speed-up round by round."""
    inputs, plan = tree.inputs(tree.prompt, SEED), tree.plan(PLAN)
    runs = {"full": lambda: tree.denoise(inputs), PLAN: lambda: tree.denoise(inputs, plan)}
    seconds = alternate(runs, rounds, torch.device("cpu"))
    return {
        "rounds": rounds,
        "full_seconds": round(median(seconds["full"]), 3),
        "plan_seconds": round(median(seconds[PLAN]), 3),
        "speedup": round(paired_ratio(seconds["full"], seconds[PLAN]), 3),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])

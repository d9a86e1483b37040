"""run_tiny.py's Wan2.1 on two processes: upstream's USP forward and FSDP with the cache.

    torchrun --nproc_per_node=2 tests/upstream/run_tiny_parallel.py ../Wan2.1

CPU, gloo. Upstream's own parallel forward and sharding are applied to the tiny models as its
pipelines do it; xfuser's attention and its groups are stood in for by plain collectives, and FSDP
gets the CPU and fp32. Every rank compares its result with a naive walk on the same wrapped
model.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shutil
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "patches"))

import anchors
import stand_ins
from anchors import load_upstreams
from profiling_core.engine.delta_cache import DeltaCache
from stand_ins import attention
from tiny_upstreams import FAMILIES, TinyWan
from trees import apply, read_tree

MODES = {"USP": (True, False), "FSDP": (False, True), "USP and FSDP": (True, True)}
TASKS = ("t2v", "i2v")


class Group:
    """What upstream asks of xfuser's sequence parallel group."""

    def all_gather(self, tensor: Tensor, dim: int = 0) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, dim=dim)


class LongContextAttention:
    """Own queries to the keys of all ranks."""

    def __call__(self, _: Any, query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        keys, values = (Group().all_gather(part, dim=1) for part in (key, value))
        return attention(query, keys, values)


def stand_in_for_xfuser() -> None:
    distributed = types.ModuleType("xfuser.core.distributed")
    distributed.get_sequence_parallel_rank = dist.get_rank
    distributed.get_sequence_parallel_world_size = dist.get_world_size
    distributed.get_sp_group = Group
    long_context = types.ModuleType("xfuser.core.long_ctx_attention")
    long_context.xFuserLongContextAttention = LongContextAttention
    for name in ("xfuser", "xfuser.core"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules |= {module.__name__: module for module in (distributed, long_context)}


class ParallelWan(TinyWan):
    """Builds its models as upstream's pipelines do with use_usp and dit_fsdp."""

    usp = fsdp = False

    def tiny_model(self, kind: str) -> nn.Module:
        model = super().tiny_model(kind)
        if self.usp:
            parallel = importlib.import_module("wan.distributed.xdit_context_parallel")
            for block in model.blocks:
                attends = block.self_attn
                attends.forward = types.MethodType(parallel.usp_attn_forward, attends)
            model.forward = types.MethodType(parallel.usp_dit_forward, model)
        if self.fsdp:
            shard = importlib.import_module("wan.distributed.fsdp").shard_model
            on_cpu = {"device_id": torch.device("cpu"), "sync_module_states": False}
            model = shard(model, param_dtype=torch.float32, **on_cpu)
        return model


def check(run: ParallelWan, task: str, mode: str) -> int:
    """Every family: the number that differ on any rank."""
    run.usp, run.fsdp = MODES[mode]
    options, wrong = run.tasks[task], 0
    full = run.run(options)
    grid = run.grid(options)
    for family in FAMILIES:
        plan = run.plan(family, grid)
        with counted() as calls:
            found = run.by_plan(plan, options)
        expected = full if family == "all compute" else run.naively(plan, options)
        good = torch.equal(found, expected) and calls[0] == plan.expected.block_runs
        good &= torch.equal(run.run(options), full)
        bad = torch.tensor(int(not good))
        dist.all_reduce(bad)
        wrong += int(bad > 0)
        if dist.get_rank() == 0:
            sys.stdout.write(f"{'ok   ' if bad == 0 else 'WRONG'} {mode}, {task}: {family}\n")
    return wrong


class counted:
    """Block runs of the caches that are attached inside the with block."""

    def __enter__(self) -> list[int]:
        self.runs, plain = [0], DeltaCache._account
        self._plain = plain

        def account(cache: DeltaCache, step: int, branch: str) -> None:
            plain(cache, step, branch)
            self.runs[0] = cache.stats.block_runs

        DeltaCache._account = account
        return self.runs

    def __exit__(self, *exception: Any) -> None:
        DeltaCache._account = self._plain


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="top directory of a checkout")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # upstream would start NCCL
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as temporary, stand_ins.missing_packages():
        stand_in_for_xfuser()
        copy = Path(temporary) / "checkout"
        ignored = shutil.ignore_patterns(".git", "assets", "examples")
        shutil.copytree(args.folder, copy, ignore=ignored)
        tree = read_tree(copy, load_upstreams(Path(anchors.__file__).parent))
        if tree.untouched:
            apply(tree)
        sys.path.insert(0, str(copy))
        run = ParallelWan(copy)
        wrong = sum(check(run, task, mode) for mode in MODES for task in TASKS)
    dist.barrier()
    dist.destroy_process_group()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

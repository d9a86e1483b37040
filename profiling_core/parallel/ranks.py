"""Processes that share one clip: how many, what each does, and their groups.

The rank of one of world = cfg x ring x ulysses processes is

    rank = (cfg_rank ring + ring_rank) ulysses + ulysses_rank

so that neighbours, which torchrun puts on one machine, share the all-to-alls of Ulysses; the ring
goes over groups of them, and the guidance branches, which exchange one latent a step, lie furthest
apart. This is xDiT's and yunchang's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from profiling_core.errors import ParallelError
from profiling_core.parallel.degrees import Degrees, environment_int, world_size

ALONE = Degrees()
TIMEOUT = timedelta(minutes=30)  # a rank may decode or load for long while others wait


def local_device() -> torch.device:
    """The GPU of this process; the CPU on a machine without one.

    ParallelError when the launcher started more processes on this machine than it has GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = environment_int("LOCAL_RANK", 0) if world_size() > 1 else 0  # else it is a leftover
    count = torch.cuda.device_count()
    if local >= count:
        raise ParallelError(
            f"local rank {local} has no GPU: this machine has {count}, start at most {count} "
            "processes on it"
        )
    return torch.device("cuda", local)


@dataclass(frozen=True)
class Ranks:
    """This process among all that share the clip. The default is a process of its own."""

    degrees: Degrees = ALONE
    rank: int = 0
    ulysses: dist.ProcessGroup | None = None  # groups of one process are None
    ring: dist.ProcessGroup | None = None
    sequence: dist.ProcessGroup | None = None
    cfg: dist.ProcessGroup | None = None

    @property
    def world(self) -> int:
        return self.degrees.world

    @property
    def ulysses_rank(self) -> int:
        return self.rank % self.degrees.ulysses

    @property
    def ring_rank(self) -> int:
        return self.rank // self.degrees.ulysses % self.degrees.ring

    @property
    def sequence_rank(self) -> int:
        """The position of this rank's shard among the tokens' shards."""
        return self.rank % self.degrees.sequence

    @property
    def cfg_rank(self) -> int:
        """0: the conditional branch, 1: the unconditional one."""
        return self.rank // self.degrees.sequence

    @property
    def part(self) -> tuple[int, int, int | None]:
        """Shards of the tokens, the one of this rank, its branch where there are groups of two."""
        half = self.cfg_rank if self.degrees.cfg > 1 else None
        return self.degrees.sequence, self.sequence_rank, half

    @property
    def first(self) -> bool:
        """Does this process write, show progress and decode what one alone decodes?"""
        return self.rank == 0


def start(degrees: Degrees, device: torch.device) -> Ranks:
    """Join the others: NCCL on GPUs, gloo on CPUs. Every process has to call it.

    Call `check_world` first. Whoever starts also calls `finish`.
    """
    if degrees.world == 1 and world_size() == 1:
        return Ranks()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    return ranks_of(degrees)


def ranks_of(degrees: Degrees) -> Ranks:
    """The groups of a process group that is up already; every process has to call it."""
    rank, u, s = dist.get_rank(), degrees.ulysses, degrees.sequence
    clips = range(0, degrees.world, s)  # first ranks of what shares one model call
    ulysses = [range(k, k + u) for k in range(0, degrees.world, u)]
    ring = [range(c + k, c + s, u) for c in clips for k in range(u)]
    sequence = [range(c, c + s) for c in clips]
    cfg = [range(k, degrees.world, s) for k in range(s)]
    own = [_own_group(groups, rank) for groups in (ulysses, ring, sequence, cfg)]
    return Ranks(degrees, rank, *own)


def _own_group(groups: list[range], rank: int) -> dist.ProcessGroup | None:
    found = None
    for ranks in groups:
        if len(ranks) == 1:
            continue
        group = dist.new_group(list(ranks), timeout=TIMEOUT)  # of all processes, also those outside
        if rank in ranks:
            found = group
    return found


def all_gather(every: torch.Tensor, own: torch.Tensor, group: dist.ProcessGroup | None) -> None:
    """Fill `every` with the `own` of all ranks of the group, along the first axis."""
    # torch 2.13 has a new name for it and warns of the old one
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(every, own, group=group)


def one_noise(noise: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Rank 0's noise, on every rank: generators of different devices draw differently."""
    if ranks.world > 1:
        dist.broadcast(noise, src=0)
    return noise


def finish() -> None:
    """Leave the process group, if one is up, once all have come to their end."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()  # gloo may abort where one rank leaves while another still sends
        dist.destroy_process_group()

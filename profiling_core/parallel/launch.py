"""How the processes of a run come together: groups, and agreement on the arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from profiling_core.errors import DisagreementError
from profiling_core.parallel.degrees import Degrees
from profiling_core.parallel.ranks import Ranks, finish, start


@contextmanager
def joined(degrees: Degrees, device: torch.device, facts: Mapping[str, Any]) -> Iterator[Ranks]:
    """The processes of this run, agreed on `facts`; left in order where nothing failed."""
    ranks = start(degrees, device)
    agree(facts)
    yield ranks
    finish()  # not after an error: who waits for a lost rank would wait here


def agree(facts: Mapping[str, Any]) -> None:
    """DisagreementError, on every rank alike, unless all ranks were given the same facts.

    facts: texts and numbers that a run depends on, by name. One exchange of objects.
    """
    if not dist.is_initialized():
        return
    every: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, dict(facts))
    for name, first in every[0].items():
        for rank, theirs in enumerate(every):
            if theirs.get(name) != first:
                raise DisagreementError(
                    f"the processes were not given the same {name}: {first!r} on rank 0, "
                    f"{theirs.get(name)!r} on rank {rank}"
                )


def from_first(value: Any) -> Any:
    """Rank 0's value, on every rank; the value itself in a run of one process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def fingerprint(*paths: Path) -> str:
    """A hash of the files that every rank reads: names, sizes and the first megabyte.

    Large weight files differ in their size or in their header, which lies in the first bytes.
    """
    found = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            found.update(f"{path.name} {path.stat().st_size} ".encode() + file.read(2**20))
    return found.hexdigest()[:16]

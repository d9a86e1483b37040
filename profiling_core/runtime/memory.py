"""Checks that memory suffices, before anything large is loaded."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from profiling_core.errors import InputError
from profiling_core.files import first_line

GB = 1e9
CGROUP = Path("/sys/fs/cgroup")
# Torch 2.9 ignores expandable segments under the newer name PYTORCH_ALLOC_CONF; all take this one.
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"
GAPS = 0.05  # of a need: what an allocator with fixed segments may leave unused; assumed
LARGE_GAP = 0.25 * GB

Needs = dict[str, dict[str, int]]  # moment of a run -> part -> bytes that are alive then


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a GPU, or what this process may still take of the host; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [free for free in (_meminfo(), _cgroup()) if free is not None]
    return min(known, default=None)


def largest(needs: Needs) -> tuple[str, dict[str, int], int]:
    """The moment that needs most, its parts and their sum."""
    moment = max(needs, key=lambda name: sum(needs[name].values()))
    return moment, needs[moment], sum(needs[moment].values())


def with_gaps(total: int) -> float:
    """`total`, and what the allocator leaves unused between its segments."""
    return total if expandable() else total * (1 + GAPS)


def expandable() -> bool:
    """Did the user turn on segments that grow?"""
    return any(EXPANDABLE in os.getenv(name, "") for name in (ALLOCATOR, "PYTORCH_ALLOC_CONF"))


def sizes_text(parts: Mapping[str, int]) -> str:
    """'transformer 57.2 GB + VAE 0.5 GB = 57.7 GB'."""
    each = " + ".join(f"{name} {count / GB:.1f} GB" for name, count in parts.items())
    return f"{each} = {sum(parts.values()) / GB:.1f} GB"


def check_room(
    needs: Callable[[Any], Needs],
    load: Any,
    device: torch.device,
    ways: Mapping[str, dict[str, Any]] | None = None,
) -> str | None:
    """InputError when the largest moment of `needs(load)` exceeds what `device` has free.

    load: a dataclass; ways: an option -> the fields of `load` that it changes. Those that lower the
    need are named with what they bring it to. Returns a warning where the need fits without the
    allocator's gaps alone.
    """
    free = available_bytes(device)
    moment, parts, total = largest(needs(load))
    if free is None or total <= free:
        if free is None or device.type != "cuda" or with_gaps(total) <= free:
            return None
        return (
            f"{total / GB:.1f} GB of the {free / GB:.1f} GB that are free on {device} are needed "
            f"for {moment}: if memory runs out, set {ALLOCATOR}={EXPANDABLE}"
        )
    words = f" for {moment}" if moment else ""
    raise InputError(
        f"not enough memory on {device}: {sizes_text(parts)} are needed{words}, "
        f"{free / GB:.1f} GB are free: {_ways_out(needs, load, free, device, ways or {})}"
        "take a smaller clip, a smaller model or a machine with more memory"
    )


def sparing(
    needs: Callable[[Any], Needs], load: Any, ways: Mapping[str, dict[str, Any]]
) -> dict[str, int]:
    """The options that lower the largest need of a load, each with what it brings it to."""
    totals = {way: largest(needs(replace(load, **ways[way])))[2] for way in ways}
    now = largest(needs(load))[2]
    return {way: total for way, total in totals.items() if total < now}


def _ways_out(
    needs: Callable[[Any], Needs],
    load: Any,
    free: int,
    device: torch.device,
    ways: Mapping[str, dict[str, Any]],
) -> str:
    """'--t5_cpu brings it to 60.4 GB, ...; else ', of the options that lower the need."""
    totals = sparing(needs, load, ways)
    every = {name: value for way in totals for name, value in ways[way].items()}
    together = sparing(needs, load, {"both" if len(totals) == 2 else "all": every})
    if together and min(together.values()) < min(totals.values()):
        totals |= together
    said = [f"{way} to {total / GB:.1f} GB" for way, total in totals.items()]
    if said:
        said[0] = said[0].replace(" to ", " brings it to ", 1)
    tight = any(total <= free < with_gaps(total) for total in totals.values())
    if tight and device.type == "cuda":
        said.append(f"it is tight, so set {ALLOCATOR}={EXPANDABLE} as well")
    return "; ".join(said) + "; else " if said else ""


@contextmanager
def out_of_memory_as_input_error(
    device: torch.device, what: str, way_out: str, options: Sequence[str] = ()
) -> Iterator[None]:
    """Turn a failed allocation into one line; torch reports the host's as a RuntimeError.

    options: those that would spare memory, read when it has run out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        first = first_line(error)
        if isinstance(error, RuntimeError) and not (
            isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in first
        ):
            raise
        left = f"take {' or '.join(options)}, or " if options else ""
        raise InputError(
            f"not enough memory on {device} for {what} ({first}): {_gaps(device)}{left}{way_out}"
        ) from error


def _gaps(device: torch.device) -> str:
    """What lies unused between the allocator's segments, and how to get it back."""
    if device.type != "cuda" or expandable():
        return ""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if unused < LARGE_GAP:
        return ""
    return (
        f"{unused / GB:.1f} GB are reserved and unused, set {ALLOCATOR}={EXPANDABLE} to use them; "
    )


def _meminfo() -> int | None:
    """The kernel's estimate of what can be had without swapping (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup() -> int | None:
    """What a container's limit leaves; page cache that can be dropped does not count as used."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None  # "max": no limit
    return int(limit) - used + int(stat.get("inactive_file", 0))

"""Checks that memory suffices, before anything large is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from profiling_core.errors import InputError
from profiling_core.files import first_line

GB = 1e9
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a GPU, or what this process may still take of the host; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [free for free in (_meminfo(), _cgroup()) if free is not None]
    return min(known, default=None)


def check_room(needs: dict[str, int], device: torch.device, way_out: str = "") -> None:
    """InputError when `needs` (part -> bytes) together exceed what `device` has free."""
    free = available_bytes(device)
    total = sum(needs.values())
    if free is None or total <= free:
        return
    parts = " + ".join(f"{name} {count / GB:.1f} GB" for name, count in needs.items())
    raise InputError(
        f"not enough memory on {device}: {parts} = {total / GB:.1f} GB are needed, "
        f"{free / GB:.1f} GB are free: {way_out}take a smaller model or a machine with more memory"
    )


@contextmanager
def out_of_memory_as_input_error(device: torch.device, what: str, way_out: str) -> Iterator[None]:
    """Turn a failed allocation into one line; torch reports the host's as a RuntimeError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        first = first_line(error)
        if isinstance(error, RuntimeError) and not (
            isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in first
        ):
            raise
        raise InputError(
            f"not enough memory on {device} for {what} ({first}): {way_out}"
        ) from error


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

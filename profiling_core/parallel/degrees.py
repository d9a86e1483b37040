"""How many processes share a clip along every axis, and threads that fit them; no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd, prod
from pathlib import Path

from profiling_core.errors import ParallelError

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
COUNT, WAITING = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"


@dataclass(frozen=True)
class Degrees:
    """The number of processes along every axis."""

    ulysses: int = 1
    ring: int = 1
    cfg: int = 1  # guidance branches on groups of their own: 1 or 2

    @property
    def sequence(self) -> int:
        """Processes that share the tokens of one model call."""
        return self.ulysses * self.ring

    @property
    def world(self) -> int:
        return self.sequence * self.cfg


Given = Mapping[str, int | None]  # the options ulysses, ring, cfg: name -> number, None: absent


def choose_degrees(given: Given, heads: int, branches: int) -> tuple[Degrees, str]:
    """The degrees of this launch, and a line on what was chosen and why; "" where nothing was.

    What is not given is chosen: guidance branches apart where there are two and the processes come
    in pairs, then Ulysses as far as it divides the heads, and the rest is a ring. ParallelError
    when what is given does not fit the processes or the heads.
    """
    check_degrees(given)
    (u_name, ulysses), (r_name, ring), (c_name, cfg) = given.items()
    left = to_choose = world_size() // prod(number or 1 for number in given.values())
    said = []
    if cfg is None:
        cfg = 2 if branches == 2 and left % 2 == 0 else 1
        no = "no pairs of processes" if branches == 2 else "one guidance branch"
        said.append(f"{c_name} {cfg} ({'two guidance branches' if cfg == 2 else no})")
        left //= cfg
    if ulysses is None:
        ulysses = gcd(left, heads)
        said.append(f"{u_name} {ulysses} (divides the {heads} heads)")
        left //= ulysses
    if ring is None:
        ring, left = left, 1
        said.append(f"{r_name} {ring} (the rest)")
    degrees = Degrees(ulysses, ring, cfg)
    check_heads(degrees, heads, u_name)
    if left > 1:
        raise _misfit(dict(zip(given, (ulysses, ring, cfg), strict=True)))
    line = f"{world_size()} processes share the clip, chosen for them: {', '.join(said)}"
    return degrees, line if to_choose > 1 else ""


def check_degrees(given: Given) -> None:
    """ParallelError for a degree below 1, or for degrees that no further one can complete."""
    for name, value in given.items():
        if value is not None and value < 1:
            raise ParallelError(f"{name} {value} is no number of processes: take 1 or more")
    name, cfg = list(given.items())[-1]
    if (cfg or 1) > 2:
        raise ParallelError(f"{name} {cfg}: there are two guidance branches, take 1 or 2")
    left, surplus = divmod(world_size(), prod(value or 1 for value in given.values()))
    if surplus or (left != 1 and None not in given.values()):
        raise _misfit(given)


def _misfit(given: Given) -> ParallelError:
    numbers = {name: value for name, value in given.items() if value is not None}
    words, product = " x ".join(f"{n} {v}" for n, v in numbers.items()), prod(numbers.values())
    way_out = "leave the degrees out, they are chosen then"
    if world_size() == 1:
        way_out = f"start them with torchrun --nproc_per_node={product}"
    return ParallelError(
        f"{words} = {product} processes, but this run has {world_size()}: {way_out}"
    )


def check_heads(degrees: Degrees, heads: int, name: str) -> None:
    """ParallelError unless Ulysses can share out the heads; name: of the option."""
    if heads % degrees.ulysses:
        fitting = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ParallelError(
            f"{name} {degrees.ulysses} does not divide the model's {heads} heads: take one of "
            f"{', '.join(map(str, fitting))}, the ring degree takes any number"
        )


def environment_int(name: str, default: int) -> int:
    """A whole number that a launcher left in the environment; ParallelError for another text."""
    text = os.getenv(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise ParallelError(f"the environment's {name} {text!r} is no whole number") from None


def world_size() -> int:
    """Processes that the launcher started for this run."""
    return environment_int("WORLD_SIZE", 1)


def thread_settings(cpus: float | None = None) -> dict[str, str]:
    """The environment for torch's threads, to be set before torch is imported.

    Threads sleep while they wait: by default they spin, and any other load on the machine then
    holds up the whole run. What the user has set stays. cpus: of this process; None: its share of
    the machine's, which needs no count where torch counts the same.
    """
    own = usable_cpus() / local_processes() if cpus is None else cpus
    settings = {WAITING: os.getenv(WAITING) or "PASSIVE"}
    if own < _visible_cpus() or cpus is not None:
        settings[COUNT] = str(thread_count(own))
    return settings


def thread_count(usual: float | None = None) -> int:
    """Threads of this process: as the environment says, else `usual` or the usable CPUs."""
    asked = os.getenv(COUNT, "").partition(",")[0]  # further numbers are for nested regions
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return max(1, int(usable_cpus() if usual is None else usual))


def usable_cpus() -> int:
    """CPUs that this process may use; a container's limit counts."""
    try:
        quota, period = CPU_LIMIT.read_text().split()
        return max(1, min(_visible_cpus(), int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or "max": no limit
        return _visible_cpus()


def local_processes() -> int:
    """Processes of this run on this machine; what an earlier launch left over does not count."""
    count = os.getenv("LOCAL_WORLD_SIZE", "1") if os.getenv("WORLD_SIZE", "1") != "1" else "1"
    return max(1, int(count)) if count.isdecimal() else 1


def _visible_cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1

"""Clips on Ray: actors that keep their model loaded, groups of them where a clip is shared.

A group makes one clip at a time. With several processes it is what torchrun would start: ranks of
one process group on one machine, sequence parallel by Ulysses. A group that loses a process is
replaced, and its clip is tried again on another one. The driver alone decides and keeps files, so
that nothing is done twice.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from profiling_core.commands.arguments import log
from profiling_core.commands.batch.attempts import Attempt, Maker, Task, attempt, by_model
from profiling_core.commands.batch.clips import TreeMaker
from profiling_core.errors import BatchError
from profiling_core.parallel.degrees import thread_settings

CONNECT_SECONDS = 10.0
TICK_SECONDS = 1.0
PLACE_SECONDS = 60.0
AUTH, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"  # what Ray reads

MakerClass = Callable[[], Maker]


def missing() -> str | None:
    """Why there is no Ray here; None where there is."""
    if find_spec("ray") is None:  # not imported yet: it reads the environment, see _connect
        return 'pip install "profiling-dit[batch]" brings it'
    return None


@dataclass(frozen=True)
class Size:
    """workers: groups, None: as many as fit; processes: of a group, each with `gpus` GPUs."""

    workers: int | None = None
    processes: int = 1
    gpus: int = 0


class _Process:
    """What runs in an actor: one rank of a group."""

    def __init__(self, maker: MakerClass, worker: int) -> None:
        self._maker, self._worker = maker(), worker

    def place(self) -> tuple[str, int]:
        """This machine's address and a free port."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, rank: int, world: int, address: str, port: int) -> None:
        """Become a rank, as torchrun would make it one."""
        from profiling_core.parallel.degrees import Degrees
        from profiling_core.parallel.ranks import local_device, start

        launch = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world)}
        os.environ |= launch | {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
        self._maker.ranks = start(Degrees(ulysses=world), local_device())
        for name in launch:  # the trees' command lines would take them for a launch of their own
            del os.environ[name]

    def make(self, task: Task, work: str) -> Attempt:
        return attempt(self._maker, task, Path(work), self._worker)


@dataclass
class _Group:
    """The actors of one worker, and what they do now."""

    number: int
    actors: list[Any]
    placement: Any = None
    task: Task | None = None
    model: str | None = None  # loaded
    pending: list[Any] = field(default_factory=list)  # results of its ranks
    result: Attempt | None = None  # of the first rank

    @property
    def state(self) -> str:
        return "idle" if self.task is None else self.task.clip.stem[:24]


class Cluster:
    """Workers on this machine, or on a cluster by its address; close it in the end.

    maker: what every process makes clips with. BatchError where the address does not answer within
    ten seconds, the cluster has no room for one worker, or a worker does not start.
    """

    def __init__(
        self, size: Size, address: str | None = None, maker: MakerClass = TreeMaker
    ) -> None:
        self._ray, self._size, self._maker = _connect(address), size, maker
        self._groups: list[_Group] = []
        try:
            self._cpus, count = self._room()
            self._groups = [self._started(number) for number in range(count)]
            self._ray.get([a.place.remote() for group in self._groups for a in group.actors])
        except self._ray.exceptions.RayActorError as error:
            self.close()
            raise BatchError(
                f"a worker does not start ({str(error).strip().splitlines()[-1]}): on a cluster "
                "every machine needs this project, installed in the same place"
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def states(self) -> list[str]:
        return [f"{group.number}: {group.state}" for group in self._groups]

    def attempts(
        self, tasks: Sequence[Task], work: Path, again: Callable[[Attempt], Task | None]
    ) -> Iterator[Attempt | None]:
        """Every attempt as it ends, None every second meanwhile."""
        left = by_model(tasks)
        while left or any(group.task for group in self._groups):
            for group in self._groups:
                if group.task is None and (task := self._next(group, left)) is not None:
                    self._give(group, task, work)
            pending = [ref for group in self._groups for ref in group.pending]
            ended, _ = self._ray.wait(pending, num_returns=1, timeout=TICK_SECONDS)
            if not ended:
                yield None
                continue
            group = next(group for group in self._groups if ended[0] in group.pending)
            found = self._taken(group, ended[0])
            if found is None:
                continue
            yield found
            if found.error is not None and (once_more := again(found)) is not None:
                left.append(once_more)

    def close(self) -> None:
        """End every worker, whatever it does."""
        for group in self._groups:
            self._end(group)
        self._groups = []
        self._ray.shutdown()

    # -- parts

    def _next(self, group: _Group, left: list[Task]) -> Task | None:
        """One of its loaded model where there is one; what it failed is left to the others."""
        alone = len(self._groups) == 1
        able = [task for task in left if alone or task.avoid != group.number]
        task = next((task for task in able if task.clip.model == group.model), None)
        task = task or next(iter(able), None)
        if task is not None:
            left.remove(task)
        return task

    def _give(self, group: _Group, task: Task, work: Path) -> None:
        group.task, group.model = task, task.clip.model
        place = str(work.absolute())
        group.pending = [actor.make.remote(task, place) for actor in group.actors]

    def _taken(self, group: _Group, ref: Any) -> Attempt | None:
        """What one rank gave; the group's attempt once it is over."""
        task = group.task
        assert task is not None  # a result is of a task
        group.pending.remove(ref)
        try:
            found = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = " ".join(dict.fromkeys((lines[0].strip(), lines[-1].strip())))[:400]
            found = Attempt(task.clip, group.number, error=f"the worker died: {reason}")
            self._replace(group)
            return found
        if found.error is not None and len(group.actors) > 1:
            self._replace(group)  # its other ranks wait for the one that failed
            return found
        if found.made is not None:
            group.result = found
        if group.pending:
            return None
        group.task = None
        return found if found.error is not None else group.result

    def _replace(self, group: _Group) -> None:
        self._end(group)
        self._groups[self._groups.index(group)] = self._started(group.number)

    def _end(self, group: _Group) -> None:
        for actor in group.actors:
            self._ray.kill(actor, no_restart=True)
        if group.placement is not None:
            self._ray.util.remove_placement_group(group.placement)
        group.actors, group.placement, group.task, group.pending = [], None, None, []

    def _started(self, number: int) -> _Group:
        """A worker's processes, joined."""
        ray, size = self._ray, self._size
        need = {"CPU": self._cpus} | ({"GPU": size.gpus} if size.gpus else {})
        placement = ray.util.placement_group([need] * size.processes, strategy="STRICT_PACK")
        wanted = f"worker {number}: {need} x {size.processes} on a machine"
        if not placement.wait(CONNECT_SECONDS):
            log.warning(f"waiting for room for {wanted}; free are {ray.available_resources()}")
            if not placement.wait(PLACE_SECONDS):
                raise BatchError(f"no room for {wanted}: give fewer --workers, or wait")
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(placement)
        remote = ray.remote(
            num_cpus=self._cpus,
            num_gpus=size.gpus,
            max_restarts=0,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": thread_settings(self._cpus)},
        )(_Process)
        actors = [remote.remote(self._maker, number) for _ in range(size.processes)]
        group = _Group(number, actors, placement)
        if size.processes > 1:
            address, port = ray.get(actors[0].place.remote())
            world = len(actors)
            joins = [a.join.remote(r, world, address, port) for r, a in enumerate(actors)]
            ray.get(joins)
        return group

    def _room(self) -> tuple[float, int]:
        """CPUs of a process, and how many workers there are."""
        size, there = self._size, self._ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        needed = size.processes * size.gpus
        if needed > gpus:
            raise BatchError(
                f"--gpus-per-clip {needed}: the cluster has {gpus:g} GPUs; give fewer, or 0 for "
                "the CPU"
            )
        most = int(gpus // needed) if needed else max(1, int(cpus // (2 * size.processes)))
        count = most if size.workers is None else size.workers
        if needed and count > most:
            raise BatchError(f"--workers {count}: the GPUs are enough for {most}")
        return max(0.5, cpus / (count * size.processes) // 0.5 * 0.5), count


# what Ray starts meanwhile must end on SIGTERM
os.register_at_fork(
    after_in_child=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})
)


def _connect(address: str | None) -> Any:
    """Start a Ray of our own, or join the cluster at an address; the module."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: any other load starves them
    if address is None:
        settings: dict[str, Any] = {"address": "local", "include_dashboard": False}
        path = os.pathsep.join(entry for entry in sys.path if entry)
        settings["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
        if not any(name in os.environ for name in (AUTH, TOKEN, f"{TOKEN}_PATH")):
            # Ray would leave one in the home folder, and a cluster started later would ask for it
            os.environ[TOKEN] = secrets.token_hex(32)
        where, way_out = "Ray does not start", "; --no-ray makes the clips in this process"
    else:
        settings = {"address": _answering(address)}
        where, way_out = f"--address {address}", ""
    import ray

    # Ray's handler of SIGTERM ends in a C++ trace: the signal waits until the handler is ours again
    handler = signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
    except (ray.exceptions.RayError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BatchError(f"{where}: {reason}{way_out}") from None
    except SystemExit:  # another thread took the signal, and Ray's handler ran
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return ray


def _answering(address: str) -> str:
    """The address of a cluster that lets us in; BatchError with the reason, in seconds."""
    place = _current() if address == "auto" else address
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise BatchError(f"--address {address}: expected host:port, ray://host:port or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS / 2).close()
    except (OSError, OverflowError) as error:
        raise BatchError(
            f"--address {address}: nobody answers at {place} ({error}): start the cluster with "
            "`ray start --head`"
        ) from None
    log.info(f"joining the Ray cluster at {place}")
    if not place.startswith("ray://"):
        _check_admitted(place)
    return place


def _current() -> str:
    """What Ray takes for "auto": the cluster of RAY_ADDRESS, or the last one started here."""
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    if place := os.environ.get("RAY_ADDRESS"):
        return place
    if not file.is_file():
        raise BatchError("--address auto: no cluster was started here with `ray start`")
    return file.read_text().strip()


def _check_admitted(place: str) -> None:
    """Send a token where the cluster asks for one, and only there; BatchError when it refuses.

    Asked in a process of its own: Ray's driver tries again for half a minute, and writes each try.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", place]
    asked = [os.environ[AUTH]] if AUTH in os.environ else ["disabled", "token"]
    said, what = "", "answers, but not as a Ray cluster does: is it the port of `ray start --head`?"
    for mode in asked:
        options: dict[str, Any] = {"env": {**os.environ, AUTH: mode}, "timeout": CONNECT_SECONDS}
        try:
            found = subprocess.run(command, capture_output=True, text=True, **options)
        except subprocess.TimeoutExpired:
            raise BatchError(f"--address {place}: {what}") from None
        if found.returncode == 0:
            os.environ[AUTH] = mode
            return
        said += found.stderr
    if "AuthenticationError" not in said and asked != ["token"]:
        raise BatchError(f"--address {place}: {what}")
    raise BatchError(
        f"--address {place}: the cluster does not let us in, its token is missing or another one: "
        "copy ~/.ray/auth_token of the cluster's head to this machine"
    )

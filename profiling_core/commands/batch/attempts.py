"""One attempt at a clip, in whatever process; and what is left to do after it."""

from __future__ import annotations

import errno
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from profiling_core.commands.batch.clips import Clip, Made, TreeMaker
from profiling_core.commands.batch.folder import own_folder
from profiling_core.errors import UserError
from profiling_core.trees.tree_model import TreeModel


class Maker(Protocol):
    """Makes clips in its process; TreeMaker."""

    ranks: Any

    def make(self, clip: Clip, write: Callable[[Any, Any], None]) -> Made | None: ...


@dataclass(frozen=True)
class Attempt:
    """How it ended: `made` and the folder of its files, or an error. worker: its number.

    disk_full: the error is that of a disk without room, which the next clip would meet too.
    """

    clip: Clip
    worker: int
    made: Made | None = None
    made_in: str | None = None
    error: str | None = None
    disk_full: bool = False


@dataclass(frozen=True)
class Task:
    """A clip to make. keep_tensor: another one will be compared with it."""

    clip: Clip
    keep_tensor: bool
    avoid: int | None = None  # the worker that failed it last


def attempt(maker: Maker, task: Task, work: Path, worker: int) -> Attempt:
    """Make the clip into a folder of its own below `work`; errors come back as text."""
    made_in: list[Path] = []
    least: list[int] = []  # bytes for a clip, as long as it is written; ffmpeg gives no reason

    def write(model: TreeModel, video: Any) -> None:
        from safetensors.torch import save_file

        from profiling_core.commands.compare.folder import strip_of

        folder = own_folder(work)
        made_in.append(folder)
        least.append(video.numel() // 4)
        model.save(video, folder / "clip.mp4")
        least.clear()
        (folder / "clip.jpg").write_bytes(strip_of(video))
        if task.keep_tensor:
            save_file({"video": video.half().contiguous()}, folder / "clip.safetensors")

    try:
        made = maker.make(task.clip, write)
    except Exception as error:
        for folder in made_in:
            shutil.rmtree(folder, ignore_errors=True)
        no_room = any(shutil.disk_usage(work).free < size for size in least) or is_disk_full(error)
        return Attempt(task.clip, worker, error=_in_words(error), disk_full=no_room)
    return Attempt(task.clip, worker, made, str(made_in[0]) if made_in else None)


def is_disk_full(error: BaseException | None) -> bool:
    """Is this, or what caused it, the error of a full disk? Libraries keep its words alone."""
    if error is None:
        return False
    words = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
    return any(word in str(error) for word in words) or is_disk_full(error.__cause__)


def _in_words(error: Exception) -> str:
    """One line for what a user can put right, the whole trace for anything else."""
    if isinstance(error, UserError | OSError):
        return " ".join(str(error).split()) or type(error).__name__
    return "".join(traceback.format_exception(error)).strip()


def by_model(tasks: Sequence[Task]) -> list[Task]:
    """In the order of the file, but all of a model's clips before the next model's."""
    order: dict[str, int] = {}
    for task in tasks:
        order.setdefault(task.clip.model, len(order))
    return sorted(tasks, key=lambda task: order[task.clip.model])


class Sequential:
    """All clips in this process, one after the other."""

    states: tuple[str, ...] = ()

    def __init__(self, maker: Maker | None = None) -> None:
        self._maker = maker or TreeMaker()

    def attempts(
        self, tasks: Sequence[Task], work: Path, again: Callable[[Attempt], Task | None]
    ) -> Iterator[Attempt | None]:
        """Every attempt as it ends; `again`: the task to try once more after a failed one."""
        left = by_model(tasks)
        while left:
            task = left.pop(0)
            found = attempt(self._maker, task, work, 0)
            yield found
            if found.error is not None and (once_more := again(found)) is not None:
                left.append(once_more)

    def close(self) -> None:
        """Nothing to end."""

"""Files that appear whole or not at all, and what is known of one before it is read or made."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from profiling_core.errors import InputError

UNFINISHED = ".profiling-dit-"  # begins the name of every temporary folder; machine, process follow
FORGOTTEN = 24 * 3600.0  # seconds after which another machine's leftover is taken for one
LONGEST_NAME = 255  # bytes
# types whose numbers are the weights themselves, by torch's names and safetensors'; others need a
# scale; the last two only count
PLAIN_TYPES = {"float64", "float32", "float16", "bfloat16", "int64", "bool"}
PLAIN_TYPES |= {"F64", "F32", "F16", "BF16", "I64", "BOOL"}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file to write to, with the suffix of `path`, which it becomes at the end.

    It lies in a folder of its own beside `path`: a program that starts writing late cannot once
    that is gone. Missing folders are made; a link is written through; an existing file keeps its
    mode. OSError names `path` alone.
    """
    target = Path(os.path.realpath(path))
    check_regular(path, "output")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished(target.parent)
        prefix = f"{UNFINISHED}{machine()}-{os.getpid()}-"
        with tempfile.TemporaryDirectory(
            prefix=prefix, dir=target.parent, ignore_cleanup_errors=True
        ) as folder:
            temporary = Path(folder) / f"file{target.suffix[:20]}"
            yield temporary
            if target.exists():
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
    except OSError as error:
        foreign = error.filename is not None and UNFINISHED not in str(error.filename)
        if error.errno is None or foreign:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def stand_in(path: Path) -> str | None:
    """What a file is that has the place of weights, and the way out; None: it may be whole."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return None
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file: run `git lfs pull` there, or download it again"
    if head.startswith(b"GGUF"):
        return (
            "is a GGUF file, whose quantised weights are not read here: take the official file, or "
            "load this one with diffusers and run it with cache_pipeline"
        )
    if head.lstrip().startswith(b"<"):
        return "is a web page, not the file: download it again, logged in where that is needed"
    return None


def unreadable(path: Path, what: str, error: Exception) -> str:
    """A line on a file whose reader failed: what it is instead of `what`, or the reason."""
    instead = stand_in(path)
    if instead is not None:
        return f"{path} {instead}"
    return f"{path} is not a complete {what} ({first_line(error)}): download it again"


def first_line(error: Exception) -> str:
    """The message of another library's error, short enough for one line.

    Torch's advice to load with code allowed is not passed on.
    """
    text = str(error)
    if "weights_only" in text or isinstance(error, KeyError):  # the unpickler's, for any text
        code = "Unsupported global" in text or "Unsupported class" in text
        return "it holds code beside tensors" if code else "torch.save did not write it"
    return (text.splitlines() or [type(error).__name__])[0]


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder, and what is a day old."""
    for left in folder.glob(f"{UNFINISHED}*"):
        where, _, process = left.name.removeprefix(UNFINISHED).rpartition("-")[0].rpartition("-")
        ended = where == machine() and process.isdecimal() and not _runs(int(process))
        if ended or _age(left) > FORGOTTEN:
            shutil.rmtree(left, ignore_errors=True)


def machine() -> str:
    """The space that process numbers are of: containers may share a name and a disk."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux
        space = 0
    return f"{platform.node()}.{space}"


def check_regular(path: Path, option: str) -> None:
    """InputError for a folder, a device or a FIFO, which a file would replace."""
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder: name a file")
    if path.is_symlink() and Path(os.path.realpath(path)).is_symlink():
        raise InputError(f"{option} {path} is a link that leads to itself: name a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{option} {path} is a device or a FIFO: name a file")


def check_writable(path: Path, option: str) -> Path:
    """The nearest folder that exists, once a file in it was tried: modes alone do not show it.

    InputError unless a file can be written at `path`, or its folders can be made.
    """
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(f"{option} {path}: the name is longer than {LONGEST_NAME} bytes")
    check_regular(path, option)
    folder = path.parent
    try:
        parents = Path(os.path.realpath(path)).parents
        folder = next(parent for parent in parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{option} {path}: cannot write into {folder} ({error.strerror or error}): "
            "name another place"
        ) from None
    return folder


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile
        return 0.0


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def installed_version() -> str:
    """The version that files of ours name as their maker.

    A checkout on the path alone has none.
    """
    try:
        return metadata.version("profiling-dit")
    except metadata.PackageNotFoundError:
        return "0+unknown"

"""Files that appear whole or not at all, and what a file is that cannot be read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# types whose numbers are the weights themselves, by torch's names and safetensors'; others need a
# scale; the last two only count
PLAIN_TYPES = {"float64", "float32", "float16", "bfloat16", "int64", "bool"}
PLAIN_TYPES |= {"F64", "F32", "F16", "BF16", "I64", "BOOL"}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder to write to, renamed to `path` at the end."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
    if "weights_only" in text:
        code = "Unsupported global" in text or "Unsupported class" in text
        return "it holds code beside tensors" if code else "torch.save did not write it"
    return (text.splitlines() or [type(error).__name__])[0]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

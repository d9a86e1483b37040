"""The report of a check: its stages as they go, printed and kept in one JSON file.

The file is written when a stage begins and when it ends, so that it names the stage also where the
process was killed. It is made to be sent: of paths only the names of files are left.
"""

from __future__ import annotations

import getpass
import json
import platform
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from profiling_core.commands.arguments import install_hint
from profiling_core.errors import InputError, UserError
from profiling_core.files import check_writable, write_whole
from profiling_core.runtime.terminal import printable, write_to

FORMAT = "profiling-dit check 1"
PATH = re.compile(r"(?<![^\s'\"(=:,\[])/+(?:[^\s'\":,()/]+/+)*([^\s'\":,()/]+)/?")
OUTCOMES = {"ok": "ok", "failed": "FAILED", "interrupted": "INTERRUPTED"}
Found = dict[str, Any]  # of one stage


class Report:
    """Stages in the order that they ran, with what each of them found.

    folders: what is written in the place of a folder's path.
    """

    def __init__(
        self, path: Path, head: Found, folders: Mapping[Path, str], *, quiet: bool
    ) -> None:
        self.path, self.quiet = path, quiet
        self.head, self.stages = head, list[Found]()
        self._folders = sorted(((str(k), v) for k, v in folders.items()), key=lambda f: -len(f[0]))

    @property
    def faults(self) -> list[str]:
        return [fault for stage in self.stages for fault in stage["faults"]]

    def say(self, line: str) -> None:
        """One line for whoever watches; the check goes on where nobody reads."""
        if not self.quiet:
            write_to(sys.stdout, f"{printable(line)}\n")

    def note(self, line: str) -> None:
        """A line of the stage that runs; what it found so far is kept."""
        self.say(f"   {line}")
        self.write()

    @contextmanager
    def stage(self, name: str) -> Iterator[Found]:
        """Inside, facts are added to what is given; an error ends the stage, not the check."""
        found: Found = {"stage": name, "outcome": "running", "seconds": 0.0, "faults": []}
        self.stages.append(found)
        self.write()
        self.say(f"{len(self.stages)}. {name}")
        start = time.perf_counter()
        try:
            yield found
            found["outcome"] = "failed" if found["faults"] else "ok"
        except KeyboardInterrupt:
            found["outcome"] = "interrupted"
            raise
        except Exception as error:  # whatever it is, the report has to name it
            found["outcome"] = "failed"
            found["faults"].append(_in_words(error))
            if not isinstance(error, UserError | OSError):
                found["traceback"] = traceback.format_exception(error)
        finally:
            found["seconds"] = round(time.perf_counter() - start, 3)
            self.write()
            for fault in found["faults"]:
                self.say(f"   FAULT: {fault}")
            self.say(f"   {OUTCOMES[found['outcome']]}, {found['seconds']:.1f} s")

    def write(self) -> None:
        """The file as of now, whole."""
        document = self.without_paths({"format": FORMAT, **self.head, "stages": self.stages})
        text = json.dumps(document, indent=1, ensure_ascii=False, default=str)
        write_whole(self.path, f"{text}\n".encode())

    def without_paths(self, value: Any) -> Any:
        """The value, its texts without folders, user and host; what `folders` names stays named."""
        if isinstance(value, dict):
            return {key: self.without_paths(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.without_paths(one) for one in value]
        if not isinstance(value, str):
            return value
        for folder, name in self._folders:
            value = re.sub(rf"{re.escape(folder)}(?![\w.-])", name, value)
        value = PATH.sub(r".../\1", value)
        for word, name in ((platform.node(), "HOST"), (_user(), "USER")):
            if len(word) > 2:
                value = re.sub(rf"\b{re.escape(word)}\b", name, value)
        return value


def check_out(path: Path) -> None:
    """InputError unless the report can be written there; a report of before is replaced."""
    check_writable(path, "--out")
    if not path.exists():
        return
    with path.open("rb") as file:
        if FORMAT.encode() not in file.read(100):
            raise InputError(f"--out {path}: exists and is no report of a check: name another file")


def _in_words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and (hint := install_hint(error)) is not None:
        return hint
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return ""

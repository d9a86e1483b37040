"""The files that the page may read: those in the chosen folders, wherever links lead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from profiling_core.errors import InputError


def chosen_folders(given: Sequence[str]) -> tuple[Path, ...]:
    """The folders of `--files`, without links; InputError for one that is none."""
    for name in given:
        if not Path(name).is_dir():
            fault = "is no folder" if Path(name).exists() else "does not exist"
            raise InputError(f"--files {name} {fault}: name a folder")
    return tuple(Path(os.path.realpath(name)) for name in given)


def confined(text: str, folders: Sequence[Path], what: str) -> str:
    """The file or folder of this name in one of the folders, without links.

    A relative name counts from the current folder, else from one of the folders. InputError,
    which is the same whether there is such a file elsewhere or not, for a name that leads out of
    the folders, and for a folder that holds a link that does.
    """
    for base in (Path(), *folders) if "\0" not in text else ():
        found = Path(os.path.realpath(base / text))
        if _inside(found, folders) and found.exists():
            _check_links(found, folders, f"{what} {text}")
            return str(found)
    if not folders:
        raise InputError(f"{what} {text!r}: this page reads no files, start it with --files FOLDER")
    names = ", ".join(map(str, folders))
    raise InputError(f"{what} {text!r}: no such file in the folders of this page ({names})")


def _inside(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _check_links(path: Path, folders: Sequence[Path], name: str) -> None:
    seen: set[str] = set()
    for parent, below, files in os.walk(path, followlinks=True):
        for entry in (*below, *files):
            if not _inside(Path(os.path.realpath(os.path.join(parent, entry))), folders):
                raise InputError(f"{name}: {entry} in it is a link to a place outside --files")
        whole = os.path.realpath(parent)
        if whole in seen:  # a link to a folder above
            below.clear()
        seen.add(whole)

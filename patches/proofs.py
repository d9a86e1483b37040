"""What a patched tree promises, proven on a copy."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anchors import Insertion, anchor_calls, called, find_anchors, parse, statements
from edits import PatchError, Place, Source
from trees import Tree, apply, read_tree, revert

OPTION = re.compile(r'add_argument\("(--\w+)"')


@dataclass(frozen=True)
class Proof:
    """One promise: kept, broken, or (None) not tried here."""

    name: str
    holds: bool | None
    detail: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAIL", None: "skip"}[self.holds]
        return f"{mark:5}{self.name}: {self.detail}"


def prove(tree: Tree) -> list[Proof]:
    """All promises for a tree; its own files are only read."""
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy(tree, Path(folder) / "copy")
        try:
            places = tree.places()
            apply(copy)
        except PatchError as error:
            return [Proof("anchors", False, str(error))]
        lines = ", ".join(
            f"{one.name} ({one.file}, {lines_of(places[one.name])})"
            for one in tree.upstream.insertions
        )
        return [Proof("anchors", True, f"found: {lines}"), *_proofs(copy)]


def lines_of(places: Sequence[Place]) -> str:
    """Where the anchors are: line 3, or lines 3, 5."""
    word = "line" if len(places) == 1 else "lines"
    return f"{word} {', '.join(str(place.anchor) for place in places)}"


def _proofs(copy: Tree) -> Iterator[Proof]:
    """`copy` has just been patched on the disk."""
    tries: dict[str, Callable[[Tree], str | None]] = {
        "insertions only": _insertions_only,
        "parses": _parses,
        "options": _options,
        "diff": _git_apply,
        "twice": _twice,
        "revert": _revert,
    }
    for name, proof in tries.items():
        try:
            detail = proof(copy)
        except (PatchError, OSError) as error:
            yield Proof(name, False, str(error))
        else:
            yield Proof(name, True if detail else None, detail or "git is not installed")


def _copy(tree: Tree, folder: Path) -> Tree:
    """The bare files of a tree in another folder."""
    for file, source in tree.bare.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(source.encode())
        shutil.copymode(tree.folder / file, folder / file)
    return read_tree(folder, [tree.upstream])


def _insertions_only(copy: Tree) -> str:
    added = 0
    for file, source in copy.bare.items():
        *old, last = source.encode().split(b"\n")
        new = (copy.folder / file).read_bytes().split(b"\n")
        rest = iter(new)
        kept = all(line in rest for line in old)
        if not kept or last not in (line.rstrip(b"\r") for line in rest):  # it may get an end
            raise PatchError(f"{file}: a line was removed or changed")
        added += len(new) - len(old) - 1
    expected = sum(len(place.lines) for places in copy.places().values() for place in places)
    if added != expected:
        raise PatchError(f"{added} lines were added, expected {expected}")
    return f"{added} lines added in {len(copy.bare)} file(s), none removed or changed"


def _parses(copy: Tree) -> str:
    for file in copy.bare:
        parse(_on_disk(copy, file))
    return ", ".join(copy.bare)


def _options(copy: Tree) -> str:
    """Every option is added to the object on which the parser method is called, before that."""
    options = [(one, OPTION.findall("\n".join(one.lines))) for one in copy.upstream.insertions]
    wanted = [(one, names) for one, names in options if names]
    for one, names in wanted:
        present = _options_before(one, _on_disk(copy, one.file))
        for name in names:
            if present.count(name) != 1:
                raise PatchError(f"{one}: {name} is added {present.count(name)} times, expected 1")
    listed = " and ".join(name for _, names in wanted for name in names)
    return f"{listed} are in the parser before it parses"


def _options_before(insertion: Insertion, source: Source) -> list[str]:
    function, (anchor,) = find_anchors(insertion, parse(source))
    owner = anchor_calls(insertion, anchor)[0].func
    calls = [
        call
        for statement in statements(function)
        if isinstance(statement, ast.Expr) and statement.lineno < anchor.lineno
        for name, call in called(statement)
        if name == ".add_argument" and ast.dump(call.func.value) == ast.dump(owner.value)
    ]
    return [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)]


def _git_apply(copy: Tree) -> str | None:
    """Its diff, by git on the bare files, gives the same bytes; None without git."""
    if shutil.which("git") is None:
        return None
    diff = copy.diff()
    other = _copy(copy, copy.folder.parent / "git")
    settings = ("-c", "core.autocrlf=false", "-c", "apply.whitespace=nowarn")
    keep = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *settings, "apply", "-"],
        input=diff,
        cwd=other.folder,
        env=keep | {"GIT_CEILING_DIRECTORIES": str(copy.folder.parent.resolve())},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise PatchError(f"git apply: {done.stderr.decode(errors='replace').strip()}")
    for file in copy.bare:
        if (other.folder / file).read_bytes() != (copy.folder / file).read_bytes():
            raise PatchError(f"{file}: git apply gives other bytes")
    return f"git apply of {diff.count(b'@@ -')} hunks gives the same bytes"


def _twice(copy: Tree) -> str:
    try:
        apply(read_tree(copy.folder, [copy.upstream]))
    except PatchError:
        return "refused a second time"
    raise PatchError("a second apply was not refused")


def _revert(copy: Tree) -> str:
    revert(read_tree(copy.folder, [copy.upstream]))
    for file, source in copy.bare.items():
        if (copy.folder / file).read_bytes() != source.encode():
            raise PatchError(f"{file}: not the original bytes")
    return "gives back the original bytes"


def _on_disk(copy: Tree, file: str) -> Source:
    return Source.decode(file, (copy.folder / file).read_bytes())

"""A checkout: of which upstream, with or without the inserted lines."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anchors import Insertion, Upstream, find_places, parse
from edits import (
    InputError,
    PatchError,
    Place,
    Source,
    find_blocks,
    insert,
    line_pattern,
    remove,
    unified_diff,
    write_all,
)

OURS = "profiling_core.upstream"
CALL = re.compile(r"\b(?:wan|hunyuan)_run\(")
TRACE = re.compile(rf"delta_cache|{re.escape(OURS)}|delta_profile|{CALL.pattern}")


@dataclass(frozen=True)
class Tree:
    """The files of a checkout that the insertions concern, as they are and without the lines."""

    folder: Path
    upstream: Upstream
    now: dict[str, Source]
    bare: dict[str, Source]
    blocks: dict[str, list[range]]  # insertion -> where its lines stand in `now`

    @property
    def untouched(self) -> bool:
        return not any(self.blocks.values())

    @property
    def complete(self) -> bool:
        return all(self.blocks.values())

    def places(self) -> dict[str, list[Place]]:
        """Insertion -> where its lines go in the files as they are; PatchError for no place."""
        return find_places(self.upstream, self.now)

    def patched(self) -> dict[str, Source]:
        """The bare files with all insertions, proven to be insertions of whole statements."""
        places = self.places()
        new = {}
        for file, source in self.bare.items():
            names = self.names_in(file)
            gone = [line for name in names for block in self.blocks[name] for line in block]
            mine = [_without(place, gone) for name in names for place in places[name]]
            new[file] = insert(source, mine)
            _check_statements(source, new[file], mine)
        return new

    def names_in(self, file: str) -> list[str]:
        """The insertions of one file."""
        return [one.name for one in self.upstream.insertions if one.file == file]

    def write(self, sources: dict[str, Source]) -> None:
        """Replace the files that differ, all or none."""
        changed = {file: source for file, source in sources.items() if source != self.now[file]}
        write_all(self.folder, {file: source.encode() for file, source in changed.items()})

    def diff(self) -> bytes:
        """The bare files against those with all insertions."""
        new = self.patched()
        return b"".join(unified_diff(source, new[file]) for file, source in self.bare.items())


def read_tree(folder: Path, upstreams: Sequence[Upstream]) -> Tree:
    """The tree in a folder; InputError when it is of no known kind.

    PatchError when the inserted lines were edited, or when the tree has such options by itself.
    """
    upstream = kind_of(folder, upstreams)
    now = {file: Source.decode(file, (folder / file).read_bytes()) for file in upstream.files}
    blocks = {one.name: find_blocks(now[one.file], one.lines) for one in upstream.insertions}
    tree = Tree(folder, upstream, now, {}, blocks)
    for file, source in now.items():
        gone = [block for name in tree.names_in(file) for block in blocks[name]]
        tree.bare[file] = remove(source, gone)
    _check_remains(tree)
    return tree


def apply(tree: Tree) -> None:
    """Insert all lines into a tree that has none."""
    if not tree.untouched:
        present = ", ".join(name for name, blocks in tree.blocks.items() if blocks)
        raise PatchError(
            f"{tree.folder}: the lines are in already ({present}); revert takes them out, rebase "
            "puts them where they belong"
        )
    tree.write(tree.patched())


def revert(tree: Tree) -> None:
    """Take exactly the inserted lines out."""
    missing = [name for name, blocks in tree.blocks.items() if not blocks]
    if tree.untouched:
        raise PatchError(f"{tree.folder}: the lines are not in this tree, nothing to revert")
    if missing:
        raise PatchError(
            f"{tree.folder}: edited by hand, the lines of {', '.join(missing)} are gone; rebase "
            "puts them in again, then revert works"
        )
    tree.write(tree.bare)


def _without(place: Place, gone: Sequence[int]) -> Place:
    """The place in a file whose lines `gone` have been removed."""
    return replace(place, index=place.index - sum(line < place.index for line in gone))


def kind_of(folder: Path, upstreams: Sequence[Upstream]) -> Upstream:
    """The upstream that a folder is a checkout of; InputError when it is none that is known."""
    if not folder.is_dir():
        problem = "expected a directory, this is a file" if folder.exists() else "no such directory"
        raise InputError(f"{folder}: {problem}")
    present = [u for u in upstreams if all((folder / file).is_file() for file in u.files)]
    likely = [upstream for upstream in present if _names_its_model(folder, upstream)]
    if len(likely) > 1:
        names = " and ".join(upstream.name for upstream in likely)
        raise InputError(f"{folder}: looks like {names}; name the top directory of one checkout")
    if not likely:
        raise InputError(
            f"{folder}: unknown kind of tree, name the top directory of a checkout; "
            + "; ".join(f"{u.name}: {_what_lacks(folder, u)}" for u in upstreams)
        )
    if likely[0].refused:
        raise InputError(f"{folder}: {likely[0].name} cannot be patched: {likely[0].refused}")
    return likely[0]


def _names_its_model(folder: Path, upstream: Upstream) -> bool:
    files = [(folder / file).read_bytes() for file in upstream.files]
    return any(upstream.model.encode() in data.replace(b"\0", b"") for data in files)  # UTF-16


def _what_lacks(folder: Path, upstream: Upstream) -> str:
    files = [file for file in upstream.files if not (folder / file).is_file()]
    return f"no {' and no '.join(files)}" if files else f"no model {upstream.model}"


def _check_remains(tree: Tree) -> None:
    """Where an insertion is not there whole, nothing of it may be there."""
    concerned = [o for o in tree.upstream.insertions if o.each or not tree.blocks[o.name]]
    remains = [(one, list(_traces(tree.now[one.file], tree, one))) for one in concerned]
    remains = [(one, lines) for one, lines in remains if lines]
    if not remains:
        return
    own = tree.untouched and not any(OURS in source.text for source in tree.now.values())
    if own:
        one, lines = remains[0]
        raise PatchError(
            f"{tree.folder}: this tree has its own delta_cache ({one.file}, line {lines[0]}), as "
            "the paper's release has, and a second option of that name cannot be added; use the "
            f"original repository, {tree.upstream.repository}"
        )
    raise PatchError("; ".join(_edited(tree.now[one.file], one, lines) for one, lines in remains))


def _traces(source: Source, tree: Tree, insertion: Insertion) -> Iterator[int]:
    """Numbers of the lines that look like ours but belong to no whole insertion of the file.

    Where some blocks of an insertion are whole, only a call of ours counts as a rest of another.
    """
    names = tree.names_in(source.file)
    inside = {line for name in names for block in tree.blocks[name] for line in block}
    patterns = [line_pattern(line.strip()) for line in insertion.lines]
    trace = CALL if tree.blocks[insertion.name] else TRACE
    for index, line in enumerate(source.lines):
        exact = any(pattern.fullmatch(line.strip()) for pattern in patterns)
        if index not in inside and (exact or trace.search(line)):
            yield index + 1


def _edited(source: Source, insertion: Insertion, traces: list[int]) -> str:
    lines = [line.strip() for line in source.lines]
    gone = [
        text
        for text in (line.strip() for line in insertion.lines)
        if not any(line_pattern(text).fullmatch(line) for line in lines)
    ]
    where = f"{source.file}: the inserted lines of {insertion.name!r} were edited by hand"
    if not gone and insertion.each:
        return f"{where}: " + ", ".join(f"line {n} is `{lines[n - 1]}`" for n in traces)
    if not gone:
        return f"{where}: they stand on lines {', '.join(map(str, traces))}, no longer together"
    return f"{where}: " + ", ".join(_changed(text, lines) for text in gone)


def _changed(text: str, lines: list[str]) -> str:
    close = difflib.get_close_matches(text, lines, 1, 0.6)
    if not close:
        return f"`{text}` is gone"
    return f"`{text}` is now line {lines.index(close[0]) + 1}, `{close[0]}`"


def _check_statements(old: Source, new: Source, places: Sequence[Place]) -> None:
    """Without the inserted statements the syntax tree is the old one."""
    texts = {line for place in places for line in place.lines}
    added = {i + 1 for i, line in enumerate(new.lines) if line.rstrip("\r\n") in texts}
    module = parse(new)
    for node in ast.walk(module):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                kept = [statement for statement in statements if statement.lineno not in added]
                setattr(node, field, kept)
    if ast.dump(module) != ast.dump(parse(old)):
        raise PatchError(
            f"{old.file}: the lines would change what stands around them; not inserted"
        )

"""Whole lines into and out of source files; every other byte stays."""

from __future__ import annotations

import codecs
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CONTEXT = 3
NO_NEWLINE = "\n\\ No newline at end of file\n"
PLACEHOLDER = re.compile(r"\\{(object|target|parameter)\\}")  # as re.escape leaves it


class PatchError(ValueError):
    """A tree that must not be changed as asked."""


class InputError(ValueError):
    """What was named is not there, or is no tree of a known kind."""


@dataclass(frozen=True)
class Source:
    """A UTF-8 file as lines that keep their own ends."""

    file: str
    lines: tuple[str, ...]
    bom: bytes = b""

    @classmethod
    def decode(cls, file: str, data: bytes) -> Source:
        bom = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        try:
            text = data[len(bom) :].decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {error.start + len(bom)}"
            raise PatchError(f"{file}: not UTF-8 at {where}; convert the file first") from None
        if "\r" in text.replace("\r\n", "\n"):
            raise PatchError(
                f"{file}: a carriage return inside a line; expected LF or CRLF line ends"
            )
        return cls(file, tuple(re.findall(r"[^\n]*\n|[^\n]+", text)), bom)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def encode(self) -> bytes:
        return self.bom + self.text.encode("utf-8")


@dataclass(frozen=True)
class Place:
    """Lines, indented and without ends, that go before line `index` (from 0) of a file."""

    index: int
    lines: tuple[str, ...]
    anchor: int  # number of the anchor's line, from 1

    @property
    def indent(self) -> str:
        return re.match(r"[ \t]*", self.lines[0])[0]


def insert(source: Source, places: Iterable[Place]) -> Source:
    """The source with the lines of all places."""
    lines = list(source.lines)
    for place in sorted(places, key=lambda place: place.index)[::-1]:  # equal ones in order
        end = _end_near(lines, place.index)
        block = [line + end for line in place.lines]
        if place.index == len(lines) and not lines[-1].endswith("\n"):
            lines[-1] += end  # the file goes on ending without a line end
            block[-1] = place.lines[-1]
        lines[place.index : place.index] = block
    return Source(source.file, tuple(lines), source.bom)


def remove(source: Source, blocks: Iterable[range]) -> Source:
    """The source without the lines of all blocks; undoes insert."""
    lines = list(source.lines)
    for block in sorted(blocks, key=lambda block: block.start, reverse=True):
        at_end = block.stop == len(lines) and not lines[-1].endswith("\n")
        del lines[block.start : block.stop]
        if at_end and lines:
            lines[-1] = lines[-1].rstrip("\r\n")
    return Source(source.file, tuple(lines), source.bom)


def find_blocks(source: Source, template: Sequence[str]) -> list[range]:
    """Where the template's lines stand together and unedited, at any indentation."""
    lines = [line.rstrip("\r\n") for line in source.lines]
    first, *rest = (line_pattern(line) for line in template)
    found = []
    for start, line in enumerate(lines):
        indent = line[: len(line) - len(line.lstrip(" \t"))]
        block = range(start, start + len(template))
        follow = lines[start + 1 : block.stop]
        if block.stop > len(lines) or not first.fullmatch(line.lstrip(" \t")):
            continue
        pairs = zip(rest, follow, strict=True)
        if all(l.startswith(indent) and p.fullmatch(l[len(indent) :]) for p, l in pairs):
            found.append(block)
    return found


def line_pattern(line: str) -> re.Pattern[str]:
    """The inserted line, with any dotted name where the template has a name in braces."""
    return re.compile(PLACEHOLDER.sub(lambda _: r"[\w.]+", re.escape(line)))


def unified_diff(old: Source, new: Source) -> bytes:
    """The ordinary diff of a source and the same with insertions, for `git apply` and `patch`."""
    steps = list(_steps(old.encode().decode(), new.encode().decode()))
    text = f"--- a/{old.file}\n+++ b/{old.file}\n" + "".join(_hunks(steps))
    return text.encode()


def write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """All files or none; each by a rename within its own folder, with its mode."""
    targets = {(folder / file).resolve(): data for file, data in contents.items()}
    before = {target: target.read_bytes() for target in targets}
    staged: dict[Path, str] = {}
    done: list[Path] = []
    try:
        for target, data in targets.items():
            staged[target] = _stage(target, data)
        for target in targets:
            os.replace(staged[target], target)
            done.append(target)
    except BaseException:
        for target in done:
            os.replace(_stage(target, before[target]), target)
        raise
    finally:
        for target in staged.keys() - set(done):
            Path(staged[target]).unlink(missing_ok=True)


def _stage(target: Path, data: bytes) -> str:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    shutil.copymode(target, name)
    return name


def _end_near(lines: Sequence[str], index: int) -> str:
    for line in (*reversed(lines[:index]), *lines[index:]):
        if line.endswith("\n"):
            return "\r\n" if line.endswith("\r\n") else "\n"
    return "\n"


def _steps(old: str, new: str) -> Iterator[tuple[str, str]]:
    """(" ", "-" or "+", line) from old to new, which has the lines of old and more."""
    rest = re.findall(r"[^\n]*\n|[^\n]+", old)[::-1]
    for line in re.findall(r"[^\n]*\n|[^\n]+", new):
        if rest and line == rest[-1]:
            yield " ", rest.pop()
            continue
        if len(rest) == 1 and line.rstrip("\r\n") == rest[0]:  # the last line gets an end
            yield "-", rest.pop()
        yield "+", line


def _hunks(steps: list[tuple[str, str]]) -> Iterator[str]:
    groups: list[list[int]] = []
    for index in (index for index, (tag, _) in enumerate(steps) if tag != " "):
        if groups and index - groups[-1][1] <= 2 * CONTEXT + 1:
            groups[-1][1] = index
        else:
            groups.append([index, index])
    for first, last in groups:
        start = max(0, first - CONTEXT)
        hunk = steps[start : last + 1 + CONTEXT]
        sides = [
            (1 + _count(steps[:start], skipped), _count(hunk, skipped)) for skipped in ("+", "-")
        ]
        yield "@@ -{},{} +{},{} @@\n".format(*sides[0], *sides[1])
        yield from (tag + line.removesuffix("\n") + _diff_end(line) for tag, line in hunk)


def _count(steps: Iterable[tuple[str, str]], skipped: str) -> int:
    return sum(tag != skipped for tag, _ in steps)


def _diff_end(line: str) -> str:
    return "\n" if line.endswith("\n") else NO_NEWLINE

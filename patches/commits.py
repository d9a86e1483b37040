"""Commits of a checkout or a history, and which of them were checked, when, with what result."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from anchors import Upstream
from edits import InputError, PatchError
from proofs import Proof, prove
from trees import Tree, kind_of, read_tree

HOLDS = "all checks hold"
LACKS = "files not there"


@dataclass(frozen=True)
class History:
    """Results of all commits, oldest first; commits with the same bytes have been checked once."""

    name: str
    results: dict[str, str]
    contents: list[list[str]]  # commits whose files have the same bytes


def git(folder: Path, *arguments: str) -> bytes:
    """What a git command prints; InputError with git's own words when it fails."""
    if shutil.which("git") is None:
        raise InputError("git is not installed, so no commit can be read")
    keep = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], env=keep, capture_output=True, check=False
    )
    if done.returncode:
        words = " ".join(done.stderr.decode(errors="replace").split())
        raise InputError(f"{folder}: git {arguments[0]} failed: {words}")
    return done.stdout


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out in a folder, None if it is not the top of a checkout."""
    try:
        if git(folder, "rev-parse", "--is-inside-work-tree", "--show-prefix") != b"true\n\n":
            return None
        return git(folder, "rev-parse", "HEAD").decode().strip()
    except InputError:
        return None


def commit_to_record(tree: Tree) -> str:
    """The tree's commit; InputError when it is none, or its files are not that commit's."""
    commit = commit_of(tree.folder)
    if commit is None:
        raise InputError(f"{tree.folder}: no git checkout, so there is no commit to record")
    for file, source in tree.bare.items():
        stored = git(tree.folder, "show", f"{commit}:{file}")
        if stored.replace(b"\r\n", b"\n") != source.encode().replace(b"\r\n", b"\n"):
            raise InputError(
                f"{tree.folder}: {file} differs from commit {commit[:10]} beyond the inserted "
                "lines; nothing recorded"
            )
    return commit


def result_of(proofs: Sequence[Proof]) -> str:
    """In short: all hold, or which does not."""
    broken = [f"{proof.name}: {proof.detail}" for proof in proofs if proof.holds is False]
    return "; ".join(broken) or HOLDS


def check_history(repository: Path, upstreams: Sequence[Upstream]) -> History:
    """Check every commit reachable from HEAD."""
    if not repository.is_dir():
        raise InputError(f"{repository}: no such directory")
    commits = git(repository, "rev-list", "--reverse", "HEAD").decode().split()
    found = {commit: _blobs(repository, commit, upstreams) for commit in commits}
    with tempfile.TemporaryDirectory() as folder:
        _write(repository, found[commits[-1]], Path(folder))
        try:
            upstream = kind_of(Path(folder), upstreams)
        except InputError as error:
            raise InputError(str(error).replace(folder, str(repository))) from None
    distinct: dict[tuple[str | None, ...], list[str]] = {}
    for commit, blobs in found.items():
        distinct.setdefault(tuple(map(blobs.get, upstream.files)), []).append(commit)
    results = {}
    for same in distinct.values():
        result = _check_blobs(repository, found[same[0]], upstream)
        results |= dict.fromkeys(same, result)
    ordered = {commit: results[commit] for commit in commits}
    return History(upstream.name, ordered, list(distinct.values()))


def _blobs(repository: Path, commit: str, upstreams: Sequence[Upstream]) -> dict[str, str]:
    files = [file for upstream in upstreams for file in upstream.files]
    lines = git(repository, "ls-tree", "-z", "--full-tree", commit, "--", *files).decode()
    entries = (line.split("\t") for line in lines.split("\0") if line)
    return {file: meta.split()[2] for meta, file in entries}


def _write(repository: Path, blobs: dict[str, str], folder: Path) -> None:
    for file, blob in blobs.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(git(repository, "cat-file", "blob", blob))


def _check_blobs(repository: Path, blobs: dict[str, str], upstream: Upstream) -> str:
    if not set(upstream.files) <= blobs.keys():
        return LACKS
    with tempfile.TemporaryDirectory() as folder:
        _write(repository, blobs, Path(folder))
        try:
            return result_of(prove(read_tree(Path(folder), [upstream])))
        except (PatchError, InputError) as error:
            return str(error).replace(folder, "tree")


def read_record(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Upstream name -> commit -> {"checked": date, "result": words}."""
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for commits in record.values() for entry in commits.values()]
        if all(entry.keys() == {"checked", "result"} for entry in entries):
            return record
    except (json.JSONDecodeError, AttributeError):
        pass
    raise InputError(f"{path}: not a record of checked commits; expected what --record writes")


def add_to_record(path: Path, name: str, results: dict[str, str]) -> None:
    """Note results by commit, with the date of today (UTC); one line per commit."""
    record = read_record(path)
    today = datetime.now(timezone.utc).date().isoformat()
    commits = record.setdefault(name, {})
    commits.update({c: {"checked": today, "result": result} for c, result in results.items()})
    parts = [
        f"{json.dumps(upstream)}: {{\n"
        + ",\n".join(f"{json.dumps(c)}: {json.dumps(entry)}" for c, entry in entries.items())
        + "\n}"
        for upstream, entries in sorted(record.items())
    ]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8", newline="\n")

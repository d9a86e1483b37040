"""The layers of the code: which room may import which, and no circles.

A room is a folder of profiling_core, a folder beside it, or a group of files of a folder. Imports
count wherever they stand, also inside functions and under TYPE_CHECKING.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePath

import pytest

from tree_paths import ROOT

PACKAGE = (
    "errors files metrics lpips plan profile search engine recording loops parallel "
    "runtime runtime-files trees profiling_core"
)
TREE = "tree tree-checks tree-parts tree-model"
ALLOWED = {  # room: what it may import; heavy: torch, diffusers, transformers
    "errors": "",
    "files": "errors",
    "metrics": "",
    "lpips": "errors files heavy",
    "plan": "errors files",
    "profile": "errors files plan",
    "search": "errors files plan profile",
    "parallel": "errors heavy",
    "engine": "errors plan heavy",
    "recording": "errors files plan profile engine heavy",
    "runtime-files": "errors files heavy",
    "runtime": "errors files plan profile parallel runtime-files heavy",
    "loops": "errors plan profile engine recording runtime heavy",
    "trees": TREE + " errors plan profile engine recording parallel runtime heavy",
    "commands": PACKAGE + " heavy",
    "__main__": "commands",
    "profiling_core": "files plan search engine loops",  # its __init__
    "upstream": "loops",  # the name that patched checkouts import
    "tree": TREE + " errors files plan engine recording parallel runtime runtime-files heavy",
    "tree-checks": "tree-parts tree-model errors plan parallel runtime heavy",
    "tree-parts": "tree-model errors files parallel runtime-files heavy",
    "tree-model": "parallel heavy",
    "miniatures": TREE + " parallel heavy",
    "patches": "",
    "examples": PACKAGE + " commands heavy",
    "integrations": "errors plan engine loops heavy",
    "benchmarks": PACKAGE + " examples miniatures heavy " + TREE,
}
GROUPS = {  # files of a folder that are a room of their own
    "runtime": {"checkpoint_files prompt_tokens state_dicts video_file": "runtime-files"},
    "tree-parts": {
        "generate sample_video __init__ prompt_extend text2video image2video vace pipeline "
        "inference": "tree",
        "checks": "tree-checks",
        "model vace_model layers attention rope": "tree-model",
    },
}
HEAVY = ("torch", "diffusers", "transformers")
# as they are imported
FOLDERS = ("profiling_core", "benchmarks", "miniatures", "examples", "integrations")
PATHS = ("Wan2.1", "HunyuanVideo", "patches")  # on the path: their files are imported by bare name


def room_of(path: PurePath) -> str:
    """The room of a file, whose path begins at the repository's root."""
    room, *inside = path.parts
    if room == "profiling_core" and inside != ["__init__.py"]:
        room = inside[0].removesuffix(".py")
    elif room in ("Wan2.1", "HunyuanVideo"):
        room = "tree-parts"
    groups = GROUPS.get(room, {}).items()
    return next((own for stems, own in groups if path.stem in stems.split()), room)


def name_of(path: PurePath) -> str:
    """The name that a file is imported by."""
    parts = path.with_suffix("").parts[path.parts[0] in PATHS :]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: PurePath, text: str) -> Iterator[str]:
    """Every name that a file imports, in full."""
    package = name_of(path.parent / "__init__.py").split(".")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, node.module or ""]).strip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def targets_of(path: PurePath, text: str, by_name: dict[str, PurePath]) -> set[PurePath | str]:
    """The files that a file imports, and "heavy"."""
    names = set(imported(path, text))
    found = (by_name.get(name) or by_name.get(name.rpartition(".")[0]) for name in names)
    heavy = {"heavy"} if any(name.partition(".")[0] in HEAVY for name in names) else set()
    return {target for target in found if target} | heavy


def mistakes(files: dict[PurePath, str]) -> list[str]:
    """Imports that the table does not allow, and a circle where there is one."""
    by_name = {name_of(path): path for path in files}
    graph = {path: targets_of(path, text, by_name) for path, text in files.items()}
    found = []
    for path, targets in graph.items():
        room = room_of(path)
        for target in targets:
            there = target if isinstance(target, str) else room_of(target)
            if there != room and there not in ALLOWED[room].split():
                found.append(f"{path} ({room}) imports {target} ({there})")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("circle: " + " -> ".join(map(str, error.args[1])))
    return sorted(found)


def test_rooms_import_what_the_table_allows() -> None:
    paths = [path for folder in (*FOLDERS, *PATHS) for path in (ROOT / folder).rglob("*.py")]
    files = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in paths}
    assert len(files) > 150
    assert mistakes(files) == []


@pytest.mark.parametrize(
    ("path", "text", "mistake"),
    [
        ("plan/x.py", "def f():\n import torch", "(plan) imports heavy (heavy)"),
        (
            "engine/x.py",
            "if TYPE_CHECKING:\n import wan.model",
            "(engine) imports Wan2.1/wan/model.py",
        ),
        ("plan/plan.py", "from . import plan", "circle: "),
    ],
)
def test_a_bad_import_is_found(path: str, text: str, mistake: str) -> None:
    files = {PurePath("profiling_core", path): text, PurePath("Wan2.1/wan/model.py"): ""}
    (found,) = mistakes(files)
    assert mistake in found


def test_one_reuse_step_is_six_modules_as_the_documents_list_them() -> None:
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(profiling_core/\S+\.py)` \| (\d+) \|", text, flags=re.M)
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name, _ in rows}
    assert len(rows) <= 6 and sum(lines.values()) <= 1200
    assert {name: int(count) for name, count in rows} == lines
    assert f"{sum(lines.values()):,} lines together" in text

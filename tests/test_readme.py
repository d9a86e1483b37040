"""The README's commands are real: files exist, options parse, plans resolve."""

import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hyvideo.config import CONFIGS as HUNYUAN_CONFIGS
from profiling_core.commands.main import build_parser
from profiling_core.errors import PlanError
from profiling_core.runtime.options import resolve_plan
from tree_paths import ROOT
from wan.configs import WAN_CONFIGS

DOCUMENTS = (
    "README.md",
    "benchmarks/README.md",
    "docs/batch.md",
    "docs/multi-gpu.md",
    "patches/README.md",
)
ENTRIES = {"generate.py": "Wan2.1", "sample_video.py": "HunyuanVideo"}


def commands() -> list[str]:
    """Command lines of all code blocks, continuation lines joined, comments left out."""
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.strip() for line in lines if line.strip() and line[0] != "#"]
        found += re.findall(r"`((?:python3?|make|torchrun) [^`]+)`", text)
    return found


def script(path: Path):
    """A script as a module; its own folder is on the path meanwhile, as when it is run."""
    spec = importlib.util.spec_from_file_location(f"readme_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def benchmark(name: str) -> ModuleType:
    """A benchmark's module, or a package's __main__."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def check_entry(name: str, options: list[str], processes: int = 1) -> None:
    """A tree's command: its options parse, fit the processes, and its plan is the model's."""
    module = script(ROOT / ENTRIES[name] / name)
    args = module.build_parser().parse_args(options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(processes))
        module.check_processes(args)
    config = WAN_CONFIGS[args.task] if name == "generate.py" else HUNYUAN_CONFIGS[args.model]
    if args.delta_cache and not args.delta_cache.endswith(".json"):
        assert resolve_plan(args.delta_cache, config.plan_model).name == args.delta_cache


def check(command: str) -> None:
    """Raises, or exits, where a command is not real."""
    words = shlex.split(command, comments=True)
    while words and "=" in words[0] and not words[0].startswith("-"):
        words.pop(0)  # environment variables
    program, *rest = words
    python = program in ("python", "python3")
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in rest)
    elif program == "torchrun":
        if not any(word in ENTRIES for word in rest):
            assert (ROOT / rest[1]).is_file()
            return
        entry = next(word for word in rest if word in ENTRIES)
        launch = rest[: rest.index(entry)]
        given = dict(word.lstrip("-").split("=") for word in launch)
        processes = int(given.get("nnodes", 1)) * int(given["nproc_per_node"])
        check_entry(entry, rest[rest.index(entry) + 1 :], processes)
    elif python and rest and rest[0] in ENTRIES:
        check_entry(rest[0], rest[1:])
    elif python and rest[:2] == ["-m", "profiling_core"]:
        build_parser().parse_args(rest[2:])
    elif python and rest[:1] == ["-m"] and rest[1].startswith("benchmarks."):
        benchmark(rest[1]).build_parser().parse_args(rest[2:])
    elif python and rest and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file()
    elif "-m" in rest and rest[rest.index("-m") + 1].startswith("miniatures"):
        module = rest[rest.index("-m") + 1]
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    elif program == "pip":
        files = [word for word, before in zip(rest[1:], rest, strict=False) if before == "-r"]
        assert rest in (["install", "-e", "."], ["install", "-e", ".[batch]"]) or files
        assert all((ROOT / file).is_file() for file in files)
    else:
        assert program in ("cd", "git", "python3", "source", "."), f"unchecked command {command}"


@pytest.mark.parametrize("command", commands())
def test_command_is_real(command):
    check(command)


def test_documents_have_commands_at_all():
    assert len(commands()) > 8


@pytest.mark.parametrize("plan", ["", "--delta_cache", "--delta_cache release"])
def test_commands_of_both_trees_are_checked(plan):
    check(f"python generate.py --task t2v-mini {plan}")
    check(
        'python3 sample_video.py --model HYVideo-mini --prompt "blue star moving left over red '
        f'checks" --flow-reverse --seed 42 --save-path ./results {plan}'
    )


@pytest.mark.parametrize(
    "command",
    [
        "python generate.py --task t2v-mini --delta_cache foreground",
        "python generate.py --task t2v-mini --flow-reverse",
        "python sample_video.py --model HYVideo-mini --delta_cache fastest",
        "python sample_video.py --task t2v-mini",
        "python -m benchmarks.speed.engine --trees wan2.1",
        "python -m benchmarks.absent",
        "torchrun --nproc_per_node=4 generate.py --task t2v-mini --ulysses_size 2",
        "make coffee",
        "ffmpeg -i clip.mp4",
    ],
)
def test_commands_that_are_not_real_are_found(command):
    with pytest.raises((AssertionError, ImportError, PlanError, SystemExit, ValueError)):
        check(command)

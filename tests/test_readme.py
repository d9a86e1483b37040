"""The README's commands are real: files exist, options parse, plans resolve."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from profiling_core.__main__ import _parser
from profiling_core.options import resolve_plan

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "benchmarks/README.md")


def commands() -> list[str]:
    """Command lines of all code blocks, continuation lines joined, comments left out."""
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.strip() for line in lines if line.strip() and line[0] != "#"]
        found += re.findall(r"`((?:python|make|torchrun) [^`]+)`", text)
    return found


def generate_parser():
    spec = importlib.util.spec_from_file_location("wan_generate", ROOT / "Wan2.1" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build_parser()


@pytest.mark.parametrize("command", commands())
def test_command_is_real(command):
    words = shlex.split(command, comments=True)
    while words and "=" in words[0] and not words[0].startswith("-"):
        words.pop(0)  # environment variables
    program, *rest = words
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in rest)
    elif rest[:1] == ["generate.py"]:
        args = generate_parser().parse_args(rest[1:])
        model = "wan2.1-" + args.task.replace("t2i", "t2v")
        if args.delta_cache and not args.delta_cache.endswith(".json"):
            assert resolve_plan(args.delta_cache, model).name == args.delta_cache
    elif rest[:2] == ["-m", "profiling_core"]:
        _parser().parse_args(rest[2:])
    elif program == "python" and rest and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file()
    elif rest[:1] == ["-m"] and rest[1].startswith("miniatures"):
        assert (ROOT / (rest[1].replace(".", "/") + ".py")).is_file()
    elif program == "pip":
        files = [word for word, before in zip(rest[1:], rest, strict=False) if before == "-r"]
        assert files and all((ROOT / file).is_file() for file in files)
    else:
        assert program in ("cd", "git", "python3", "source", "."), f"unchecked command {command}"


def test_documents_have_commands_at_all():
    assert len(commands()) > 8

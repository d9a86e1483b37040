"""What the commands share: the parser, options of every command, values read from text, outputs."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from profiling_core.errors import InputError, UserError, nearest
from profiling_core.files import check_writable
from profiling_core.plan.plan import without_doubles
from profiling_core.plan.schema import Checked, first_mistake
from profiling_core.runtime.terminal import printable, write_to

log = logging.getLogger("profiling_core.commands")
Line = TypeVar("Line", bound=Checked)

MOST_BYTES = 64 * 2**20  # of a file of prompts or jobs
INSTALL = {  # what brings a module that the core does without
    **dict.fromkeys(("matplotlib", "skimage"), 'pip install "profiling-dit[report]"'),
    **dict.fromkeys(
        ("diffusers", "transformers", "accelerate"), 'pip install "profiling-dit[diffusers]"'
    ),
    **dict.fromkeys(("ray", "tqdm"), 'pip install "profiling-dit[batch]"'),
    "gradio": 'pip install "profiling-dit[app]"',
    **dict.fromkeys(
        ("loguru", "ftfy", "sentencepiece", "imageio", "imageio_ffmpeg"),
        "pip install -r requirements.txt",
    ),
}
PACKAGES = {"skimage": "scikit-image", "imageio_ffmpeg": "imageio-ffmpeg"}  # by their module


class Parser(argparse.ArgumentParser):
    """Options are written out in full; a mistake is an InputError, with the nearest word."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} ({self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [self._hyphened(word) for word in (sys.argv[1:] if args is None else args)]
        self._check_words(words)
        return super().parse_known_args(words, namespace)

    def _hyphened(self, word: str) -> str:
        """The trees' spelling of an option of ours: --ckpt_dir for --ckpt-dir."""
        option, equals, value = word.partition("=")
        ours = option.replace("_", "-")
        known = ours in self._option_string_actions and option not in self._option_string_actions
        return f"{ours}{equals}{value}" if known else word

    def _check_words(self, words: Sequence[str]) -> None:
        """Unknown options first: what they were meant for would be reported as missing."""
        options = [option for action in self._actions for option in action.option_strings]
        commands = self._commands()
        for word in words:
            if word == "--":
                return
            if word.startswith("--"):
                option = word.partition("=")[0]
                if option not in options and " " not in option:
                    self._refuse("option", option, options)
            elif commands and not word.startswith("-"):  # the rest is the command's own
                if word not in commands:
                    self._refuse("command", word, commands)
                return

    def _refuse(self, what: str, word: str, words: Sequence[str]) -> NoReturn:
        near = nearest(word, words)
        if near is None:
            self.error(f"no {what} {word!r}")
        raise InputError(f"no {what} {word!r}: did you mean {near}?")

    def _commands(self) -> list[str]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return list(action.choices)
        return []


def add_log_options(one: Any) -> None:
    """Add --quiet and --verbose to a command or a group of its options."""
    either = one.add_mutually_exclusive_group()
    either.add_argument("--quiet", action="store_true", help="say errors and written files alone")
    either.add_argument("--verbose", action="store_true", help="show the library's log as well")


def add_overwrite_option(one: Any) -> None:
    """Add --overwrite to a command or a group of its options."""
    one.add_argument("--overwrite", action="store_true", help="replace files that exist already")


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        write_to(sys.stderr, f"{printable(self.format(record))}\n")


@contextmanager
def log_on_stderr(args: argparse.Namespace) -> Iterator[None]:
    """The library's log on stderr while a command runs: all of it, its course, or errors alone."""
    library, handler = logging.getLogger("profiling_core"), _Stderr()
    before = library.level
    quiet, verbose = getattr(args, "quiet", False), getattr(args, "verbose", False)
    library.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    library.addHandler(handler)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(before)


def shown(lines: Sequence[str], args: argparse.Namespace) -> list[str]:
    """What a command prints of its result: with --quiet the files that it wrote."""
    if getattr(args, "quiet", False):
        return [line for line in lines if line.startswith("wrote ")]
    return list(lines)


def install_hint(error: ModuleNotFoundError) -> str | None:
    """One line on the package that is not there and what installs it; None for our own modules."""
    module = (error.name or "").partition(".")[0]
    if module not in INSTALL:
        return None
    return f"{PACKAGES.get(module, module)} is not installed: {INSTALL[module]}"


def check_new(path: Path, option: str, args: argparse.Namespace) -> None:
    """InputError for an output that cannot be written, or that would replace a file unasked."""
    check_writable(path, option)
    if path.exists() and not args.overwrite:
        raise InputError(f"{option} {path}: exists already, --overwrite replaces it")


def read_lines(path: Path, what: str, error: type[UserError]) -> list[str]:
    """The lines of a UTF-8 file, stripped; a byte order mark is allowed."""
    if not path.is_file():
        fault = "not a regular file" if path.exists() else "no such file"
        raise error(f"{what} {path}: {fault}")
    if path.stat().st_size > MOST_BYTES:
        raise error(f"{what} {path}: larger than 64 MiB")
    content = path.read_bytes()
    try:
        return [line.strip() for line in content.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as problem:
        number = content[: problem.start].count(b"\n") + 1
        raise error(f"{what} {path}: line {number} is not UTF-8: save it as that") from None


def object_of(text: str, schema: type[Line], error: type[UserError]) -> Line:
    """A line of a .jsonl file; `error` says in one line what is wrong with it."""
    try:
        document = json.loads(text, object_pairs_hook=without_doubles)
    except RecursionError:
        raise error("nested too deeply") from None
    except ValueError as problem:
        raise error(f"not JSON: {problem}") from None
    if not isinstance(document, dict):
        raise error(f"expected a JSON object, found {type(document).__name__}")
    try:
        return schema.model_validate_json(text)
    except ValidationError as problem:
        raise error(first_mistake(problem)) from None


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `least` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"found {text}, expected at least {least}")
        return int(text)

    number.__name__ = "int"  # for argparse's own message
    return number


def words_of(text: str | None) -> tuple[str, ...] | None:
    """The words of 'one,two'; None stays None."""
    return None if text is None else tuple(word.strip() for word in text.split(","))


def integers_of(text: str, option: str) -> tuple[int, ...]:
    """The numbers of '1,3,6'."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(
            f"{option} {text!r}: expected whole numbers, with commas between"
        ) from None


def bytes_of(text: str | None, option: str = "--max-bytes") -> int | None:
    """Bytes of '100MiB', '0.5GB' or a plain number."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]i?)?B?", text.strip())
    if found is None:
        raise InputError(f"{option} {text!r}: expected bytes such as 100MiB, 0.5GB or 0")
    unit = found[2] or ""
    power = " KMGT".index(unit[0].upper()) if unit else 0
    return int(float(found[1]) * (1024 if unit.endswith("i") else 1000) ** power)

"""patches/patch.py inserts whole lines into a checkout, and takes exactly these out again."""

import argparse
import ast
import dataclasses
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import anchors
import edits
import patch as tool
import proofs
import trees
from profiling_core.runtime.options import add_delta_options
from toy_checkouts import PATCHES, WAN, git, read_files, write_checkout

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
KINDS = ("Wan2.1", "HunyuanVideo")  # the others differ in names alone
ENDINGS: dict[str, Callable[[bytes], bytes]] = {
    "LF": lambda data: data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "BOM": lambda data: b"\xef\xbb\xbf" + data,
    "no last newline": lambda data: data.rstrip(b"\n"),
    "BOM, CRLF, no last newline": lambda data: (
        b"\xef\xbb\xbf" + data.rstrip().replace(b"\n", b"\r\n")
    ),
    "tabs": lambda data: data.replace(b"    ", b"\t"),
    "anchor is the last line": lambda data: data.split(b"\n\n        wan_i2v.generate")[0].split(
        b"\n    hunyuan_video_sampler.predict"
    )[0],
}


@pytest.fixture(params=KINDS)
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_checkout(tmp_path / "checkout", request.param)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_bytes().decode()
    assert text.count(old) == 1
    path.write_bytes(text.replace(old, new).encode())


def refusal(capsys: pytest.CaptureFixture, code: int, *arguments: object) -> str:
    """The one line on stderr with which the command ends."""
    capsys.readouterr()
    assert tool.main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out
    return err


@pytest.mark.parametrize("ending", ENDINGS)
def test_revert_gives_back_every_byte(checkout: Path, ending: str) -> None:
    for file, data in read_files(checkout).items():
        (checkout / file).write_bytes(ENDINGS[ending](data))
        (checkout / file).chmod(0o750)
    before = read_files(checkout)
    assert tool.main(["apply", str(checkout)]) == 0
    patched = read_files(checkout)
    for file, data in patched.items():
        assert data != before[file]
        assert data.endswith(b"\n") is before[file].endswith(b"\n")
        assert data.count(b"\r\n") in (0, data.count(b"\n"))
        assert data.startswith(b"\xef\xbb\xbf") is before[file].startswith(b"\xef\xbb\xbf")
        assert stat.S_IMODE((checkout / file).stat().st_mode) == 0o750
    assert tool.main(["revert", str(checkout)]) == 0
    assert read_files(checkout) == before


@needs_git
@pytest.mark.parametrize("ending", ENDINGS)
def test_diff_applies_elsewhere(
    checkout: Path, ending: str, capsysbinary: pytest.CaptureFixture
) -> None:
    for file, data in read_files(checkout).items():
        (checkout / file).write_bytes(ENDINGS[ending](data))
    other = Path(shutil.copytree(checkout, checkout.parent / "other"))
    tool.main(["diff", str(checkout)])
    diff = capsysbinary.readouterr().out
    tool.main(["apply", str(checkout)])
    capsysbinary.readouterr()
    tool.main(["diff", str(checkout)])
    assert capsysbinary.readouterr().out == diff
    git(other, "apply", "-", stdin=diff)
    assert read_files(other) == read_files(checkout)
    git(other, "apply", "-R", "-", stdin=diff)
    tool.main(["revert", str(checkout)])
    assert read_files(other) == read_files(checkout)


@needs_git
@pytest.mark.parametrize("ending", ENDINGS)
def test_check_holds_and_changes_nothing(
    checkout: Path, ending: str, capsys: pytest.CaptureFixture
) -> None:
    for file, data in read_files(checkout).items():
        (checkout / file).write_bytes(ENDINGS[ending](data))
    before = read_files(checkout)
    assert tool.main(["check", str(checkout)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and all(line.startswith("ok ") for line in lines)
    assert read_files(checkout) == before
    tool.main(["apply", str(checkout)])
    assert tool.main(["check", str(checkout)]) == 0


def other_bytes(tree: trees.Tree) -> None:
    trees.apply(tree)
    file = tree.upstream.files[0]
    data = (tree.folder / file).read_bytes()
    (tree.folder / file).write_bytes(data.replace(b"type=int", b"type=str"))


def one_line_more(tree: trees.Tree) -> None:
    trees.apply(tree)
    file = tree.upstream.files[0]
    (tree.folder / file).write_bytes((tree.folder / file).read_bytes() + b"pass\n")


@needs_git
@pytest.mark.parametrize(
    ("broken", "failing"),
    [
        (other_bytes, {"insertions only", "diff", "revert"}),
        (one_line_more, {"insertions only", "diff", "revert"}),
    ],
)
def test_check_fails_where_apply_does_more(
    checkout: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[trees.Tree], None],
    failing: set[str],
) -> None:
    monkeypatch.setattr(proofs, "apply", broken)
    before = read_files(checkout)
    assert tool.main(["check", str(checkout)]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = {line[5:].split(":")[0] for line in lines if line.startswith("FAIL")}
    assert failing <= failed
    assert read_files(checkout) == before


def test_check_fails_where_options_come_too_late(checkout: Path) -> None:
    upstream = trees.kind_of(checkout, anchors.load_upstreams(PATCHES))
    late = tuple(
        dataclasses.replace(one, place="after") if one.name == "options" else one
        for one in upstream.insertions
    )
    tree = trees.read_tree(checkout, [dataclasses.replace(upstream, insertions=late)])
    broken = [proof.name for proof in proofs.prove(tree) if proof.holds is False]
    assert broken == ["options"]


def test_check_without_git_says_so(
    checkout: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert tool.main(["check", str(checkout)]) == 0
    assert "skip diff: git is not installed" in capsys.readouterr().out


def test_lines_that_use_an_unknown_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    renamed = ("args = parse_args()", "options = parse_args()")
    checkout = write_checkout(tmp_path, "HunyuanVideo", sample_video=renamed)
    before = read_files(checkout)
    said = "'sampler' (the one assignment in main that calls .from_pretrained): found, but"
    err = refusal(capsys, 1, "apply", checkout)
    assert said in err and "use args, which main does not know there" in err
    assert read_files(checkout) == before


def test_inserted_lines_take_the_names_of_the_tree(tmp_path: Path) -> None:
    wan = write_checkout(tmp_path / "wan", "Wan2.1", generate=("parser", "options"))
    edit(wan / "generate.py", "def generate(args)", "def generate(arguments)")
    edit(wan / "generate.py", "WanI2V(seed=args.seed)", "WanI2V(seed=arguments.seed)")
    hunyuan = write_checkout(
        tmp_path / "hunyuan", "HunyuanVideo", sample_video=("hunyuan_video_sampler", "sampler")
    )
    assert tool.main(["apply", str(wan)]) == tool.main(["apply", str(hunyuan)]) == 0
    assert (
        '    options.add_argument("--delta_cache", nargs="?"' in (wan / "generate.py").read_text()
    )
    asked = "if arguments.delta_cache or arguments.delta_profile: "
    assert f"    {asked}wan_run(wan_i2v, arguments)\n" in (wan / "generate.py").read_text()
    assert ": hunyuan_run(sampler)\n" in (hunyuan / "sample_video.py").read_text()
    assert tool.main(["revert", str(wan)]) == tool.main(["revert", str(hunyuan)]) == 0


def stand_in_library(calls: list) -> ModuleType:
    """Notes how it is called."""
    upstream = ModuleType("profiling_core.upstream")
    upstream.check_options = lambda args: calls.append("check")
    upstream.check_used = lambda args: calls.append("used")
    upstream.wan_run = lambda made, args: calls.append((type(made).__name__, args.delta_cache))
    return upstream


def run_toy(checkout: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> list:
    """Run the toy's script; what the library and the toy's pipelines were called with."""
    calls: list = []

    class Pipeline:
        def __init__(self, seed: int) -> None:
            calls.append(type(self).__name__)

        def generate(self) -> None:
            calls.append("generate")

    wan, upstream = ModuleType("wan"), stand_in_library(calls)
    wan.WanT2V, wan.WanI2V = type("WanT2V", (Pipeline,), {}), type("WanI2V", (Pipeline,), {})
    monkeypatch.setitem(sys.modules, "wan", wan)
    asked = any(argument.startswith("--delta") for argument in arguments)
    monkeypatch.setitem(sys.modules, "profiling_core.upstream", upstream if asked else None)
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    exec(
        compile((checkout / "generate.py").read_text(), "generate.py", "exec"),
        {"__name__": "__main__"},
    )
    return calls


def test_library_is_imported_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = write_checkout(tmp_path, "Wan2.1")
    tool.main(["apply", str(checkout)])
    for seed, name in (("3", "WanI2V"), ("30", "WanT2V")):
        for options, plan in {
            ("--delta_cache",): "paper",
            ("--delta_cache", "fast"): "fast",
            ("--delta_profile", "file"): None,
        }.items():
            calls = run_toy(checkout, [*options, "--seed", seed], monkeypatch)
            assert calls == ["check", name, (name, plan), "generate", "used"]
        assert run_toy(checkout, ["--seed", seed], monkeypatch) == [name, "generate"]


@pytest.mark.parametrize(
    "upstream", [u for u in anchors.load_upstreams(PATCHES) if not u.refused], ids=lambda u: u.name
)
def test_inserted_options_are_those_of_our_trees(upstream: anchors.Upstream) -> None:
    ours, theirs = argparse.ArgumentParser(), argparse.ArgumentParser()
    add_delta_options(ours)
    options = next(one for one in upstream.insertions if one.name == "options")
    exec("\n".join(options.lines).replace("{object}", "parser"), {"parser": theirs})
    for mine, added in zip(ours._actions, theirs._actions, strict=True):
        for key in ("option_strings", "nargs", "const", "default", "metavar"):
            assert getattr(mine, key) == getattr(added, key)
    theirs.format_help()


def test_a_second_apply_and_a_second_revert_are_refused(
    checkout: Path, capsys: pytest.CaptureFixture
) -> None:
    tool.main(["apply", str(checkout)])
    patched = read_files(checkout)
    assert "in already (options, set-up, " in refusal(capsys, 1, "apply", checkout)
    assert read_files(checkout) == patched
    tool.main(["revert", str(checkout)])
    assert "nothing to revert" in refusal(capsys, 1, "revert", checkout)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('metavar="FILE"', 'metavar="PATH"', ["'options'", "is now line 12", 'metavar="PATH"']),
        (
            "        check_options(args)\n",
            "",
            ["'set-up'", "check_options({parameter})", "is gone"],
        ),
        (
            "        check_options(args)\n",
            "        print(1)\n        check_options(args)\n",
            ["'set-up'", "lines 25, 26, 28, no longer together"],
        ),
        (
            "wan_run(wan_t2v, args)",
            "wan_run(wan_t2v, args, 3)",
            ["'pipelines'", "line 33 is `if args.delta_cache", "wan_run(wan_t2v, args, 3)`"],
        ),
    ],
)
def test_lines_edited_by_hand_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, old: str, new: str, said: list[str]
) -> None:
    checkout = write_checkout(tmp_path, "Wan2.1")
    tool.main(["apply", str(checkout)])
    edit(checkout / "generate.py", old, new)
    before = read_files(checkout)
    for command in ("revert", "rebase", "apply"):
        err = refusal(capsys, 1, command, checkout)
        assert "generate.py" in err and "edited by hand" in err
        assert [words for words in said if words not in err] == []
    assert read_files(checkout) == before
    assert tool.main(["status", str(checkout)]) == 0
    assert "edited by hand" in capsys.readouterr().out


def test_other_edits_survive_revert(checkout: Path) -> None:
    tool.main(["apply", str(checkout)])
    file = next(path for path in checkout.glob("*.py"))
    file.write_bytes(file.read_bytes() + b"# delta_cache is on\n")
    tool.main(["revert", str(checkout)])
    assert file.read_bytes().endswith(b"# delta_cache is on\n")
    assert b"profiling_core" not in file.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "parser.parse_args()",
            "parser.parse_known_args()",
            ["'options'", "found 0 times", "line 11 calls .parse_known_args"],
        ),
        (
            "    return args\n",
            "    args = parser.parse_args([])\n    return args\n",
            ["'options'", "found 2 times, on lines 11, 13"],
        ),
        (
            "def _parse_args()",
            "def _read_args()",
            ["'options'", "no function _parse_args", "such a statement is in _read_args (line 11)"],
        ),
        (
            "def _init_logging",
            "def _parse_args(): pass\n\n\ndef _init_logging",
            ["'options'", "2 functions _parse_args, on lines 7, 16"],
        ),
        (
            "    _init_logging(rank)\n",
            "    _init_logging(rank); rank = 1\n",
            ["'set-up'", "line 22 holds more than this statement"],
        ),
        (
            "args = parser.parse_args()",
            "args = argparse.ArgumentParser().parse_args()",
            ["'options'", "its object is argparse.ArgumentParser(), expected a plain name"],
        ),
        (
            "import wan\n",
            "import wan\n\nPIPELINE = wan.WanFLF2V(seed=3)\n",
            ["'pipelines'", "not in such a statement: line 6 calls wan.WanFLF2V"],
        ),
        (
            "    _init_logging(rank)\n\n    if args.seed > 9:\n",
            "    if args.seed > 9:\n        _init_logging(rank)\n",
            ["'end'", "use check_used, which generate does not know there (line 31)"],
        ),
        ("    rank = 0\n", "    rank = = 0\n", ["line 21", "does not parse"]),
    ],
)
def test_a_moved_anchor_stops_with_candidates(
    tmp_path: Path, capsys: pytest.CaptureFixture, old: str, new: str, said: list[str]
) -> None:
    checkout = write_checkout(tmp_path, "Wan2.1", generate=(old, new))
    before = read_files(checkout)
    for command in ("apply", "diff", "rebase"):
        err = refusal(capsys, 1, command, checkout)
        assert [words for words in ("generate.py", *said) if words not in err] == []
    assert tool.main(["check", str(checkout)]) == 1
    assert capsys.readouterr().out.startswith("FAIL anchors")
    assert read_files(checkout) == before


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (WAN.encode("utf-16"), "not UTF-8 at byte 0"),
        (WAN.replace("\n", "\r").encode(), "carriage return"),
        (WAN.encode() + b"\0", "does not parse"),
    ],
)
def test_unreadable_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, data: bytes, said: str
) -> None:
    checkout = write_checkout(tmp_path, "Wan2.1")
    (checkout / "generate.py").write_bytes(data)
    assert said in refusal(capsys, 1, "apply", checkout)
    assert (checkout / "generate.py").read_bytes() == data


def test_a_failed_second_write_restores_the_first_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = write_checkout(tmp_path, "HunyuanVideo")
    before, replace, calls = read_files(checkout), os.replace, []

    def fails_second(source: str, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(edits.os, "replace", fails_second)
    assert "disk full" in refusal(capsys, 2, "apply", checkout)
    assert len(calls) == 3
    assert read_files(checkout) == before  # and no temporary file is left


def test_a_linked_file_stays_a_link(tmp_path: Path) -> None:
    checkout = write_checkout(tmp_path / "checkout", "Wan2.1")
    shutil.move(checkout / "generate.py", tmp_path / "real.py")
    (checkout / "generate.py").symlink_to(tmp_path / "real.py")
    tool.main(["apply", str(checkout)])
    assert (checkout / "generate.py").is_symlink()
    assert "wan_run" in (tmp_path / "real.py").read_text()


def test_script_runs_from_anywhere_and_imports_only_the_standard_library(tmp_path: Path) -> None:
    checkout = write_checkout(tmp_path / "checkout", "Wan2.1")
    script = [sys.executable, "-S", "-B", str(PATCHES / "patch.py"), "status", "checkout"]
    done = subprocess.run(script, cwd=checkout.parent, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tree: Wan2.1\nstate: not patched\n")
    own, reached, found = {path.stem for path in PATCHES.glob("*.py")}, {"patch"}, set()
    while reached - found:
        stem = (reached - found).pop()
        found.add(stem)
        tree = ast.parse((PATCHES / f"{stem}.py").read_text(), feature_version=(3, 10))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in (name.split(".")[0] for name in names):
                assert name in own | {"tomli", "pip"} | sys.stdlib_module_names
                reached |= {name} & own
    assert {"anchors", "edits", "trees", "proofs", "commits"} < found

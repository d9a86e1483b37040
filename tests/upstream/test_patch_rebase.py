"""The inserted lines follow their anchors to other commits, and what was checked is noted."""

import json
import re
import shutil
from pathlib import Path

import pytest

import patch as tool
from commits import read_record
from toy_checkouts import PATCHES, WAN, commit_all, git, read_files, write_checkout

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
SEED = '    parser.add_argument("--seed", type=int, default=0)\n'
MOVED = (SEED + "\n", SEED + "    more(parser)\n    again(parser)\n\n")


def toy(folder: Path, kind: str = "Wan2.1", **changes: tuple[str, str]) -> Path:
    return write_checkout(folder, kind, **changes)


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = tool.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_rebase_of_an_unpatched_tree_applies(tmp_path: Path) -> None:
    one, two = toy(tmp_path / "one"), toy(tmp_path / "two")
    tool.main(["apply", str(one)])
    assert tool.main(["rebase", str(two)]) == 0
    assert read_files(one) == read_files(two)


def test_rebase_of_lines_in_place_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkout = toy(tmp_path)
    tool.main(["apply", str(checkout)])
    before = read_files(checkout)
    code, out, _ = run(capsys, "rebase", checkout)
    assert code == 0 and "are at this commit's anchors" in out
    assert read_files(checkout) == before


def test_rebase_after_a_merge_that_moved_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Upstream puts lines before the anchor; a merge leaves ours above them."""
    old, new = toy(tmp_path / "old"), toy(tmp_path / "new", generate=MOVED)
    tool.main(["apply", str(old)])
    patched = (old / "generate.py").read_text()
    inserted = re.search(r"(    parser.*delta_cache.*\n.*delta_profile.*\n)", patched)[1]
    assert patched.count(inserted) == 1
    merged = patched.replace(inserted, "").replace(MOVED[0], inserted + MOVED[1])
    (old / "generate.py").write_text(merged)
    assert "run rebase" in run(capsys, "status", old)[1]
    code, out, _ = run(capsys, "rebase", old)
    assert code == 0 and "put at this commit's anchors" in out
    assert "state: patched\n" in run(capsys, "status", old)[1]
    tool.main(["apply", str(new)])
    assert read_files(old) == read_files(new)
    tool.main(["revert", str(old)])
    assert (old / "generate.py").read_text() == WAN.replace(*MOVED)


def test_rebase_after_one_of_two_files_was_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkout = toy(tmp_path, "HunyuanVideo")
    original = read_files(checkout)
    tool.main(["apply", str(checkout)])
    patched = read_files(checkout)
    (checkout / "sample_video.py").write_bytes(original["sample_video.py"])
    assert "run rebase" in run(capsys, "status", checkout)[1]
    assert "in already (options)" in run(capsys, "apply", checkout)[2]
    code, _, err = run(capsys, "revert", checkout)
    assert code == 1 and "the lines of set-up, sampler, end are gone" in err
    assert tool.main(["rebase", str(checkout)]) == 0
    assert read_files(checkout) == patched


@pytest.mark.parametrize("copies", [0, 2])
def test_rebase_after_one_pipeline_lost_or_doubled_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, copies: int
) -> None:
    checkout = toy(tmp_path)
    original = read_files(checkout)
    tool.main(["apply", str(checkout)])
    patched = read_files(checkout)
    lines = patched["generate.py"].splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if b"wan_run(wan_t2v" in line)
    (checkout / "generate.py").write_bytes(
        b"".join(lines[:at] + copies * lines[at : at + 1] + lines[at + 1 :])
    )
    assert "run rebase" in run(capsys, "status", checkout)[1]
    assert tool.main(["rebase", str(checkout)]) == 0
    assert read_files(checkout) == patched
    tool.main(["revert", str(checkout)])
    assert read_files(checkout) == original


def test_rebase_gives_a_new_pipeline_its_line(tmp_path: Path) -> None:
    """Upstream adds a task: one more pipeline is constructed."""
    task = "    if args.seed > 99:\n        wan_new = wan.WanNew(seed=args.seed)\n"
    more = ("    if args.seed > 9:\n", task + "    if args.seed > 9:\n")
    old, new = toy(tmp_path / "old"), toy(tmp_path / "new", generate=more)
    tool.main(["apply", str(old)])
    tool.main(["apply", str(new)])
    patched = read_files(new)["generate.py"]
    assert patched.count(b"wan_run(wan_new, args)\n") == 1
    merged = (old / "generate.py").read_text().replace(*more)
    (old / "generate.py").write_text(merged)
    assert tool.main(["rebase", str(old)]) == 0
    assert read_files(old)["generate.py"] == patched


def test_rebase_takes_out_lines_that_a_merge_doubled(tmp_path: Path) -> None:
    checkout = toy(tmp_path, "HunyuanVideo")
    tool.main(["apply", str(checkout)])
    patched = read_files(checkout)
    lines = patched["hyvideo/config.py"].splitlines(keepends=True)
    inserted = [line for line in lines if b"--delta" in line]
    at = lines.index(inserted[0])
    (checkout / "hyvideo" / "config.py").write_bytes(b"".join(lines[:at] + inserted + lines[at:]))
    assert tool.main(["rebase", str(checkout)]) == 0
    assert read_files(checkout) == patched


def test_rebase_of_a_patched_tree_names_the_moved_anchor_as_the_file_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkout = toy(tmp_path)
    tool.main(["apply", str(checkout)])
    path = checkout / "generate.py"
    path.write_text(path.read_text().replace("    _init_logging(rank)", "    init_logging(rank)"))
    before = read_files(checkout)
    code, out, err = run(capsys, "rebase", checkout)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "anchor 'set-up'" in err and "line 24 calls init_logging" in err
    assert read_files(checkout) == before


def test_rebase_says_where_a_conflict_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkout = toy(tmp_path, generate=("    rank = 0\n", "<<<<<<< ours\n    rank = 0\n"))
    code, _, err = run(capsys, "rebase", checkout)
    assert code == 1 and "line 21" in err and "solve merge conflicts first" in err


def test_apply_then_pull_then_rebase(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkout = toy(tmp_path)
    old = commit_all(checkout)
    toy(tmp_path, generate=MOVED)
    new = commit_all(checkout)
    git(checkout, "checkout", "-q", old)
    tool.main(["apply", str(checkout)])
    git(checkout, "checkout", "-q", "-m", new)
    if "<<<<<<<" in (checkout / "generate.py").read_text():
        assert run(capsys, "rebase", checkout)[0] == 1
        git(checkout, "checkout", "-q", new, "--", ".")
    assert tool.main(["rebase", str(checkout)]) == 0
    assert f"commit: {new}" in run(capsys, "status", checkout)[1]
    tool.main(["revert", str(checkout)])
    assert git(checkout, "status", "--porcelain", "generate.py") == ""


def test_record_notes_commit_date_and_result(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record.json"
    monkeypatch.setattr(tool, "RECORD", record)
    checkout = toy(tmp_path / "checkout")
    commit = commit_all(checkout)
    assert "checked: not yet" in run(capsys, "status", checkout)[1]
    assert tool.main(["rebase", str(checkout), "--record"]) == 0
    entry = json.loads(record.read_text())["Wan2.1"][commit]
    assert entry["result"] == "all checks hold"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", entry["checked"])
    assert f"checked: {entry['checked']}, all checks hold" in run(capsys, "status", checkout)[1]
    toy(checkout, generate=("_init_logging(rank)\n\n", "log(rank)\n\n"))
    moved = commit_all(checkout)
    assert run(capsys, "rebase", checkout, "--record")[0] == 1
    entries = json.loads(record.read_text())["Wan2.1"]
    assert [*entries] == [commit, moved] and "found 0 times" in entries[moved]["result"]
    assert record.read_text().count("\n") == 6  # one line per commit


def test_record_needs_the_commits_own_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    record = tmp_path / "record.json"
    checkout = toy(tmp_path / "checkout")
    code, _, err = run(capsys, "rebase", checkout, "--record", record)
    assert code == 2 and "no git checkout" in err
    commit_all(checkout)
    toy(checkout, generate=MOVED)
    code, _, err = run(capsys, "rebase", checkout, "--record", record)
    assert code == 2 and "differs from commit" in err
    assert not record.exists() and b"delta_cache" not in read_files(checkout)["generate.py"]


def test_a_folder_inside_a_checkout_has_no_commit_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    toy(tmp_path / "inner")
    commit_all(tmp_path)
    assert "commit: none, no git checkout" in run(capsys, "status", tmp_path / "inner")[1]


@pytest.mark.parametrize("bare", [False, True])
def test_history_checks_every_commit_and_distinct_contents_once(
    tmp_path: Path, capsys: pytest.CaptureFixture, bare: bool
) -> None:
    repository, record = tmp_path / "work", tmp_path / "record.json"
    repository.mkdir()
    first = commit_all(repository)
    toy(repository)
    good = [commit_all(repository), commit_all(repository)]
    toy(repository, generate=("parse_args()  # the anchor", "parse_known_args()"))
    bad = commit_all(repository)
    if bare:
        git(tmp_path, "clone", "-q", "--bare", "work", "bare")
        repository = tmp_path / "bare"
    code, out, _ = run(capsys, "history", repository, "--record", record)
    last = "Wan2.1: 4 commits, 3 distinct contents: 2 hold, 1 do not, 1 without the files"
    assert code == 1 and out.splitlines()[-1] == last
    entries = read_record(record)["Wan2.1"]
    assert [*entries] == [first, *good, bad]
    results = [entry["result"] for entry in entries.values()]
    assert results[:3] == ["files not there", "all checks hold", "all checks hold"]
    assert "found 0 times" in results[3] and str(tmp_path) not in record.read_text()


def test_history_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "other").mkdir()
    commit_all(tmp_path / "other")
    for folder, said in {
        "nowhere": "no such directory",
        "plain": "git rev-list failed",
        "other": "unknown kind of tree",
    }.items():
        code, _, err = run(capsys, "history", tmp_path / folder)
        assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"Wan2.1": {"abc": {"result": "ok"}}}'])
def test_a_broken_record_is_refused_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str
) -> None:
    record = tmp_path / "record.json"
    record.write_text(text)
    checkout = toy(tmp_path / "checkout")
    commit_all(checkout)
    code, _, err = run(capsys, "rebase", checkout, "--record", record)
    assert code == 2 and "not a record of checked commits" in err
    assert record.read_text() == text


def test_shipped_record_names_the_pinned_commits_as_checked() -> None:
    record = read_record(PATCHES / "upstreams.json")
    pinned = {
        "Wan2.1": "9737cba9c1c3c4d04b33fcad41c111989865d315",
        "Wan2.2": "42bf4cfaa384bc21833865abc2f9e6c0e67233dc",
        "HunyuanVideo": "fa14b001c18f37191c938a9ef6baad3b9b472759",
        "HunyuanVideo-I2V": "1481c1d5ae88e9905f54f2a3c6a1b68ef2a10528",
    }
    for name, commit in pinned.items():
        assert record[name][commit]["result"] == "all checks hold"

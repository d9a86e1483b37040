"""Files that appear whole: their modes, links and devices, and what a kill leaves."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from profiling_core.commands.main import main
from profiling_core.errors import InputError
from profiling_core.files import UNFINISHED, check_writable, machine, whole_file, write_whole
from tree_paths import ROOT


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_follow_the_umask_and_existing_ones_stay(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", b"1")
        assert mode(tmp_path / "new") == 0o640
        (tmp_path / "new").chmod(0o604)
        write_whole(tmp_path / "new", b"2")
        assert mode(tmp_path / "new") == 0o604 and (tmp_path / "new").read_bytes() == b"2"
    finally:
        os.umask(before)


def test_commands_write_files_that_others_may_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert main(["profile", str(tmp_path / "a.profile")]) == 0
        assert main(["presets", "--out", str(tmp_path / "plans")]) == 0
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and {mode(path) for path in files} == {0o644}


def test_links_are_written_through(tmp_path: Path) -> None:
    for target in ("there", "not there yet"):
        link = tmp_path / f"link to {target}"
        link.symlink_to(tmp_path / "folder" / target)
        write_whole(link, b"new")
        assert link.is_symlink() and (tmp_path / "folder" / target).read_bytes() == b"new"


def test_devices_and_fifos_are_never_replaced(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "fifo", tmp_path / "link", Path("/dev/null")):
        with pytest.raises(InputError, match="is a device or a FIFO: name a file"):
            write_whole(path, b"")
        assert not path.is_file()
        for argv in (["profile", str(path)], ["presets", "--profile", "x", "--out", str(path)]):
            assert main(argv) == 2
            assert str(path) in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="is a link that leads to itself: name a file"):
        write_whole(tmp_path / "loop", b"")


def test_no_message_names_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(OSError, match=r"No space left on device: \S*plan\.json") as raised:
        with whole_file(path) as temporary:
            raise OSError(errno.ENOSPC, "full", str(temporary))
    assert UNFINISHED not in str(raised.value)
    with pytest.raises(OSError, match=r"plan\.json"), whole_file(path):
        pass  # nothing was written
    with pytest.raises(OSError, match="elsewhere"), whole_file(path):
        (tmp_path / "elsewhere" / "x").read_bytes()  # another file's error stays its own
    assert not list(tmp_path.iterdir())


def test_what_a_kill_leaves_is_cleared_by_the_next_run(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from profiling_core.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.json")]
    killed = subprocess.run(command, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(UNFINISHED)
    at_work = tmp_path / f"{UNFINISHED}{machine()}-{os.getppid()}-x"
    elsewhere, forgotten = (tmp_path / f"{UNFINISHED}other-machine-1-{n}" for n in (1, 2))
    for folder in (at_work, elsewhere, forgotten):
        folder.mkdir()
    os.utime(forgotten, (0, 0))
    write_whole(tmp_path / "b.json", b"")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"b.json", at_work.name, elsewhere.name}


def test_a_folder_that_vanished_is_found_before_the_work(tmp_path: Path, monkeypatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError, match=r"-o plan\.json: .*"):
        check_writable(Path("plan.json"), "-o")


def test_a_folder_that_vanishes_during_the_work_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "out" / "plan.json"
    assert check_writable(path, "-o") == tmp_path and not path.parent.exists()
    write_whole(path, b"plan")
    assert path.read_bytes() == b"plan"

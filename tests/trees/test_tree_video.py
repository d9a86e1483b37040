"""File names and files of both trees: names are plain, a file is complete or not there."""

import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from profiling_core.errors import InputError
from profiling_core.runtime import video_file
from tree_cases import TreeCase
from tree_paths import ROOT

PATTERNS = {
    "wan": r"t2v-14B_1280x720_1_1_{words}_20260102_030405\.{suffix}",
    "hunyuan": r"2026-01-02-030405_seed42_{words}\.{suffix}",
}
HOSTILE = ["..", "../../etc/passwd", "a/b\\c", "line\nbreak\r\ttab", "x" * 500, "一只猫", "\0"]


def named(tree: TreeCase, words: str, suffix: str = "mp4") -> str:
    return PATTERNS[tree.name].format(words=words, suffix=suffix)


def test_default_name_follows_the_official_pattern(tree: TreeCase) -> None:
    name = tree.default_name("Two cats, boxing on a stage.")
    assert re.fullmatch(named(tree, "Two_cats_boxing_on_a_stage"), name)
    assert re.fullmatch(named(tree, "cat", "png"), tree.default_name("cat", still=True))


def test_hostile_prompts_make_plain_names(tree: TreeCase) -> None:
    for prompt in [*HOSTILE, "-rf", " "]:
        check_name(tree, tree.default_name(prompt))
    longest = {"wan": 50, "hunyuan": 100}[tree.name]
    assert re.fullmatch(named(tree, "x" * longest), tree.default_name("x" * 500))


@given(prompt=st.text())
def test_any_prompt_makes_a_plain_name(tree: TreeCase, prompt: str) -> None:
    check_name(tree, tree.default_name(prompt))


def check_name(tree: TreeCase, name: str) -> None:
    assert re.fullmatch(named(tree, "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"), name), name


def test_frames_are_truncated(tree: TreeCase) -> None:
    grey = 100.9 / 255 * (1 - tree.black) + tree.black
    clip = torch.tensor([grey, tree.black, 1.0, -3.0, 3.0]).expand(3, 1, 2, 5)
    assert tree.video.to_frames(clip)[0, 0, :, 0].tolist() == [100, 0, 255, 0, 255]
    assert tree.video.to_frames(torch.zeros(3, 5, 4, 6)).shape == (5, 4, 6, 3)


def test_a_saved_clip_has_its_own_size_and_rate(tree: TreeCase, tmp_path: Path) -> None:
    path, clip = tmp_path / "clip.mp4", tree.moving_clip()
    tree.video.save_video(clip, path, fps=tree.fps)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    frames = iio.imread(path, plugin="FFMPEG")
    assert frames.shape == (9, 40, 56, 3)  # 56 is no multiple of 16
    assert iio.immeta(path, plugin="FFMPEG")["fps"] == tree.fps
    assert np.abs(frames.astype(int) - tree.video.to_frames(clip).astype(int)).mean() < 6


def test_a_saved_image_is_exact_and_replaces_the_old(tree: TreeCase, tmp_path: Path) -> None:
    path, clip = tmp_path / "still.png", tree.moving_clip(frames=1)
    path.write_text("old")
    tree.video.save_image(clip, path)
    exact = tree.video.to_image(clip) if tree.name == "wan" else tree.video.to_frames(clip)[0]
    assert np.array_equal(iio.imread(path), exact)


@pytest.mark.parametrize("error", [RuntimeError("encoder died"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(
    tree: TreeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(path: Path, *args: object, **kwargs: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(video_file.iio, "imwrite", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
    with pytest.raises(expected):
        tree.video.save_video(tree.moving_clip(), tmp_path / "clip.mp4", fps=16, rescue=False)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_file_that_was_there(
    tree: TreeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text("old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_file.iio, "imwrite", fail)
    says = rf"{tree.failed_write} .*clip\.mp4: writing failed .*No space left"
    with pytest.raises(InputError, match=says):
        tree.video.save_video(tree.moving_clip(), path, fps=16, rescue=False)
    assert path.read_text() == "old"


TARGETS = {
    "wan": {
        "": "is a folder",
        "/proc/new/clip.mp4": r"cannot write into /proc \(",
        "file/clip.mp4": r"cannot write into .*file \(Not a directory\)",
        "clip": r"end its name in one of \.mp4",
        "clip.png": r"end its name in one of \.mp4",
        f"{'x' * 300}.mp4": "longer than 255 bytes",
    },
    "hunyuan": {
        "file/clip.mp4": "file is a file: name a folder",
        "file/new/clip.mp4": r"cannot write into .*file \(Not a directory\)",
        f"{'x' * 300}.mp4": "longer than 255 bytes",
        "/proc/new/clip.mp4": r"cannot write into /proc \(",
    },
}


def check_target(tree: TreeCase, path: Path) -> None:
    if tree.name == "wan":
        tree.video.check_target(path, still=False)
    else:
        tree.video.check_target(path.parent, path.name)


def test_unusable_targets_are_refused_and_the_check_leaves_no_trace(
    tree: TreeCase, tmp_path: Path
) -> None:
    check_target(tree, tmp_path / "clip.mp4")
    check_target(tree, tmp_path / "new" / "and" / "deeper" / "clip.mp4")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for name, says in TARGETS[tree.name].items():
        with pytest.raises(InputError, match=says):
            check_target(tree, tmp_path / name)


# both trees write through runtime/video_file, which needs no torch: processes start quickly

SAVE = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from profiling_core.runtime.video_file import write_video

if sys.argv[3] == "small disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
if sys.argv[3] == "interrupt":
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
noise = np.random.default_rng(0).integers(0, 256, (17, 128, 128, 3), dtype=np.uint8)
write_video(noise, Path(sys.argv[2]), 16, "saving", rescue=True)
"""


def save_in_a_process(path: Path, how: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SAVE, str(ROOT), str(path), how]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path, suffix: str) -> None:
    done = save_in_a_process(tmp_path / f"clip{suffix}", "small disk")
    assert done.returncode == 1
    assert re.search(r"InputError: saving .* \([01] of 17 frames are in the", done.stderr)
    assert "the frames could not be kept either" in done.stderr  # each is larger than the limit
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_full_disk_keeps_the_old_file_and_the_frames_elsewhere(tmp_path: Path) -> None:
    elsewhere, tmp_path = tmp_path / "tmp", tmp_path / "full"
    elsewhere.mkdir()
    tmp_path.mkdir()
    mounted = f"mount -t tmpfs -o size=16k tmpfs {tmp_path} 2>&-"
    save = shlex.join([sys.executable, "-c", SAVE, str(ROOT), "clip.mp4", "plainly"])
    script = f"{mounted} || exit 77; cd {tmp_path}; echo old > clip.mp4; {save}; ls -A; cat *"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    environment = {**os.environ, "TMPDIR": str(elsewhere)}
    options = {"capture_output": True, "text": True, "check": False, "env": environment}
    done = subprocess.run(command, **options)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("a tmpfs cannot be mounted here")
    assert "0 of 17 frames are in the file: is the disk full?" in done.stderr
    assert done.stdout == "clip.mp4\nold\n"
    (folder,) = elsewhere.glob("clip.frames-*")
    assert f"the frames are kept as PNG in {folder}" in done.stderr
    noise = np.random.default_rng(0).integers(0, 256, (17, 128, 128, 3), dtype=np.uint8)
    assert np.array_equal([iio.imread(path) for path in sorted(folder.iterdir())], noise)


def test_an_image_that_does_not_fit_is_one_line(tmp_path: Path, monkeypatch) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(InputError, match=r"writing failed .*File too large"):
            video_file.write_image(np.zeros((16, 16, 3), np.uint8), tmp_path / "a.png", "saving")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not ignored and not [*tmp_path.iterdir()]


BROKEN = {  # programs in ffmpeg's place
    "missing": ("", "ffmpeg does not run ("),
    "without libx264": ("echo \"Unknown encoder 'libx264'\" >&2; exit 1", "Unknown encoder"),
    "hangs": ("exec sleep 60", "timed out"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_an_ffmpeg_that_cannot_encode_is_found_before_loading(
    tree: TreeCase, outcome, nothing_loads: None, tmp_path: Path, monkeypatch, fault: str
) -> None:
    program, says = BROKEN[fault]
    if program:
        (tmp_path / "ffmpeg").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "ffmpeg"))
    monkeypatch.setattr(video_file, "TRIAL_SECONDS", 0.2)
    line = outcome(*tree.argv(frames=5))
    assert says in line and "set IMAGEIO_FFMPEG_EXE to an ffmpeg with libx264" in line


def test_a_clip_that_ffmpeg_refuses_in_the_end_is_kept_as_png(
    tree: TreeCase, tmp_path: Path, monkeypatch
) -> None:
    clip = tree.moving_clip()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    with pytest.raises(InputError, match=r"writing failed .*; the frames are kept as PNG in "):
        tree.video.save_video(clip, tmp_path / "clip.mp4", fps=16)
    (folder,) = tmp_path.iterdir()
    kept = np.stack([iio.imread(path) for path in sorted(folder.iterdir())])
    assert np.array_equal(kept, tree.video.to_frames(clip))


def test_a_link_is_written_through_and_modes_stay(tree: TreeCase, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real.mp4", tmp_path / "clip.mp4"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    tree.video.save_video(tree.moving_clip(), link, fps=16)
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert iio.imread(real, plugin="FFMPEG").shape[0] == 9


def test_an_encoder_that_starts_late_leaves_nothing_after_an_interrupt(tmp_path: Path) -> None:
    late = tmp_path / "late_ffmpeg"
    # a child of its own, so that imageio's kill does not reach it
    late.write_text('#!/bin/sh\nfor target; do :; done\n(sleep 1; : > "$target") &\nwait\n')
    late.chmod(0o755)
    clips = tmp_path / "clips"
    clips.mkdir()
    done = save_in_a_process(clips / "a.mp4", "interrupt", IMAGEIO_FFMPEG_EXE=str(late))
    assert "KeyboardInterrupt" in done.stderr
    time.sleep(1.2)
    assert not list(clips.iterdir())

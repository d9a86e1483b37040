"""File names and files."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from profiling_core.errors import InputError
from profiling_core.runtime import video_file
from tree_paths import ROOT
from wan.video import check_target, default_name, save_image, save_video, to_frames, to_image

NOW = datetime(2026, 1, 2, 3, 4, 5)


def name_of(prompt: str, *, still: bool = False) -> str:
    return default_name("t2v-14B", "1280*720", 1, 1, prompt, still=still, now=NOW)


def test_default_name_follows_the_official_pattern() -> None:
    name = name_of("Two cats, boxing on a stage.")
    assert name == "t2v-14B_1280x720_1_1_Two_cats_boxing_on_a_stage_20260102_030405.mp4"
    assert name_of("cat", still=True).endswith("_cat_20260102_030405.png")


@pytest.mark.parametrize(
    "prompt",
    [
        "..",
        "../../etc/passwd",
        "a/b\\c",
        "line\nbreak\r\ttab",
        "x" * 500,
        "一只猫",
        "\0",
        "-rf",
        " ",
    ],
)
def test_hostile_prompts_make_plain_names(prompt: str) -> None:
    check_name(name_of(prompt))


@given(st.text())
def test_any_prompt_makes_a_plain_name(prompt: str) -> None:
    check_name(name_of(prompt))


def check_name(name: str) -> None:
    assert re.fullmatch(
        r"t2v-14B_1280x720_1_1_[A-Za-z0-9][A-Za-z0-9._-]{0,49}_\d{8}_\d{6}\.mp4", name
    )


def test_prompt_is_cut_to_50_characters() -> None:
    assert f"_{'x' * 50}_2026" in name_of("x" * 500)


def test_frames_are_truncated_and_images_rounded() -> None:
    grey = 2 * 100.9 / 255 - 1
    clip = torch.tensor([grey, -1.0, 1.0, -3.0, 3.0]).expand(3, 1, 2, 5)
    assert to_frames(clip)[0, 0, :, 0].tolist() == [100, 0, 255, 0, 255]
    assert to_image(clip)[0, :, 0].tolist() == [101, 0, 255, 0, 255]
    assert to_frames(torch.zeros(3, 5, 4, 6)).shape == (5, 4, 6, 3)


def moving_clip(frames: int = 9, height: int = 40, width: int = 56) -> torch.Tensor:
    columns = torch.linspace(-1, 1, width).expand(3, frames, height, width).clone()
    for frame in range(frames):
        columns[:, frame, 8:24, 4 * frame : 4 * frame + 12] = 0.5
    return columns


def test_saved_clip_has_its_own_size_and_rate(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    save_video(moving_clip(), path, fps=16)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    frames = iio.imread(path, plugin="FFMPEG")
    assert frames.shape == (9, 40, 56, 3)  # 56 is no multiple of 16
    assert iio.immeta(path, plugin="FFMPEG")["fps"] == 16
    error = np.abs(frames.astype(int) - to_frames(moving_clip()).astype(int)).mean()
    assert error < 6


def test_saved_image_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    save_image(moving_clip(frames=1), path)
    assert np.array_equal(iio.imread(path), to_image(moving_clip(frames=1)))


def test_existing_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    path.write_text("old")
    save_image(moving_clip(frames=1), path)
    assert iio.imread(path).shape == (40, 56, 3)


@pytest.mark.parametrize("error", [RuntimeError("encoder died"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(path: Path, *args: object, **kwargs: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(video_file.iio, "imwrite", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
    with pytest.raises(expected):
        save_video(moving_clip(), tmp_path / "clip.mp4", fps=16)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text("old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_file.iio, "imwrite", fail)
    with pytest.raises(InputError, match=r"clip\.mp4: writing failed .*No space left"):
        save_video(moving_clip(), path, fps=16)
    assert path.read_text() == "old"


def test_target_check_leaves_no_trace(tmp_path: Path) -> None:
    check_target(tmp_path / "clip.mp4", still=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "still", "says"),
    [
        ("", False, "is a folder"),
        ("absent/clip.mp4", False, r"cannot write into .*absent \(No such file or directory\)"),
        ("file/clip.mp4", False, r"cannot write into .*file \(Not a directory\)"),
        ("clip", False, r"end its name in one of \.mp4"),
        ("clip.png", False, r"end its name in one of \.mp4"),
        ("still.mp4", True, r"end its name in one of \.png"),
        ("x" * 300 + ".mp4", False, "longer than 255 bytes"),
    ],
)
def test_unusable_targets_are_refused(tmp_path: Path, name: str, still: bool, says: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=says):
        check_target(tmp_path / name, still=still)


SAVE = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from wan.video import save_video

if sys.argv[3] == "small disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
if sys.argv[3] == "interrupt":
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
torch.manual_seed(0)
save_video(torch.rand(3, 17, 128, 128) * 2 - 1, Path(sys.argv[2]), 16)
"""


def save_in_a_process(path: Path, how: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", SAVE, str(ROOT / "Wan2.1"), str(path), how]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi"])
def test_a_file_that_is_cut_short_is_an_error(tmp_path: Path, suffix: str) -> None:
    done = save_in_a_process(tmp_path / f"clip{suffix}", "small disk")
    assert done.returncode == 1
    assert re.search(r"InputError: save_file .* \([01] of 17 frames are in the", done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_full_disk_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    mounted = f"mount -t tmpfs -o size=16k tmpfs {tmp_path} 2>&-"
    save = shlex.join([sys.executable, "-c", SAVE, str(ROOT / "Wan2.1"), "clip.mp4", "plainly"])
    script = f"{mounted} || exit 77; cd {tmp_path}; echo old > clip.mp4; {save}; ls -A; cat *"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("a tmpfs cannot be mounted here")
    assert "0 of 17 frames are in the file: is the disk full?" in done.stderr
    assert done.stdout == "clip.mp4\nold\n"


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

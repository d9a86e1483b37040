"""`--delta_profile` on both command lines: recorded, added to, refused, never half-written."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from profiling_core.profile.profile import Profile, Settings
from tree_cases import TreeCase

Run = Callable[..., int]


@pytest.fixture
def run(tree: TreeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs main() for the miniature's image of a few steps, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    target = "shown.mp4" if tree.name == "wan" else "shown"

    def call(*argv: str, steps: int = 3) -> int:
        values = {"frames": 1, "steps": steps, "seed": 1, "target": target, "model": tree.mini}
        words = [word for name, value in values.items() for word in (tree.options[name], value)]
        fixed = ["--prompt", "red circle", *tree.fixed[2:], *map(str, words)]
        return tree.script.main([*fixed, *argv])

    return call


def shown_paths(tmp_path: Path) -> list[Path]:
    return sorted(path for path in tmp_path.rglob("*") if path.suffix in (".png", ".mp4"))


def shown(tmp_path: Path) -> list[bytes]:
    """What was saved, and taken away again."""
    paths = shown_paths(tmp_path)
    kept = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    return kept


def test_a_run_is_recorded_and_the_next_is_added(tree: TreeCase, run: Run, tmp_path: Path) -> None:
    assert run() == 0
    plain = shown(tmp_path)
    assert len(plain) == 1
    assert run("--delta_profile", "a.profile") == 0
    assert shown(tmp_path) == plain  # recording changes nothing
    assert run("--delta_profile", "a.profile") == 0
    profile = Profile.load("a.profile")
    assert [run.prompt for run in profile.runs] == ["red circle"] * 2
    assert [run.seed for run in profile.runs] == [1, 1]
    assert profile.recorded.branches == tree.branches
    assert profile.recorded.attention_steps == (0,)
    assert np.array_equal(profile.arrays["gram"][0], profile.arrays["gram"][1])
    assert np.isfinite(profile.arrays["drift"]).all()


def test_the_folder_is_made(run: Run, tmp_path: Path) -> None:
    assert run("--delta_profile", "new/folder/a.profile", steps=2) == 0
    assert len(Profile.load(tmp_path / "new" / "folder" / "a.profile").runs) == 1


def test_the_files_own_settings_hold(tree: TreeCase, run: Run, tmp_path: Path) -> None:
    settings = Settings(mask="motion", attention_every=0, sensitivity=(1, 2))
    Profile(settings).save("a.profile")
    assert run("--delta_profile", "a.profile") == 0
    profile = Profile.load("a.profile")
    assert profile.settings == settings and not profile.has_attention
    effect = profile.arrays["sensitivity"][0]
    assert np.isnan(effect[0]) and (effect[1:] > 0).all()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--delta_profile", "a.profile", "--delta_cache"), "with --delta_cache paper: a profile"),
        (("--delta_profile", "."), "--delta_profile . is a folder: name a file"),
        (("--delta_profile", "broken/a.profile"), "broken (Not a directory): name another"),
        (("--delta_profile", "broken"), "profile broken: not a whole safetensors file"),
    ],
)
def test_bad_targets_are_named_before_loading(
    tree: TreeCase,
    run: Run,
    nothing_loads: None,
    argv: tuple[str, ...],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "broken").write_bytes(b"half a file")

    capsys.readouterr()
    assert run(*argv) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("profile", ["shown", "shown.mp4", "shown.mp4/a.profile"])
def test_a_clip_and_a_recording_of_one_path_are_refused(
    tree: TreeCase, run: Run, nothing_loads: None, profile: str, tmp_path: Path, capsys
) -> None:
    if tree.name == "hunyuan":  # where shown is the folder of the clip
        profile = profile.partition(".")[0]
    elif profile == "shown":
        profile = "../" + tmp_path.name + "/shown.mp4"
    assert run("--delta_profile", profile) == 2
    assert f"--delta_profile {profile} and the clip shown" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def full_disk(path: Path) -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_profile_that_cannot_be_written_costs_neither_clip_nor_recording(
    tree: TreeCase, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    save, elsewhere = Profile.save, tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))

    def fail(profile: Profile, path: Path) -> None:
        if path == Path("a.profile"):
            assert shown_paths(tmp_path), "the clip is saved first"
            raise full_disk(path)
        save(profile, path)

    monkeypatch.setattr(Profile, "save", fail)
    assert run("--delta_profile", "a.profile") == 2
    (kept,) = elsewhere.iterdir()
    line = (
        f"profile a.profile: No space left on device; this run's recording is kept alone in {kept}"
    )
    assert line in capsys.readouterr().err
    assert len(shown(tmp_path)) == 1 and len(Profile.load(kept).runs) == 1
    assert not Path("a.profile").exists()


def test_a_clip_that_cannot_be_written_does_not_cost_the_recording(
    tree: TreeCase, run: Run, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def fail(frames: np.ndarray, path: Path, *args: object, **kwargs: object) -> None:
        raise full_disk(path)

    for name in ("write_video", "write_image"):
        monkeypatch.setattr(tree.video.video_file, name, fail)
    assert run("--delta_profile", "a.profile") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert len(Profile.load("a.profile").runs) == 1


def test_another_step_count_leaves_the_file_alone(
    tree: TreeCase, run: Run, capsys: pytest.CaptureFixture
) -> None:
    assert run("--delta_profile", "a.profile") == 0
    before = Path("a.profile").read_bytes()
    assert run("--delta_profile", "a.profile", steps=4) == 2
    assert "the profile has steps 3, this run 4: record into another" in capsys.readouterr().err
    assert Path("a.profile").read_bytes() == before


def test_an_interrupted_run_leaves_the_file_alone(
    tree: TreeCase, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run("--delta_profile", "a.profile") == 0
    before = Path("a.profile").read_bytes()

    def interrupt(*args: object) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(tree.module.VideoVAE, "decode", interrupt)
    assert run("--delta_profile", "a.profile") == 130
    assert Path("a.profile").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_clip_without_finite_numbers_is_not_recorded(
    tree: TreeCase, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    load = tree.module.load_transformer

    def broken(*args: object, **kwargs: object) -> torch.nn.Module:
        model = load(*args, **kwargs)
        for parameter in tree.lists_of(model)[-1][1].parameters():
            parameter.data.fill_(torch.nan)
        return model

    monkeypatch.setattr(tree.module, "load_transformer", broken)
    assert run("--delta_profile", "a.profile") == 2
    block = 1 if tree.name == "wan" else 5  # four double blocks come first
    assert f"delta of block {block} at step 0, cond, is not finite" in capsys.readouterr().err
    assert not Path("a.profile").exists()


@pytest.mark.parametrize("tree", ["hunyuan"], indirect=True)
def test_noise_is_not_profiled(tree: TreeCase, tmp_path: Path, capsys) -> None:
    argv = [option for option in tree.argv() if option != "--flow-reverse"]
    assert tree.script.main([*argv, "--delta_profile", str(tmp_path / "a.profile")]) == 2
    assert "--delta_profile without --flow-reverse" in capsys.readouterr().err

"""Fixtures: checkpoint folders of tiny models, and mistakes on a tree's command line."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hunyuan_toys import write_checkpoint as write_hunyuan_checkpoint
from tree_cases import TreeCase
from wan_toys import write_checkpoint

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other
# under nohup and a shell's `&` signals are ignored, and the commands of tests would inherit it
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint folder that no test may change."""
    return write_checkpoint(tmp_path_factory.mktemp("Wan2.1-tiny"))


@pytest.fixture
def new_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny checkpoint folder of this test's own."""
    return lambda **options: write_checkpoint(tmp_path / "ckpt", **options)


@pytest.fixture(scope="session")
def hunyuan_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny HunyuanVideo checkpoint folder that no test may change."""
    return write_hunyuan_checkpoint(tmp_path_factory.mktemp("HYVideo-tiny"))


@pytest.fixture
def new_hunyuan_checkpoint(hunyuan_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of it of this test's own."""
    return shutil.copytree(hunyuan_checkpoint, tmp_path / "ckpts")


@pytest.fixture
def outcome(
    tree: TreeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., str]:
    """Runs main() in an empty working directory; returns its error line and checks the rest."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*argv: str, code: int = 2) -> str:
        capsys.readouterr()
        assert tree.script.main(list(argv)) == code
        assert not list(work.iterdir()), "a file was left"
        lines = capsys.readouterr().err.splitlines()
        lines = [line for line in lines if line and "step/s" not in line]  # but the progress bar
        assert len(lines) == 1, lines
        assert code != 2 or lines[0].startswith("error: ")
        return lines[0]

    return run


@pytest.fixture
def nothing_loads(tree: TreeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake is reported before anything heavy is touched."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were about to be loaded")

    for part in tree.loads:
        monkeypatch.setattr(tree.module, part, refuse)

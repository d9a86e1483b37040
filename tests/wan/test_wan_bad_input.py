"""What a user gets for a mistake: one line with the value and the way out, code 2, no file."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import generate
import wan.text2video
from profiling_core.plan.presets import load_preset
from tree_paths import ROOT
from wan_toys import tiny_dit, write_dit

RUN = ("--task", "t2v-mini", "--prompt", "red circle", "--frame_num", "1", "--sample_steps", "2")


@pytest.fixture
def outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., str]:
    """Runs main() in an empty working directory; returns its error line and checks the rest."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*argv: str, code: int = 2) -> str:
        capsys.readouterr()
        assert generate.main(list(argv)) == code
        assert not list(work.iterdir()), "a file was left"
        lines = capsys.readouterr().err.splitlines()
        lines = [line for line in lines if line and "step/s" not in line]  # but the progress bar
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake is told before anything heavy is touched."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were about to be loaded")

    for part in ("TextEncoder", "VideoVAE", "load_transformer"):
        monkeypatch.setattr(wan.text2video, part, refuse)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--task", "t2v-7B"), "error: argument --task: invalid choice: 't2v-7B'"),
        (("--size", "640*480"), "error: argument --size: invalid choice: '640*480'"),
        (("--sample_steps", "many"), "error: argument --sample_steps: invalid int value: 'many'"),
        (("--offload_model", "maybe"), "error: argument --offload_model: 'maybe' is neither"),
        (("--task", "i2v-14B"), "error: task i2v-14B is not there yet: take one of t2v-14B"),
        (("--task", "flf2v-14B"), "error: task flf2v-14B is not there yet"),
        (("--task", "vace-1.3B"), "error: task vace-1.3B is not there yet"),
        (("--task", "vace-14B"), "error: task vace-14B is not there yet"),
        (("--use_prompt_extend",), "error: --use_prompt_extend is not available: write"),
        (("--prompt_extend_method", "dashscope"), "error: --prompt_extend_method is not available"),
        (("--prompt_extend_model", "m"), "error: --prompt_extend_model is not available"),
        (("--prompt_extend_target_lang", "en"), "error: --prompt_extend_target_lang is not avail"),
        (("--ulysses_size", "0"), "error: --ulysses_size 0 is no number of processes: take 1"),
        (("--ring_size", "-2"), "error: --ring_size -2 is no number of processes: take 1"),
        (
            ("--ulysses_size", "2"),
            "--ulysses_size 2 x --ring_size 1 x --cfg_size 1 = 2 processes, but this run has 1",
        ),
        (
            ("--ring_size", "4"),
            "= 4 processes, but this run has 1: start them with torchrun --nproc_per_node=4",
        ),
        (("--dit_fsdp",), "error: --dit_fsdp shares out weights, but this run has one process"),
        (("--cfg_size", "3"), "--cfg_size 3: there are two guidance branches, take 1 or 2"),
        (("--t5_fsdp",), "error: --t5_fsdp shares out weights, but this run has one process"),
        (("--task", "t2v-14B"), "error: --ckpt_dir is missing: task t2v-14B needs"),
        (("--task", "t2v-1.3B", "--size", "1280*720"), "task t2v-1.3B: take 480*832, 832*480"),
        (("--task", "t2v-mini", "--size", "832*480"), "task t2v-mini: take 128*128"),
        (("--task", "t2i-14B", "--frame_num", "5"), "frame_num 5: task t2i-14B makes one image"),
        (("--frame_num", "80"), "error: frame_num 80 is not 4n+1: take 77 or 81"),
        (("--frame_num", "0"), "error: frame_num 0 is not 4n+1: take 1"),
        (("--frame_num", "-7"), "error: frame_num -7 is not 4n+1: take 1"),
        (
            ("--frame_num", f"4{'0' * 19}1"),
            f"frame_num 4{'0' * 19}1 is too large: take at most 4093",
        ),
        (("--sample_steps", "0"), "error: sample_steps 0 is too few: take at least 1"),
        (("--sample_steps", "-5"), "error: sample_steps -5 is too few"),
        (("--sample_steps", "100000"), "error: sample_steps 100000 is too many: take at most 1000"),
        (("--base_seed", "9" * 30), f"error: base_seed {'9' * 30} is too large"),
        (("--prompt", "caf\udce9"), "error: the prompt is not valid UTF-8"),
        (("--sample_shift", "0"), "error: sample_shift 0.0 is not a positive number"),
        (("--sample_shift", "inf"), "error: sample_shift inf is not a positive number"),
        (("--sample_shift", "1e9"), "error: sample_shift 1000000000.0 leaves no distance between"),
        (("--sample_guide_scale", "nan"), "error: sample_guide_scale nan is not a finite"),
        (("--prompt", ""), "error: the prompt is empty: describe in --prompt what"),
        (("--prompt", " \n "), "error: the prompt is empty"),
        (("--save_file", "/"), "error: save_file / is a folder: name a file in it"),
        (("--save_file", "no/such/clip.mp4"), "cannot write into no/such (No such file or"),
        (("--save_file", "/proc/clip.mp4"), "error: save_file /proc/clip.mp4: cannot write into"),
        (("--save_file", "clip.doc"), "error: save_file clip.doc: end its name in one of .mp4"),
        (("--ckpt_dir", "/no/such/folder"), "checkpoint folder /no/such/folder does not exist"),
        (("--ckpt_dir", "/etc/passwd"), "checkpoint folder /etc/passwd is not a folder"),
    ],
)
def test_wrong_arguments(
    outcome: Callable[..., str], nothing_loads: None, argv: tuple[str, ...], says: str
) -> None:
    line = outcome(*argv)
    assert line.startswith("error: ") and says in line


def test_several_processes_are_refused(
    outcome: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "= 1 processes, but this run has 2: change the degrees, --ulysses_size 2" in outcome(
        *RUN
    )


@pytest.mark.parametrize(("name", "text"), [("WORLD_SIZE", "abc"), ("RANK", "x")])
def test_a_foreign_environment_is_one_line(
    outcome: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    assert outcome(*RUN) == f"error: the environment's {name} '{text}' is no whole number"


def test_nothing_is_saved_of_numbers_that_are_not_finite(
    outcome: Callable[..., str], checkpoint: Path
) -> None:
    line = outcome(*RUN, "--ckpt_dir", str(checkpoint), "--sample_guide_scale", "1e38")
    assert line.startswith("error: sampling with sample_guide_scale 1e+38 and sample_shift 5.0")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "Wan2.1_VAE.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "diffusion_pytorch_model-00002-of-00003.safetensors",
        "google/umt5-xxl/tokenizer.json",
        "google/umt5-xxl/tokenizer_config.json",
    ],
)
def test_incomplete_checkpoint_names_the_file(
    outcome: Callable[..., str],
    new_checkpoint: Callable[..., Path],
    nothing_loads: None,
    name: str,
) -> None:
    folder = new_checkpoint(shards=3)
    (folder / name).unlink()
    line = outcome(*RUN, "--ckpt_dir", str(folder))
    missing = Path(name).parent if name.endswith("tokenizer.json") else name
    assert f"error: checkpoint folder {folder}: {missing}" in line
    assert "download" in line


def test_single_file_checkpoint_without_its_weights(
    outcome: Callable[..., str], new_checkpoint: Callable[..., Path], nothing_loads: None
) -> None:
    folder = new_checkpoint()
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    line = outcome(*RUN, "--ckpt_dir", str(folder))
    assert "diffusion_pytorch_model.safetensors is missing" in line


@pytest.mark.parametrize("content", ["truncated", "foreign", "empty"])
def test_damaged_safetensors(
    outcome: Callable[..., str], new_checkpoint: Callable[..., Path], content: str
) -> None:
    file = new_checkpoint() / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[:-100], "foreign": b"\x89PNG" * 20, "empty": b""}[content])
    line = outcome(*RUN, "--ckpt_dir", str(file.parent))
    assert line.startswith(f"error: {file} is not a complete safetensors file (")
    assert line.endswith("): download it again")


def test_weights_of_another_model(
    outcome: Callable[..., str], new_checkpoint: Callable[..., Path]
) -> None:
    folder = new_checkpoint()
    write_dit(folder, tiny_dit(num_layers=4))
    line = outcome(*RUN, "--ckpt_dir", str(folder))
    assert "19 tensors" in line or "tensors are not known to this model" in line
    assert "'blocks.3." in line


def test_encoder_of_another_width(
    outcome: Callable[..., str], new_checkpoint: Callable[..., Path]
) -> None:
    folder = new_checkpoint()
    write_dit(folder, tiny_dit(text_dim=24), text_dim=24)
    line = outcome(*RUN, "--ckpt_dir", str(folder))
    assert "the text encoder's width 32 and the transformer's text_dim 24 do not match" in line


def test_tokenizer_of_another_encoder(
    outcome: Callable[..., str], new_checkpoint: Callable[..., Path]
) -> None:
    folder = new_checkpoint()
    file = folder / "google" / "umt5-xxl" / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["vocab"] |= {f"word{i}": 17 + i for i in range(100)}
    file.write_text(json.dumps(document))
    line = outcome(*RUN, "--ckpt_dir", str(folder))
    assert "tokens, models_t5_umt5-xxl-enc-bf16.pth 64: take the tokenizer of this" in line


def test_not_enough_memory_says_what_was_needed(
    outcome: Callable[..., str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiling_core.runtime.memory.available_bytes", lambda device: 1000)
    line = outcome(*RUN, "--ckpt_dir", str(checkpoint))
    assert line.startswith("error: not enough memory on cpu: transformer 0.0 GB + VAE")
    assert "GB are needed, 0.0 GB are free: take a smaller model or" in line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_on_the_way(
    outcome: Callable[..., str],
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(wan.text2video.VideoVAE, "decode", fail)
    line = outcome(*RUN, "--ckpt_dir", str(checkpoint))
    says = "error: not enough memory on cpu for task t2v-mini, size 128*128, frame_num 1 ("
    assert line.startswith(says)
    assert line.endswith("take a smaller --size, fewer frames or a smaller model")


def test_a_real_failed_allocation_is_one_line(
    outcome: Callable[..., str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wan.text2video.VideoVAE, "decode", lambda self, latent: torch.empty(10**15))
    line = outcome(*RUN, "--ckpt_dir", str(checkpoint))
    assert line.startswith("error: not enough memory on cpu for task t2v-mini, size 128*128, f")


def test_a_bug_is_not_taken_for_a_user_error(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(wan.text2video.VideoVAE, "decode", fail)
    save = str(tmp_path / "clip.mp4")
    with pytest.raises(RuntimeError, match="a bug"):
        generate.main([*RUN, "--ckpt_dir", str(checkpoint), "--save_file", save])


def edited_plan(path: Path, **changes: object) -> Path:
    document = json.loads(load_preset("wan2.1-t2v-14B", "paper").dumps())
    path.write_text(json.dumps({**document, **changes}))
    return path


def test_plan_mistakes(
    outcome: Callable[..., str], checkpoint: Path, nothing_loads: None, tmp_path: Path
) -> None:
    other = edited_plan(tmp_path / "other.json")
    newer = edited_plan(tmp_path / "newer.json", format=99)
    no_json = tmp_path / "text.json"
    no_json.write_text("steps: 50")
    for value, says in (
        (str(other), "has 40 blocks, this model 3: take a plan that was made for this model"),
        (str(newer), "plan format 99 is not known here"),
        (str(no_json), "text.json: not JSON"),
        ("absent.json", "absent.json: No such file or directory"),
        ("fastest", "fastest"),
        (str(tmp_path), str(tmp_path)),
    ):
        line = outcome(*RUN, "--ckpt_dir", str(checkpoint), "--delta_cache", value)
        assert line.startswith("error: ") and says in line, line


def test_interrupt_leaves_no_file(
    outcome: Callable[..., str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wan.text2video.VideoVAE, "decode", interrupt)
    line = outcome(*RUN, "--ckpt_dir", str(checkpoint), code=130)
    assert line == "interrupted, no unfinished file is left"


@pytest.mark.parametrize("prompt", ["../../up", "a/b", "two\nlines", "red " * 125, "一只猫"])
def test_any_prompt_is_saved_beside_the_caller(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        wan.text2video.VideoVAE, "decode", lambda self, latent: torch.zeros(3, 1, 32, 32)
    )
    assert generate.main([*RUN, "--prompt", prompt, "--ckpt_dir", str(checkpoint)]) == 0
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".mp4" and file.stat().st_size > 0
    assert len(file.name) < 120 and file.name.isascii()


def test_the_script_itself_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    script = ROOT / "Wan2.1" / "generate.py"
    command = [sys.executable, str(script), "--task", "t2v-mini", "--frame_num", "10"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: frame_num 10 is not 4n+1: take 9 or 13\n"
    assert not list(tmp_path.iterdir())


SCRIPT = str(ROOT / "Wan2.1" / "generate.py")


def test_any_prompt_can_be_logged_on_a_narrow_terminal(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, *RUN, "--ckpt_dir", str(checkpoint), "--prompt", "一只猫"]
    command += ["--save_file", str(tmp_path / "clip.mp4")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "Logging error" not in done.stderr
    assert r"prompt: \u4e00\u53ea\u732b" in done.stdout


def test_closed_streams_are_no_error(checkpoint: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    words = [sys.executable, SCRIPT, *RUN, "--ckpt_dir", str(checkpoint), "--save_file", str(clip)]
    done = subprocess.run(f"{shlex.join(words)} >&- 2>&-", shell=True, check=False)
    assert done.returncode == 0 and clip.stat().st_size > 0


def test_termination_cleans_up_like_an_interrupt(checkpoint: Path, tmp_path: Path) -> None:
    """SIGTERM while the encoder works: exit code 143, and no file of a half-written clip."""
    slow = tmp_path / "slow_ffmpeg"
    slow.write_text('#!/bin/sh\nfor target; do :; done\n: > "$target"\nexec sleep 60\n')
    slow.chmod(0o755)
    clips = tmp_path / "clips"
    clips.mkdir()
    command = [sys.executable, SCRIPT, *RUN, "--ckpt_dir", str(checkpoint)]
    command += ["--save_file", str(clips / "clip.mp4")]
    environment = {**os.environ, "IMAGEIO_FFMPEG_EXE": str(slow)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(clips.glob(".*/clip.mp4")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert not list(clips.iterdir())

"""What a user gets for a mistake: one line that names it, code 2, no file; also for signals."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forked import Forked, script
from tree_cases import TreeCase

Outcome = Callable[..., str]
HUGE = f"4{'0' * 19}1"
SHARED = {
    "model": ("t2v-7B",),
    "frames": ("80", "0", "-7", HUGE),
    "steps": ("0", "-5", "100000", "many"),
    "shift": ("0", "inf", "nan"),
    "guidance": ("nan", "inf"),
    "prompt": ("", " \n ", "caf\udce9"),
    "seed": ("9" * 30,),
    "ulysses": ("0", "2"),
    "ring": ("-2", "4"),
    "cfg": ("3",),
    "folder": ("/no/such/folder", "/etc/passwd"),
    "target": ("/proc/x/clip.mp4", "/etc/passwd/clip.mp4"),
}
OWN = {
    "wan": """
        --size 640*480
        --size 832*480
        --offload_model maybe
        --image x.png
        --first_frame a.png
        --last_frame b.png
        --task i2v-14B
        --task flf2v-14B
        --src_video x.mp4
        --task vace-1.3B --src_mask x.mp4
        --use_prompt_extend
        --dit_fsdp
        --t5_fsdp
        --task t2v-1.3B --size 1280*720
        --task t2i-14B --frame_num 5
        --sample_shift 1e9
        --save_file /
        --save_file /proc/no/clip.mp4
        --save_file clip.doc
        --gpus 2
    """,
    "hunyuan": """
        --video-size
        --video-size 0 1280
        --video-size -16
        --video-size 99999999999999999999
        --embedded-cfg-scale inf
        --num-videos 0
        --batch-size 2
        --latent-channels 8
        --denoise-type ddpm
        --flow-solver heun
        --text-encoder clipL
        --tokenizer clipL
        --text-encoder-2 llm
        --tokenizer-2 llm
        --text-len 0
        --rope-theta 0
        --prompt-template x
        --disable-autocast
        --cfg-size 2
        --save-path /etc/passwd
        --gpus 2
    """,
}


def test_every_wrong_argument_is_one_line_that_names_it(
    tree: TreeCase, outcome: Outcome, nothing_loads: None
) -> None:
    wrong = [(tree.options[name], value) for name, values in SHARED.items() for value in values]
    wrong += [tuple(shlex.split(line)) for line in OWN[tree.name].strip().splitlines()]
    for words in wrong:
        line = outcome(*tree.argv(), *words)
        named = [word.lstrip("-") for word in words if word.strip("- \n")]
        assert any(word in line for word in named), (words, line)


EXAMPLES = {
    "wan": {
        "--task t2v-7B": "error: argument --task: invalid choice: 't2v-7B'",
        "--frame_num 80": "error: frame_num 80 is not 4n+1: take 77 or 81",
        "--src_mask x.mp4": "--src_mask x.mp4: task t2v-mini does not start from it, leave it out",
        "--ring_size 4": "= 4 processes, but this run has 1: start them with torchrun --nproc_per",
        "--save_file /proc/x/clip.mp4": "save_file /proc/x/clip.mp4: cannot write into /proc (",
        "--task t2v-14B": "/Wan2.1-T2V-14B does not exist: download Wan-AI/Wan2.1-T2V-14B",
    },
    "hunyuan": {
        "--infer-steps many": "error: argument --infer-steps: invalid int value: 'many'",
        "--video-length 80": "error: video-length 80 is not 4n+1: take 77 or 81",
        "--text-encoder clipL": "error: --text-encoder clipL: the transformer needs one state per",
        "--ulysses-degree 8": "= 8 processes, but this run has 1: start them with torchrun --npr",
        "--save-path /proc/x": "cannot write into /proc (",
        "--model HYVideo-T/2": "error: checkpoint folder ckpts does not exist: give --model-base",
    },
}


def test_the_line_says_what_to_do(tree: TreeCase, outcome: Outcome, nothing_loads: None) -> None:
    prompt = ("--prompt", "red circle", *tree.fixed)
    for words, says in EXAMPLES[tree.name].items():
        assert says in outcome(*prompt, *words.split())


def test_the_environment_of_another_launcher_is_one_line(
    tree: TreeCase, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    says = "= 3 processes, but this run has 2: leave the degrees out, they are chosen then"
    assert says in outcome(*tree.argv(ring=3))
    monkeypatch.setenv("WORLD_SIZE", "x")
    said = outcome(*tree.argv())
    assert said == "error: the environment's WORLD_SIZE 'x' is no whole number"


def test_an_incomplete_checkpoint_names_the_part_and_how_to_get_it(
    tree: TreeCase, outcome: Outcome, nothing_loads: None, tmp_path: Path
) -> None:
    for number, (name, says) in enumerate(tree.parts.items()):
        folder = tree.copy_checkpoint(tmp_path / f"copy{number}")
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        line = outcome(*tree.argv(folder=folder))
        assert str(folder) in line and says in line, line
        assert any(words in line for words in ("download", "load that repository", "are bundled"))


@pytest.mark.parametrize("content", ["truncated", "foreign", "empty"])
def test_damaged_weights_are_named(
    tree: TreeCase, outcome: Outcome, tmp_path: Path, content: str
) -> None:
    folder = tree.copy_checkpoint(tmp_path / "copy")
    file = tree.weight_file(folder)
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[:-100], "foreign": b"\x89PNG" * 20, "empty": b""}[content])
    line = outcome(*tree.argv(folder=folder))
    assert line.startswith(f"error: {file} is not a complete ") and " file (" in line
    assert line.endswith("): download it again")


def test_weights_of_another_model_are_named(
    tree: TreeCase, outcome: Outcome, tmp_path: Path
) -> None:
    folder = tree.copy_checkpoint(tmp_path / "copy")
    tree.write_deeper_weights(folder)
    line = outcome(*tree.argv(folder=folder))
    assert f"{folder}" in line and "tensors are not known to this model, the first is '" in line
    assert "blocks.3." in line


def test_numbers_that_are_not_finite_are_not_saved(tree: TreeCase, outcome: Outcome) -> None:
    line = outcome(*tree.argv(guidance="1e38"))
    assert line.startswith("error: sampling with ") and "1e+38" in line


def test_not_enough_memory_says_what_was_needed(
    tree: TreeCase, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiling_core.runtime.memory.available_bytes", lambda device: 1000)
    line = outcome(*tree.argv())
    assert line.startswith("error: not enough memory on cpu: transformer 0.0 GB + ")
    assert "GB are needed for decoding, 0.0 GB are free: take a smaller clip, a smaller" in line


def out_of_memory(kind: str) -> object:
    if kind == "a real one":
        return torch.empty(10**15)
    raise {
        "torch's": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
        "the allocator's": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9"),
        "Python's": MemoryError(),
    }[kind]


@pytest.mark.parametrize("kind", ["torch's", "the allocator's", "Python's", "a real one"])
def test_memory_that_runs_out_on_the_way_is_one_line(
    tree: TreeCase, outcome: Outcome, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(tree.module.VideoVAE, "decode", lambda *args: out_of_memory(kind))
    line = outcome(*tree.argv())
    model, frames = tree.options["model"].strip("-"), tree.options["frames"].strip("-")
    assert line.startswith(f"error: not enough memory on cpu for {model} {tree.fixed[1]}, ")
    assert f", {frames} 1" in line
    assert line.endswith("fewer frames or a smaller model")


def raises(error: BaseException) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


def test_a_bug_is_not_taken_for_a_user_error(
    tree: TreeCase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tree.module.VideoVAE, "decode", raises(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        tree.script.main(tree.argv())


def test_an_interrupt_leaves_no_file(
    tree: TreeCase, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree.module.VideoVAE, "decode", raises(KeyboardInterrupt()))
    assert outcome(*tree.argv(), code=130) == "interrupted, no unfinished file is left"


def test_plan_mistakes_are_named_before_loading(
    tree: TreeCase, outcome: Outcome, nothing_loads: None, tmp_path: Path
) -> None:
    document = json.loads(tree.plan(tree.intervals(0, 3)).dumps())
    del document["expected"]
    name, depth = next(iter(tree.block_lists.items()))
    deeper = document | {
        "model": document["model"] | {"block_lists": {**tree.block_lists, name: 30}}
    }
    wrong = {"deeper": json.dumps(deeper), "text": "steps: 50"}
    wrong["newer"] = json.dumps(document | {"format": 99})
    for stem, text in wrong.items():
        (tmp_path / f"{stem}.json").write_text(text)
    for value, says in (
        (tmp_path / "deeper.json", f"has 30 {name}, this model {depth}: take a plan that was made"),
        (tmp_path / "newer.json", "plan format 99 is not known here"),
        (tmp_path / "text.json", "text.json: not JSON"),
        ("absent.json", "absent.json: No such file or directory"),
        ("fastest", "fastest"),
        (tmp_path, str(tmp_path)),
    ):
        assert says in outcome(*tree.argv(), "--delta_cache", str(value))


@pytest.mark.parametrize("prompt", ["../../up\na/b", "red " * 125, "一只猫"])
def test_any_prompt_is_saved_under_the_caller(
    tree: TreeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    monkeypatch.chdir(tmp_path)
    frame = torch.zeros(3, 1, 32, 32)
    monkeypatch.setattr(tree.module.VideoVAE, "decode", lambda self, latent: frame)
    assert tree.script.main(tree.argv(prompt=prompt)) == 0
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.stat().st_size > 0 and len(file.name) < 150 and file.name.isascii()
    assert file.parent in (tmp_path, tmp_path / "results")


def test_a_plan_from_a_file_runs(
    tree: TreeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    tree.plan(tree.prediction(0, 1, 3, skip="linear"), name="mine").save(tmp_path / "mine.json")
    argv = tree.argv(frames=5, steps=6)
    assert tree.script.main([*argv, "--delta_cache", "mine.json"]) == 0
    assert f"plan 'mine' for {tree.plan_model}" in capsys.readouterr().out


def test_the_script_itself_ends_with_code_2_and_one_line(tree: TreeCase, tmp_path: Path) -> None:
    frames = tree.options["frames"]
    words = [tree.options["model"], tree.mini, "--prompt", "x", frames, "10"]
    command = [sys.executable, str(tree.script_path), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {frames.strip('-')} 10 is not 4n+1: take 9 or 13\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("tree", ["wan"], indirect=True)  # both end through the same exit_script
def test_termination_cleans_up_like_an_interrupt(
    tree: TreeCase, tmp_path: Path, number: int
) -> None:
    """A signal while the encoder works: its exit code, and no file of a half-written clip."""
    slow = tmp_path / "slow_ffmpeg"
    slow.write_text(
        '#!/bin/sh\nfor target; do :; done\n[ "$target" = - ] && exit\n'  # the trial
        ': > "$target"\nexec sleep 60\n'
    )
    slow.chmod(0o755)
    clips = tmp_path / "clips"
    clips.mkdir()
    argv = tree.argv(frames=5, target=clips / "clip.mp4")
    process = Forked(script(tree.script_path, *argv), IMAGEIO_FFMPEG_EXE=str(slow))
    deadline = time.monotonic() + 60
    while not list(clips.glob(".*/file.mp4")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send(number)
    assert process.wait(30) == 128 + number
    assert not list(clips.iterdir())

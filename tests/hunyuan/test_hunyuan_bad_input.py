"""What a user gets for a mistake: one line with the value and the way out, code 2, no file."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_hunyuan_weights import official_shapes, write_empty
from transformers import CLIPTextConfig, LlamaConfig

import hyvideo.checks
import hyvideo.pipeline
import sample_video
from hunyuan_toys import OFFICIAL_VAE, TINY, TINY_DIT, dit_file, tiny_config, tiny_dit
from hyvideo.checkpoint import MODEL
from hyvideo.config import CONFIGS
from hyvideo.sigmas import sigmas_fp32
from profiling_core.plan import CachePlan
from tree_paths import ROOT

SEED_COMMAND = (
    '--video-size 360 720 --video-length 129 --infer-steps 50 --prompt "A cat" --flow-reverse '
    "--use-cpu-offload --save-path ./results --seed 42 --model-base ckpts --dit-weight "
    "ckpts/hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt --delta_cache"
)
SHORT = ("--prompt", "red circle", "--video-length", "1", "--infer-steps", "2", "--flow-reverse")
RUN = ("--model", "HYVideo-tiny", *SHORT)


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "HYVideo-tiny", TINY)
    for name in ("MODEL_BASE", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


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
        assert sample_video.main(list(argv)) == code
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

    for part in ("LanguageModel", "PooledClip", "VideoVAE", "load_transformer"):
        monkeypatch.setattr(hyvideo.pipeline, part, refuse)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--model", "HYVideo-T/3"), "argument --model: invalid choice: 'HYVideo-T/3'"),
        (("--infer-steps", "many"), "argument --infer-steps: invalid int value: 'many'"),
        (("--video-size",), "argument --video-size: expected at least one argument"),
        (("--video-size", "720", "1280", "3"), "video-size 720 1280 3: give height and width, or"),
        (("--video-size", "0", "1280"), "video-size 0 1280: both have to be positive"),
        (("--video-size", "-16"), "video-size -16 -16: both have to be positive"),
        (("--video-size", "9" * 20), "is too large: take at most 16384"),
        (("--video-length", "80"), "video-length 80 is not 4n+1: take 77 or 81"),
        (("--video-length", "0"), "video-length 0 is not 4n+1: take 1"),
        (("--video-length", "-7"), "video-length -7 is not 4n+1: take 1"),
        (("--video-length", f"4{'0' * 19}1"), "is too large: take at most 4093"),
        (("--infer-steps", "0"), "infer-steps 0 is too few: take at least 1"),
        (("--infer-steps", "100000"), "infer-steps 100000 is too many: take at most 1000"),
        (("--flow-shift", "0"), "flow-shift 0.0 is not a positive number"),
        (("--flow-shift", "nan"), "flow-shift nan is not a positive number"),
        (("--cfg-scale", "nan"), "--cfg-scale nan is not a finite number"),
        (("--embedded-cfg-scale", "inf"), "--embedded-cfg-scale inf is not a finite number"),
        (("--prompt", ""), "the prompt is empty: describe in --prompt what"),
        (("--prompt", " \n "), "the prompt is empty"),
        (("--prompt", "caf\udce9"), "the prompt is not valid UTF-8"),
        (("--neg-prompt", "caf\udce9"), "the prompt is not valid UTF-8"),
        (("--seed", "9" * 30), f"seed {'9' * 30} is out of range"),
        (("--seed-type", "file"), "--seed-type file: there is no file of seeds, give --seed"),
        (("--seed-type", "fixed"), "--seed-type fixed: give the seed with --seed"),
        (("--seed-type", "random", "--seed", "1"), "--seed-type random and --seed 1 exclude each"),
        (("--num-videos", "0"), "num-videos 0 is too few: take at least 1"),
        (("--batch-size", "2"), "--batch-size 2: a batch has one prompt: take --num-videos for"),
        (("--latent-channels", "8"), "--latent-channels 8: the VAE 884-16c-hy has 16, take 16"),
        (("--denoise-type", "ddpm"), "--denoise-type ddpm: the model is a flow, take flow"),
        (("--flow-solver", "heun"), "--flow-solver heun: no other solver is known for this model"),
        (("--use-linear-quadratic-schedule",), "no schedule of that kind is defined, leave it out"),
        (("--linear-schedule-end", "9"), "--linear-schedule-end 9: it belongs to --use-linear-q"),
        (("--text-encoder", "clipL"), "--text-encoder clipL: the transformer needs one state per"),
        (("--tokenizer", "clipL"), "--tokenizer clipL: it belongs to the text encoder, take llm"),
        (("--text-encoder-2", "llm"), "--text-encoder-2 llm: the transformer needs CLIP's pooled"),
        (("--tokenizer-2", "llm"), "--tokenizer-2 llm: it belongs to the second text encoder"),
        (("--text-len", "0"), "--text-len 0: take 1 to 100000"),
        (("--rope-theta", "0"), "--rope-theta 0: take 1 to"),
        (("--prompt-template", "x"), "argument --prompt-template: invalid choice: 'x'"),
        (
            ("--disable-autocast",),
            "--disable-autocast with --precision bf16: the transformer mixes",
        ),
        (("--ulysses-degree", "0"), "--ulysses-degree 0 is no number of processes: take 1"),
        (("--ulysses-degree", "8"), "= 8 processes, but this run has 1: start them with torchrun"),
        (("--cfg-size", "2"), "--cfg-size 2 = 2 processes, but this run has 1"),
        (("--ring-degree", "2"), "= 2 processes, but this run has 1: start them with torchrun"),
        (("--save-path", "/proc/x"), "save-path /proc/x: cannot write into /proc ("),
        (("--save-path", "/etc/passwd"), "save-path /etc/passwd is a file: name a folder"),
        (("--name-suffix", "x" * 300), "is longer than 255 bytes: take a shorter --name-suffix"),
        (("--model-base", "/no/such/folder"), "checkpoint folder /no/such/folder does not exist"),
        (("--model-base", "/etc/passwd"), "checkpoint folder /etc/passwd is not a folder"),
        (("--gpus", "2"), "unrecognized arguments: --gpus 2 (see --help)"),
    ],
)
def test_wrong_arguments(
    outcome: Callable[..., str], nothing_loads: None, argv: tuple[str, ...], says: str
) -> None:
    line = outcome("--prompt", "a cat", "--flow-reverse", *argv)
    assert line.startswith("error: ") and says in line


def test_a_missing_prompt_is_told(outcome: Callable[..., str], nothing_loads: None) -> None:
    assert outcome("--flow-reverse") == "error: --prompt is missing: describe what is to be seen"


def test_the_issues_command_ends_at_the_missing_checkpoint(
    outcome: Callable[..., str], nothing_loads: None
) -> None:
    line = outcome(*shlex.split(SEED_COMMAND))
    assert line.startswith("error: checkpoint folder ckpts does not exist: give --model-base the")


def write_full_size(root: Path) -> None:
    """The official folder with true names and sizes, and no weights in it."""
    write_empty(dit_file(root), official_shapes("HYVideo-T/2-cfgdistill"))
    sizes = {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32}
    vae = {**OFFICIAL_VAE, **sizes, "layers_per_block": 2}
    (root / MODEL / "vae" / "config.json").write_text(json.dumps(vae))
    llama = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    llama |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128320}
    LlamaConfig(**llama, max_position_embeddings=8192).save_pretrained(root / "text_encoder")
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    CLIPTextConfig(**clip).save_pretrained(root / "text_encoder_2")


def test_the_issues_command_passes_every_check_of_a_full_size_folder(
    outcome: Callable[..., str],
    nothing_loads: None,
    new_hunyuan_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Arguments, folder, plan and sizes; it ends where 12.8 billion weights find no room."""
    write_full_size(new_hunyuan_checkpoint)
    monkeypatch.setattr("profiling_core.runtime.memory.available_bytes", lambda device: 16 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hyvideo.checks, "emulates", lambda dtype, device: False)
    command = shlex.split(SEED_COMMAND.replace("ckpts", str(new_hunyuan_checkpoint)))
    line = outcome(*command)
    parts = "transformer 25.6 GB + text encoder 30.0 GB + second text encoder 0.5 GB + VAE 1.0 GB"
    assert line.startswith(
        f"error: not enough memory on cpu: {parts} = 57.1 GB are needed, 16.0 GB"
    )


def test_one_frame_needs_room_beside_a_longer_template(
    outcome: Callable[..., str], nothing_loads: None
) -> None:
    templates = ("--prompt-template", "dit-llm-encode-video")
    line = outcome(*RUN, *templates, "--prompt-template-video", "dit-llm-encode")
    assert "--text-len 12 leave one frame's prompt no token: take a larger --text-len" in line


def test_a_plan_without_flow_reverse_is_refused(
    outcome: Callable[..., str], nothing_loads: None
) -> None:
    line = outcome("--prompt", "a cat", "--delta_cache")
    assert line.startswith("error: --delta_cache without --flow-reverse: plans are for falling")


def test_noise_is_warned_of(
    hunyuan_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = [word for word in RUN if word != "--flow-reverse"]
    argv += ["--model-base", str(hunyuan_checkpoint), "--save-path", str(tmp_path / "out")]
    assert sample_video.main(argv) == 0
    assert "WARNING: without --flow-reverse THE RESULT IS NOISE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--neg-prompt", "x"), "--neg-prompt has no effect without a --cfg-scale above 1"),
        (("--precision", "fp16"), "--precision fp16 is known to overflow"),
        (("--cfg-scale", "0.5"), "--cfg-scale 0.5 has no effect: only above 1 it guides"),
        (("--embedded-cfg-scale", "3"), "--embedded-cfg-scale has no effect: HYVideo-bare embeds"),
    ],
)
def test_what_is_hardly_meant_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    hunyuan_checkpoint: Path,
    capsys: pytest.CaptureFixture,
    options: tuple[str, ...],
    says: str,
) -> None:
    bare = tiny_config(transformer={**TINY_DIT, "guidance_embed": False})
    monkeypatch.setitem(CONFIGS, "HYVideo-bare", bare)
    monkeypatch.setattr(sample_video, "run", lambda args, config, plan, asked: None)
    argv = [*RUN, "--model", "HYVideo-bare", "--model-base", str(hunyuan_checkpoint), *options]
    assert sample_video.main(argv) == 0
    assert f"WARNING: {says}" in capsys.readouterr().out


def test_several_processes_are_refused(
    outcome: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "but this run has 2: change the degrees, --ulysses-degree 2" in outcome(*RUN)
    monkeypatch.setenv("WORLD_SIZE", "abc")
    assert outcome(*RUN) == "error: the environment's WORLD_SIZE 'abc' is no whole number"


def test_the_environments_model_base_is_named(
    outcome: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_BASE", "/no/such/models")
    line = outcome(*RUN, "--model", "HYVideo-T/2", "--model-base", "ckpts")
    assert "checkpoint folder /no/such/models does not exist" in line


MAKE_LLM = "llava-llama-3-8b-v1_1-transformers: load that repository with transformers'"
MAKE_CLIP = "it is OpenAI's clip-vit-large-patch14, the whole repository"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hunyuan-video-t2v-720p/vae/config.json", "config.json is missing: download it"),
        ("hunyuan-video-t2v-720p/vae/pytorch_model.pt", "pytorch_model.pt is missing: download"),
        (
            "hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt",
            "mp_rank_00_model_states.pt do not exist: download them, or give --dit-weight",
        ),
        (
            "text_encoder",
            f"text_encoder is missing: it holds the language model and the tokenizer "
            f"of xtuner's {MAKE_LLM}",
        ),
        ("text_encoder/config.json", f"text_encoder has no config.json: .*{MAKE_LLM}"),
        ("text_encoder/model.safetensors", f"text_encoder has no weight file .*{MAKE_LLM}"),
        ("text_encoder/tokenizer.json", f"text_encoder has no tokenizer .*{MAKE_LLM}"),
        ("text_encoder_2", f"text_encoder_2 is missing: {MAKE_CLIP}"),
        ("text_encoder_2/model.safetensors", f"text_encoder_2 has no weight file .*{MAKE_CLIP}"),
    ],
)
def test_incomplete_checkpoint_names_the_part_and_how_to_get_it(
    outcome: Callable[..., str],
    new_hunyuan_checkpoint: Path,
    nothing_loads: None,
    name: str,
    says: str,
) -> None:
    path = new_hunyuan_checkpoint / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    line = outcome(*RUN, "--model-base", str(new_hunyuan_checkpoint))
    assert str(new_hunyuan_checkpoint) in line
    start, _, end = says.partition(" .*")
    assert start in line and end in line


def test_a_folder_without_weights_is_told(
    outcome: Callable[..., str], hunyuan_checkpoint: Path, tmp_path: Path, nothing_loads: None
) -> None:
    line = outcome(*RUN, "--model-base", str(hunyuan_checkpoint), "--dit-weight", str(tmp_path))
    assert f"--dit-weight {tmp_path}: the folder holds no *_model_states.pt" in line


@pytest.mark.parametrize("content", ["truncated", "foreign", "empty"])
def test_damaged_weights(
    outcome: Callable[..., str], new_hunyuan_checkpoint: Path, content: str
) -> None:
    file = dit_file(new_hunyuan_checkpoint)
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[:-100], "foreign": b"\x89PNG" * 20, "empty": b""}[content])
    line = outcome(*RUN, "--model-base", str(new_hunyuan_checkpoint))
    assert line.startswith(f"error: {file} is not a complete weight file (")
    assert line.endswith("): download it again")


def test_weights_of_another_model(
    outcome: Callable[..., str], new_hunyuan_checkpoint: Path
) -> None:
    file = dit_file(new_hunyuan_checkpoint)
    torch.save({"module": tiny_dit(mm_single_blocks_depth=4).state_dict()}, file)
    line = outcome(*RUN, "--model-base", str(new_hunyuan_checkpoint))
    assert f"{file}: 8 tensors are not known to this model, the first is 'single_blocks.3." in line


def test_text_states_of_another_width(
    outcome: Callable[..., str], hunyuan_checkpoint: Path
) -> None:
    line = outcome(*RUN, "--model-base", str(hunyuan_checkpoint), "--text-states-dim", "40")
    assert "'txt_in.input_embedder.weight' has shape (48, 32), the model (48, 40)" in line


def test_too_much_text(outcome: Callable[..., str], hunyuan_checkpoint: Path) -> None:
    for option, says in (
        (("--text-len", "999"), "text_encoder: 1094 tokens with template and padding are more"),
        (("--text-len-2", "78"), "text_encoder_2: 78 tokens with template and padding are more"),
    ):
        assert says in outcome(*RUN, "--model-base", str(hunyuan_checkpoint), *option)


def test_nothing_is_saved_of_numbers_that_are_not_finite(
    outcome: Callable[..., str], hunyuan_checkpoint: Path
) -> None:
    line = outcome(*RUN, "--model-base", str(hunyuan_checkpoint), "--cfg-scale", "1e38")
    assert line.startswith("error: sampling with embedded-cfg-scale 6.0, cfg-scale 1e+38, flow-sh")


def test_not_enough_memory_says_what_was_needed(
    outcome: Callable[..., str], hunyuan_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiling_core.runtime.memory.available_bytes", lambda device: 1000)
    line = outcome(*RUN, "--model-base", str(hunyuan_checkpoint))
    assert line.startswith("error: not enough memory on cpu: transformer 0.0 GB + text encoder")
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
    hunyuan_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(hyvideo.pipeline.VideoVAE, "decode", fail)
    line = outcome(*RUN, "--model-base", str(hunyuan_checkpoint))
    says = "error: not enough memory on cpu for model HYVideo-tiny, video-size 32 32, video-length"
    assert line.startswith(says)
    assert line.endswith("take a smaller --video-size, fewer frames or a smaller model")


def test_a_bug_is_not_taken_for_a_user_error(
    hunyuan_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(hyvideo.pipeline.VideoVAE, "decode", fail)
    argv = [*RUN, "--model-base", str(hunyuan_checkpoint), "--save-path", str(tmp_path)]
    with pytest.raises(RuntimeError, match="a bug"):
        sample_video.main(argv)


def saved_plan(path: Path, *branches: str, double: int = 2) -> str:
    site = {"kind": "prediction", "skip": "hold", "compute_steps": {b: [0] for b in branches}}
    model = {
        "family": "hunyuan-video",
        "name": "other",
        "block_lists": {"double_blocks": double, "single_blocks": 3},
        "width": 48,
    }
    CachePlan.build(
        name="other",
        model=model,
        steps=2,
        sigmas=list(sigmas_fp32(2, 7.0)),
        solver="euler",
        shift=7.0,
        sites=[site],
        provenance={"made_by": "tests", "source": "by hand"},
    ).save(path)
    return str(path)


def test_plan_mistakes(
    outcome: Callable[..., str], hunyuan_checkpoint: Path, nothing_loads: None, tmp_path: Path
) -> None:
    no_json = tmp_path / "text.json"
    no_json.write_text("steps: 50")
    deeper = saved_plan(tmp_path / "deeper.json", "cond", double=20)
    two = saved_plan(tmp_path / "two.json", "cond", "uncond")
    for value, says in (
        (deeper, "has 20 double_blocks, this model 2: take a plan that was made for this model"),
        (two, "knows the branches cond and uncond, HunyuanVideo calls the model once a step"),
        (str(no_json), "text.json: not JSON"),
        ("absent.json", "absent.json: No such file or directory"),
        ("fastest", "fastest"),
        (str(tmp_path), str(tmp_path)),
    ):
        line = outcome(*RUN, "--model-base", str(hunyuan_checkpoint), "--delta_cache", value)
        assert line.startswith("error: ") and says in line, line


def test_interrupt_leaves_no_file(
    outcome: Callable[..., str], hunyuan_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hyvideo.pipeline.VideoVAE, "decode", interrupt)
    line = outcome(*RUN, "--model-base", str(hunyuan_checkpoint), code=130)
    assert line == "interrupted, no unfinished file is left"


@pytest.mark.parametrize("prompt", ["../../up", "a/b", "two\nlines", "red " * 125, "一只猫"])
def test_any_prompt_is_saved_in_the_folder(
    hunyuan_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    monkeypatch.setattr(
        hyvideo.pipeline.VideoVAE, "decode", lambda self, latent: torch.zeros(3, 1, 32, 32)
    )
    argv = [*RUN, "--model-base", str(hunyuan_checkpoint), "--prompt", prompt]
    assert sample_video.main([*argv, "--save-path", str(tmp_path / "out")]) == 0
    (file,) = (tmp_path / "out").iterdir()
    assert file.suffix == ".png" and file.stat().st_size > 0
    assert len(file.name) < 150 and file.name.isascii()


SCRIPT = str(ROOT / "HunyuanVideo" / "sample_video.py")
MINI = [sys.executable, SCRIPT, "--model", "HYVideo-mini", *SHORT]


def test_the_script_itself_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    command = [*MINI, "--video-length", "10"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: video-length 10 is not 4n+1: take 9 or 13\n"
    assert not list(tmp_path.iterdir())


TINY_SCRIPT = """
import signal, sys
sys.path[:0] = [{root!r}, {tests!r}, {tree!r}, {wan!r}]
from hunyuan_toys import TINY
from hyvideo.config import CONFIGS
import sample_video
CONFIGS["HYVideo-tiny"] = TINY
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
sys.exit(sample_video.main(sys.argv[1:]))
""".format(
    root=str(ROOT),
    tests=str(ROOT / "tests" / "lib"),
    tree=str(ROOT / "HunyuanVideo"),
    wan=str(ROOT / "Wan2.1"),
)


def test_termination_cleans_up_like_an_interrupt(hunyuan_checkpoint: Path, tmp_path: Path) -> None:
    """SIGTERM while the encoder works: exit code 143, and no file of a half-written clip."""
    slow = tmp_path / "slow_ffmpeg"
    slow.write_text('#!/bin/sh\nfor target; do :; done\n: > "$target"\nexec sleep 60\n')
    slow.chmod(0o755)
    clips = tmp_path / "clips"
    command = [sys.executable, "-c", TINY_SCRIPT, *RUN, "--video-length", "5"]
    command += ["--model-base", str(hunyuan_checkpoint), "--save-path", str(clips)]
    environment = {**os.environ, "IMAGEIO_FFMPEG_EXE": str(slow)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(clips.glob(".*/clip.mp4")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert not list(clips.iterdir())


def test_any_prompt_can_be_logged_and_streams_may_be_closed(
    hunyuan_checkpoint: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", TINY_SCRIPT, *RUN, "--model-base", str(hunyuan_checkpoint)]
    command += ["--save-path", str(tmp_path / "a"), "--prompt", "一只猫"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0 and "Logging error" not in done.stderr
    assert r"prompt: \u4e00\u53ea\u732b" in done.stdout
    done = subprocess.run(f"{shlex.join(command)} >&- 2>&-", shell=True, check=False)
    assert done.returncode == 0

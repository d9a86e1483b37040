"""Mistakes that only HunyuanVideo can be given; tests/trees holds what both trees share."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, LlamaConfig

import sample_video
from hunyuan_shapes import official_shapes, write_empty
from hunyuan_toys import OFFICIAL_VAE, TINY_DIT, dit_file, tiny_config
from hyvideo.checkpoint import MODEL
from hyvideo.config import CONFIGS
from tree_cases import TreeCase

SEED_COMMAND = (
    '--video-size 360 720 --video-length 129 --infer-steps 50 --prompt "A cat" --flow-reverse '
    "--use-cpu-offload --save-path ./results --seed 42 --model-base ckpts --dit-weight "
    "ckpts/hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt --delta_cache"
)


def test_a_missing_prompt_is_named(outcome: Callable[..., str], nothing_loads: None) -> None:
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
    command = shlex.split(SEED_COMMAND.replace("ckpts", str(new_hunyuan_checkpoint)))
    line = outcome(*command)
    parts = "transformer 25.6 GB + text encoder 30.0 GB + second text encoder 0.5 GB + VAE 1.0 GB"
    assert line.startswith(
        f"error: not enough memory on cpu: {parts} + frames 20.7 GB = 77.8 GB are needed for "
        "decoding, 16.0 GB"
    )


def test_one_frame_needs_room_beside_a_longer_template(
    tree: TreeCase, outcome: Callable[..., str], nothing_loads: None
) -> None:
    templates = ("--prompt-template", "dit-llm-encode-video")
    line = outcome(*tree.argv(), *templates, "--prompt-template-video", "dit-llm-encode")
    assert "--text-len 12 leave one frame's prompt no token: take a larger --text-len" in line


def test_noise_is_warned_of_and_a_plan_runs_with_it(
    tree: TreeCase, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = [word for word in tree.argv(target=tmp_path / "out") if word != "--flow-reverse"]
    tree.plan(tree.intervals(0, 3)).save(tmp_path / "mine.json")
    for plan in ((), ("--delta_cache", str(tmp_path / "mine.json"))):
        assert sample_video.main([*argv, *plan]) == 0
        assert "WARNING: without --flow-reverse THE RESULT IS NOISE" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 2


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
    tree: TreeCase,
    capsys: pytest.CaptureFixture,
    options: tuple[str, ...],
    says: str,
) -> None:
    bare = tiny_config(transformer={**TINY_DIT, "guidance_embed": False})
    monkeypatch.setitem(CONFIGS, "HYVideo-bare", bare)
    monkeypatch.setattr(sample_video, "run", lambda args, config, plan, asked: None)
    argv = [*tree.argv(model="HYVideo-bare"), *options]
    assert sample_video.main(argv) == 0
    assert f"WARNING: {says}" in capsys.readouterr().out


def test_the_environments_model_base_is_named(
    tree: TreeCase, outcome: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_BASE", "/no/such/models")
    line = outcome(*tree.argv(), "--model", "HYVideo-T/2", "--model-base", "ckpts")
    assert "checkpoint folder /no/such/models does not exist" in line


def test_a_folder_without_weights_is_named(
    outcome: Callable[..., str], tree: TreeCase, tmp_path: Path, nothing_loads: None
) -> None:
    line = outcome(*tree.argv(), "--dit-weight", str(tmp_path))
    assert f"--dit-weight {tmp_path}: the folder holds no *_model_states.pt" in line


def test_text_states_of_another_width(outcome: Callable[..., str], tree: TreeCase) -> None:
    line = outcome(*tree.argv(), "--text-states-dim", "40")
    assert "'txt_in.input_embedder.weight' has shape (48, 32), the model (48, 40)" in line


def test_too_much_text(outcome: Callable[..., str], tree: TreeCase) -> None:
    for option, says in (
        (("--text-len", "999"), "text_encoder: 1094 tokens with template and padding are more"),
        (("--text-len-2", "78"), "text_encoder_2: 78 tokens with template and padding are more"),
    ):
        assert says in outcome(*tree.argv(), *option)

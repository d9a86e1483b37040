"""Mistakes that only Wan2.1 can be given; tests/trees holds what both trees share."""

import json
from pathlib import Path

import pytest

import generate
from tree_cases import TreeCase, wan_case
from wan_toys import tiny_dit, write_checkpoint, write_dit


@pytest.fixture
def tree(tmp_path: Path) -> TreeCase:
    """On a checkpoint of the test's own, in three shards."""
    return wan_case(write_checkpoint(tmp_path / "ckpt", shards=3))


def error(tree: TreeCase, capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert generate.main(tree.argv(target=tree.checkpoint / "clip.mp4")) == 2
    assert not (tree.checkpoint / "clip.mp4").exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_a_missing_shard_is_named(tree: TreeCase, capsys: pytest.CaptureFixture) -> None:
    name = "diffusion_pytorch_model-00002-of-00003.safetensors"
    (tree.checkpoint / name).unlink()
    assert f"error: checkpoint folder {tree.checkpoint}: {name}" in error(tree, capsys)


def test_encoder_of_another_width(tree: TreeCase, capsys: pytest.CaptureFixture) -> None:
    write_dit(tree.checkpoint, tiny_dit(text_dim=24), shards=3, text_dim=24)
    says = "the text encoder's width 32 and the transformer's text_dim 24 do not match"
    assert says in error(tree, capsys)


def test_tokenizer_of_another_encoder(tree: TreeCase, capsys: pytest.CaptureFixture) -> None:
    file = tree.checkpoint / "google" / "umt5-xxl" / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["vocab"] |= {f"word{i}": 17 + i for i in range(100)}
    file.write_text(json.dumps(document))
    says = "tokens, models_t5_umt5-xxl-enc-bf16.pth 64: take the tokenizer of this"
    assert says in error(tree, capsys)


def test_a_gguf_file_in_place_of_the_transformer_is_named(
    tree: TreeCase, capsys: pytest.CaptureFixture
) -> None:
    for file in tree.checkpoint.glob("*.safetensors*"):
        file.unlink()
    (tree.checkpoint / "wan2.1-t2v-Q8_0.gguf").write_bytes(b"GGUF")
    says = "diffusion_pytorch_model.safetensors is missing and GGUF files are not read here:"
    assert f"error: checkpoint folder {tree.checkpoint}: {says}" in error(tree, capsys)

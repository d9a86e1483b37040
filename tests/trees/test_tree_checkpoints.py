"""Checkpoints of other programs, stand-ins for files and stored types: taken, or named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from profiling_core.errors import InputError
from tree_cases import TreeCase

Outcome = Callable[..., str]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 11361920418\n"


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the state dict in a weight file, wherever it lies in it."""
    if path.suffix == ".safetensors":
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        return
    content = torch.load(path, weights_only=True)
    key = next((key for key in ("module", "state_dict") if key in content), None)
    torch.save(change(content) if key is None else {key: change(content[key])}, path)


def in_type(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The first matrix in another type, as a quantised file has it."""
    name = next(name for name, tensor in state.items() if tensor.ndim > 1)
    return state | {name: state[name].to(dtype)}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_stored_numbers_that_need_a_scale_are_refused_in_every_part(
    tree: TreeCase, outcome: Outcome, tmp_path: Path, dtype: torch.dtype
) -> None:
    for number, name in enumerate(tree.weights):
        folder = tree.copy_checkpoint(tmp_path / f"copy{number}")
        rewrite(folder / name, lambda state: in_type(state, dtype))
        line = outcome(*tree.argv(folder=folder))
        assert line.startswith(f"error: {folder / name}: 1 tensors are stored as "), line
        assert "these are no weights without their scales" in line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_plain_types_are_taken(tree: TreeCase, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tree.copy_checkpoint(tmp_path / "copy")
    state = tree.state()
    loaded = tree.load_single(folder, in_type(state, dtype)).state_dict()
    torch.testing.assert_close(loaded, state, atol=4e-3, rtol=4e-3)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "model.model."])
def test_one_safetensors_file_of_the_transformer_loads_with_every_bit(
    tree: TreeCase, tmp_path: Path, prefix: str
) -> None:
    folder = tree.copy_checkpoint(tmp_path / "copy")
    state = tree.state()
    loaded = tree.load_single(folder, {prefix + name: t for name, t in state.items()}).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


FOREIGN_NAMES = {
    "a whole model in ComfyUI's layout": lambda state: (
        {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}
        | {"vae.conv_in.weight": torch.ones(2)}
    ),
    "this is a LoRA": lambda state: {"diffusion_model.blocks.0.q.lora_down.weight": torch.ones(2)},
    "these are diffusers' names: run that file with cache_pipeline": lambda state: {
        "condition_embedder.time_proj.weight": torch.ones(2),
        "transformer_blocks.0.attn.to_q.weight": torch.ones(2),
    },
    "this is another model's checkpoint, or a part of one": lambda state: {"x": torch.ones(2)},
    "are stored as (F8_E4M3|float8_e4m3fn)": lambda state: (
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}
        | {"scaled_fp8": torch.ones(2)}
    ),
}


@pytest.mark.parametrize("says", FOREIGN_NAMES)
def test_a_safetensors_file_of_another_program_is_named(
    tree: TreeCase, tmp_path: Path, says: str
) -> None:
    folder = tree.copy_checkpoint(tmp_path / "copy")
    with pytest.raises(InputError, match=says) as error:
        tree.load_single(folder, FOREIGN_NAMES[says](tree.state()))
    assert "_tiny_bf16.safetensors" in str(error.value) or str(folder) in str(error.value)


@pytest.mark.parametrize("content", [b"no weights at all", b"\x08" + bytes(7) + b"{}      "])
def test_a_damaged_safetensors_file_of_the_transformer_is_named(
    tree: TreeCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    folder = tree.copy_checkpoint(tmp_path / "copy")
    monkeypatch.setattr("tree_cases.save_file", lambda state, file: file.write_bytes(content))
    with pytest.raises(InputError, match=r"is not a complete safetensors file|tensors are missing"):
        tree.load_single(folder, {})


def test_a_git_lfs_pointer_is_named_as_one(
    tree: TreeCase, outcome: Outcome, nothing_loads: None, tmp_path: Path
) -> None:
    texts = [name for name in tree.parts if name.endswith(".json")]
    for number, name in enumerate((*tree.weights, *texts)):
        folder = tree.copy_checkpoint(tmp_path / f"copy{number}")
        (folder / name).write_text(POINTER)
        line = outcome(*tree.argv(folder=folder))
        assert line.startswith(f"error: {folder / name} is a git-lfs pointer, not the file: run"), (
            line
        )


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("a file that code has made", "w")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", " is a web page, not the file: download it"),
        (b"GGUF\x03" + bytes(60), " is a GGUF file, whose quantised weights are not read here"),
        (b"no weights at all", "(torch.save did not write it): download it again"),
        (b"hello", "(torch.save did not write it): download it again"),
        ({"module": Evil()}, "(it holds code beside tensors): download it again"),
    ],
)
def test_a_file_that_holds_something_else_is_named_and_no_unsafe_advice_passed_on(
    tree: TreeCase, outcome: Outcome, tmp_path: Path, content: Any, says: str
) -> None:
    for number, name in enumerate(name for name in tree.weights if name.endswith(("pt", "pth"))):
        folder = tree.copy_checkpoint(tmp_path / f"copy{number}")
        file = folder / name
        torch.save(content, file) if isinstance(content, dict) else file.write_bytes(content)
        line = outcome(*tree.argv(folder=folder))
        assert line.startswith(f"error: {file} is ") and says in line, line
        assert "weights_only" not in line and "trust" not in line


def layout(tree: TreeCase, kind: str, root: Path) -> tuple[Path, str]:
    """A folder of another program, and what has to be said of it."""
    root.mkdir()
    if kind in ("cache", "repository", "parent"):
        inner = {"cache": "hub/models--a--b/snapshots/77", "repository": "snapshots/77"}
        place = tree.copy_checkpoint(root / inner.get(kind, "weights"))
        return root, f"is not the checkpoint itself: give {tree.options['folder']} {place}, or"
    if kind == "file":
        file = shutil.copy(tree.weight_file(tree.checkpoint), root / "all.pt")
        return Path(file), "is a file: give the folder of all parts, or"
    if kind == "gguf file":
        (root / "all.gguf").write_bytes(b"GGUF")
        return root / "all.gguf", "is a GGUF file, whose quantised weights are not read here: take"
    made = {
        "diffusers": ("model_index.json", "is in diffusers' layout: run it with diffusers and"),
        "transformer": ("model_index.json", "is in diffusers' layout: run it with diffusers and"),
        "foreign cache": ("models--a--b/refs/main", "belongs to a cache of the Hugging Face Hub"),
        "comfy": ("diffusion_models/w.safetensors", "is ComfyUI's: put its transformer's"),
        "comfy root": ("models/diffusion_models/w.safetensors", "is ComfyUI's: put its transf"),
        "gguf": ("wan-Q4_0.gguf", "has quantised GGUF files, which are not read here"),
        "2.2": ("high_noise_model/config.json", "is Wan 2.2's: run it with diffusers and cache_p"),
        "1.5": ("transformer/480p_t2v/config.json", "is HunyuanVideo-1.5's: run it with diffuse"),
    }
    mark, says = made[kind]
    (root / mark).parent.mkdir(parents=True, exist_ok=True)
    (root / mark).write_text("{}")
    (root / "transformer").mkdir(exist_ok=True)
    return root / "transformer" if kind == "transformer" else root, says


KINDS = "cache repository parent file diffusers transformer comfy gguf 2.2 1.5".split()


@pytest.mark.parametrize("kind", [*KINDS, "foreign cache", "comfy root", "gguf file"])
def test_a_known_layout_of_another_program_is_named_with_the_way_out(
    tree: TreeCase, outcome: Outcome, nothing_loads: None, tmp_path: Path, kind: str
) -> None:
    folder, says = layout(tree, kind, tmp_path / "other")
    line = outcome(*tree.argv(folder=folder))
    assert line.startswith(f"error: checkpoint folder {folder} {says}"), line
    assert "config.json is missing" not in line


def test_the_bundled_miniature_is_not_taken_for_the_checkpoint_that_is_looked_for(
    tree: TreeCase, outcome: Outcome, nothing_loads: None
) -> None:
    line = outcome(*tree.argv(folder=tree.script_path.parent / "ckpts"))
    assert "is missing" in line or "has no folder" in line
    assert "is not the checkpoint itself" not in line


def test_a_missing_checkpoint_names_the_official_weights_and_the_miniature(
    tree: TreeCase, outcome: Outcome, nothing_loads: None, tmp_path: Path
) -> None:
    model = {"wan": "t2v-14B", "hunyuan": "HYVideo-T/2"}[tree.name]
    words = ("--prompt", "red circle", *tree.fixed, tree.options["model"], model)
    for given in ((), (tree.options["folder"], str(tmp_path)), (tree.options["folder"], "none")):
        line = outcome(*words, *given)
        assert tree.official in line and "Hugging Face" in line, line
        assert f"{tree.options['model']} {tree.mini} runs at once, its weights are bundled" in line

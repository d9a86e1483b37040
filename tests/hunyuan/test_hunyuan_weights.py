"""Strict loading of transformer checkpoints, up to the full official sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger

from hunyuan_shapes import FACTS, official_shapes, predict, write_empty
from hunyuan_toys import TINY, TINY_DIT, tiny_config, tiny_dit
from hyvideo.checkpoint import find_dit
from hyvideo.config import CONFIGS
from hyvideo.weights import load_transformer, transformer_bytes
from profiling_core.errors import InputError

MODELS = ["HYVideo-T/2", "HYVideo-T/2-cfgdistill"]


@pytest.mark.parametrize("model", MODELS)
def test_official_checkpoints_load_at_full_size(tmp_path: Path, model: str) -> None:
    shapes = official_shapes(model)
    loaded = load_transformer(write_empty(tmp_path / "m.pt", shapes), CONFIGS[model], "meta")
    state = loaded.state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == shapes
    assert len(state) == FACTS["models"][model]["keys"]
    parameters = sum(p.numel() for p in loaded.parameters())
    assert parameters == FACTS["models"][model]["parameters"]
    fp32 = {name for name, tensor in state.items() if tensor.dtype == torch.float32}
    assert fp32 == set(FACTS["fp32"])
    fp32_numbers = sum(state[name].numel() for name in fp32)
    assert transformer_bytes(CONFIGS[model]) == 2 * (parameters + fp32_numbers)


@pytest.mark.parametrize("model", MODELS)
def test_the_other_official_model_is_refused(tmp_path: Path, model: str) -> None:
    other = MODELS[1 - MODELS.index(model)]
    file = write_empty(tmp_path / "m.pt", official_shapes(other))
    what = "not known to this model" if "distill" in other else "missing"
    says = rf"m\.pt: 4 tensors are {what}, the first is 'guidance_in\.mlp\.0\.weight'"
    with pytest.raises(InputError, match=says):
        load_transformer(file, CONFIGS[model], "meta")


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("key", ["module", "ema", None])
def test_a_loaded_model_predicts_like_the_saved_one(tmp_path: Path, key: str | None) -> None:
    model = tiny_dit()
    state = model.state_dict()
    file = save(tmp_path / "m.pt", state if key is None else {key: state, "step": 1})
    config = tiny_config(precision="fp32", load_key=key or "module")
    loaded = load_transformer(file, config, "cpu")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(predict(loaded), predict(model))


def test_load_key_picks_one_of_two(tmp_path: Path) -> None:
    models = {"module": tiny_dit(1), "ema": tiny_dit(2)}
    file = save(tmp_path / "m.pt", {key: model.state_dict() for key, model in models.items()})
    for key, model in models.items():
        loaded = load_transformer(file, tiny_config(precision="fp32", load_key=key), "cpu")
        assert torch.equal(predict(loaded), predict(model))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_get_the_type_that_is_asked_for_but_the_last(
    tmp_path: Path, stored: torch.dtype, precision: str
) -> None:
    file = save(tmp_path / "m.pt", {"module": tiny_dit().to(stored).state_dict()})
    config = tiny_config(precision=precision)
    types = {n: p.dtype for n, p in load_transformer(file, config, "cpu").named_parameters()}
    expected = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    for name, dtype in types.items():
        last = name.startswith("final_layer.linear.")
        assert dtype == (torch.float32 if last else expected), name


def test_weights_do_not_follow_a_file_that_changes(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt", {"module": tiny_dit().state_dict()})
    loaded = load_transformer(file, tiny_config(precision="fp32"), "cpu")
    before = predict(loaded)
    with file.open("r+b") as stream:
        stream.write(b"\xff" * (file.stat().st_size // 2))
    assert torch.equal(predict(loaded), before)


def drop_a_tensor(state: dict) -> dict:
    return {k: v for k, v in state.items() if k != "double_blocks.1.txt_mod.linear.bias"}


def add_a_tensor(state: dict) -> dict:
    return {**state, "single_blocks.3.linear1.weight": torch.zeros(2)}


def reshape_a_tensor(state: dict) -> dict:
    return {**state, "final_layer.linear.bias": torch.zeros(7)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_a_tensor, "1 tensors are missing, the first is 'double_blocks.1.txt_mod.linear.bias"),
        (add_a_tensor, "'single_blocks.3.linear1.weight': this is another model's"),
        (reshape_a_tensor, r"'final_layer.linear.bias' has shape \(7,\), the model \(64,\)"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: Callable, says: str) -> None:
    file = save(tmp_path / "m.pt", {"module": change(tiny_dit().state_dict())})
    with pytest.raises(InputError, match=rf"m\.pt: .*{says}"):
        load_transformer(file, TINY, "cpu")


@pytest.mark.parametrize(
    ("content", "key", "says"),
    [
        ({"module": {}}, "ema", "has no 'ema': take --load-key module"),
        ({"module": {}, "ema": {}}, "net", "has no 'net': take --load-key module or ema"),
        ({"module": [1]}, "module", "holds no plain state dict"),
        ({"a": torch.zeros(1)}, "module", "missing, the first is 'img_in.proj.weight'"),
    ],
)
def test_files_of_another_shape_are_refused(
    tmp_path: Path, content: Any, key: str, says: str
) -> None:
    file = save(tmp_path / "m.pt", content)
    with pytest.raises(InputError, match=rf"m\.pt.* {says}"):
        load_transformer(file, tiny_config(load_key=key), "cpu")


def test_a_damaged_safetensors_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").touch()
    with pytest.raises(InputError, match=r"w\.safetensors is not a complete safetensors file"):
        load_transformer(tmp_path / "w.safetensors", tiny_config(), "cpu")


def test_a_folder_of_weights_is_searched(tmp_path: Path) -> None:
    (tmp_path / "mp_rank_00_model_states_fp8.pt").touch()
    with pytest.raises(InputError, match=r"holds no \*_model_states\.pt and no pytorch_model_\*"):
        find_dit(tmp_path)
    second = tmp_path / "pytorch_model_1.pt"
    second.touch()
    assert find_dit(tmp_path) == second
    first = tmp_path / "mp_rank_01_model_states.pt"
    first.touch()
    assert find_dit(tmp_path) == first
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="WARNING")
    (tmp_path / "mp_rank_00_model_states.pt").touch()
    assert find_dit(tmp_path).name == "mp_rank_00_model_states.pt"
    logger.remove(sink)
    assert lines == [f"2 weight files in {tmp_path}, taking mp_rank_00_model_states.pt"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads_num": 5}, "hidden_size 48 does not split into 5 heads"),
        ({"rope_dim_list": (8, 8, 4)}, "rope_dim_list"),
        ({"depth": 1}, "unexpected keyword argument 'depth'"),
    ],
)
def test_impossible_sizes_are_one_line(change: dict, says: str) -> None:
    config = tiny_config(transformer={**TINY_DIT, **change})
    with pytest.raises(InputError, match=f"model HYVideo-tiny: .*{says}"):
        transformer_bytes(config)

"""Strict loading of transformer checkpoints, up to the full official sizes."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from profiling_core.errors import InputError
from profiling_core.runtime.memory import available_bytes
from wan.checkpoint import dit_files
from wan.weights import _Rows, load_transformer, model_kwargs
from wan_toys import OFFICIAL_CONFIG, TINY_DIT, tiny_dit, write_dit

SHAPES = json.loads((Path(__file__).parents[1] / "data" / "wan2.1-t2v-shapes.json").read_text())
FULL_SIZES = {
    "T2V-1.3B": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "T2V-14B": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}
NAME = "diffusion_pytorch_model"
VACE = {**TINY_DIT, "model_type": "vace"}


def official_shapes(model: str) -> dict[str, list[int]]:
    facts = SHAPES["models"][model]
    blocks = {
        f"blocks.{i}.{name}": shape
        for i in range(facts["count"])
        for name, shape in facts["block"].items()
    }
    return {**facts["other"], **blocks}


def with_pictures(shapes: dict[str, list[int]], dim: int, pictures: int) -> dict[str, list[int]]:
    """The tensors of the official image-to-video model beside those of text to video."""
    added = {"patch_embedding.weight": [dim, 36, 1, 2, 2]}
    for i in range(40):
        cross = f"blocks.{i}.cross_attn"
        for part in ("k_img", "v_img"):
            added |= {f"{cross}.{part}.weight": [dim, dim], f"{cross}.{part}.bias": [dim]}
        added[f"{cross}.norm_k_img.weight"] = [dim]
    for layer, out, *inside in ((0, 1280), (1, 1280, 1280), (3, dim, 1280), (4, dim)):
        added |= {
            f"img_emb.proj.{layer}.weight": [out, *inside],
            f"img_emb.proj.{layer}.bias": [out],
        }
    if pictures == 2:
        added["img_emb.emb_pos"] = [1, 514, 1280]
    return shapes | added


def with_hints(shapes: dict[str, list[int]], layers: list[int]) -> dict[str, list[int]]:
    """The tensors of the official VACE model: a whole block and a projection a hint."""
    dim = shapes["blocks.0.norm3.weight"][0]
    square = {"weight": [dim, dim], "bias": [dim]}
    own = {name[9:]: shape for name, shape in shapes.items() if name.startswith("blocks.0.")}
    own |= {f"after_proj.{kind}": shape for kind, shape in square.items()}
    added = {f"vace_blocks.{n}.{name}": own[name] for n in range(len(layers)) for name in own}
    added |= {f"vace_blocks.0.before_proj.{kind}": shape for kind, shape in square.items()}
    patch = {"weight": [dim, 96, 1, 2, 2], "bias": [dim]}
    return shapes | added | {f"vace_patch_embedding.{k}": shape for k, shape in patch.items()}


def write_empty_shards(folder: Path, shapes: dict[str, list[int]], shards: int) -> None:
    """Real fp32 shards with true headers and a hole for the data: full size, no disk space."""
    names = sorted(shapes)
    weight_map = {}
    for number in range(shards):
        file = f"{NAME}-{number + 1:05d}-of-{shards:05d}.safetensors"
        header, offset = {}, 0
        for name in names[number::shards]:
            end = offset + 4 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [offset, end]}
            weight_map[name], offset = file, end
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + offset)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{NAME}.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("model", "model_type", "shards", "keys", "parameters"),
    [
        ("T2V-1.3B", "t2v", 2, 825, 1_418_996_800),
        ("T2V-14B", "t2v", 6, 1095, 14_288_491_584),
        ("T2V-14B", "i2v", 7, 1303, 16_394_878_784),
        ("T2V-14B", "flf2v", 7, 1304, 16_395_536_704),
        ("T2V-1.3B", "vace", 2, 1264, 2_153_972_032),
        ("T2V-14B", "vace", 7, 1331, 17_337_592_896),
    ],
)
def test_official_checkpoints_load_at_full_size(
    tmp_path: Path, model: str, model_type: str, shards: int, keys: int, parameters: int
) -> None:
    shapes, sizes = official_shapes(model), {**OFFICIAL_CONFIG, **FULL_SIZES[model]}
    if model_type == "vace":
        layers = [*range(0, sizes["num_layers"], 5 if model == "T2V-14B" else 2)]
        sizes |= {"model_type": model_type, "vace_in_dim": 96, "vace_layers": layers}
        shapes = with_hints(shapes, layers)
    elif model_type != "t2v":
        sizes |= {"model_type": model_type, "in_dim": 36}
        shapes = with_pictures(shapes, 5120, 1 if model_type == "i2v" else 2)
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    write_empty_shards(tmp_path, shapes, shards)
    loaded = load_transformer(tmp_path, "meta")
    found = {name: list(tensor.shape) for name, tensor in loaded.state_dict().items()}
    assert found == shapes
    assert (len(found), sum(p.numel() for p in loaded.parameters())) == (keys, parameters)


def test_a_full_size_shard_of_the_other_model_is_refused(tmp_path: Path) -> None:
    sizes = {**OFFICIAL_CONFIG, **FULL_SIZES["T2V-14B"], "num_layers": 30}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    write_empty_shards(tmp_path, official_shapes("T2V-1.3B"), 1)
    with pytest.raises(InputError, match=r"has shape \(1536,.*the model \(5120,"):
        load_transformer(tmp_path, "meta")


@pytest.mark.parametrize("shards", [1, 3])
def test_loaded_model_predicts_like_the_saved_one(tmp_path: Path, shards: int) -> None:
    model = tiny_dit()
    write_dit(tmp_path, model, shards)
    loaded = load_transformer(tmp_path, "cpu")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    x, text = [torch.randn(16, 2, 4, 4)], [torch.randn(3, 32)]
    with torch.no_grad():
        saved = model(x, torch.tensor([5]), text, 8)[0]
        assert torch.equal(saved, loaded(x, torch.tensor([5]), text, 8)[0])


def test_fsdp_reads_the_same_rows_from_a_file_with_comfyuis_prefix(tmp_path: Path) -> None:
    state = tiny_dit().state_dict()
    save_file(
        {f"model.diffusion_model.{k}": t for k, t in state.items()}, tmp_path / "own.safetensors"
    )
    with _Rows(tmp_path, dit_files(tmp_path)) as read:
        for name, tensor in state.items():
            assert torch.equal(read(name, 0, 1), tensor[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_get_the_type_that_is_asked_for(
    tmp_path: Path, stored: torch.dtype, dtype: torch.dtype
) -> None:
    write_dit(tmp_path, tiny_dit().to(stored))
    loaded = load_transformer(tmp_path, "cpu", dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}


def test_config_takes_unknown_keys_and_defaults_missing_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"dim": 64, "num_heads": 4, "new_key": 1}))
    kwargs = model_kwargs(tmp_path)
    assert kwargs["dim"] == 64 and kwargs["num_layers"] == 32 and kwargs["text_len"] == 512
    assert "new_key" not in kwargs


def drop_a_tensor(state: dict) -> dict:
    return {k: v for k, v in state.items() if k != "blocks.1.modulation"}


def add_a_tensor(state: dict) -> dict:
    return {**state, "blocks.1.cross_attn.k_img.weight": torch.zeros(2)}


def reshape_a_tensor(state: dict) -> dict:
    return {**state, "head.head.bias": torch.zeros(7)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_a_tensor, "1 tensors are missing, the first is 'blocks.1.modulation'"),
        (add_a_tensor, "'blocks.1.cross_attn.k_img.weight': this is another model's"),
        (reshape_a_tensor, r"'head.head.bias' has shape \(7,\), the model \(64,\)"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: Callable, says: str) -> None:
    write_dit(tmp_path, tiny_dit())
    file = tmp_path / f"{NAME}.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(InputError, match=says):
        load_transformer(tmp_path, "cpu")


def test_an_index_that_names_an_absent_tensor_is_refused(tmp_path: Path) -> None:
    write_dit(tmp_path, tiny_dit(), shards=2)
    path = tmp_path / f"{NAME}.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["blocks.9.modulation"] = f"{NAME}-00002-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"00002-of-00002\.safetensors: tensor 'blocks\.9\."):
        load_transformer(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("{", "is not a complete JSON file"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "is no file name of this folder"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, index: str, says: str) -> None:
    write_dit(tmp_path, tiny_dit())
    (tmp_path / f"{NAME}.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=says):
        load_transformer(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**TINY_DIT, "dim": "big"}, "dim is 'big', expected a value of type int"),
        ({**TINY_DIT, "num_heads": 5}, "dim 48 does not split into 5 heads"),
        ({**TINY_DIT, "dim": -48}, "dim is -48, expected 1 to 1000000"),
        ({**TINY_DIT, "num_layers": 10**6}, "num_layers is 1000000, expected 1 to 1000"),
        ({**TINY_DIT, "patch_size": [10**6] * 3}, r"config\.json: .*overflow"),
        ({**TINY_DIT, "model_type": "s2v"}, "model_type 's2v' is not supported, expected t2v"),
        (
            {**VACE, "vace_layers": [1, 2]},
            r"vace_layers \[1, 2\]: expected ascending block numbers",
        ),
        ({**VACE, "vace_layers": [0, 3]}, "block numbers from 0 to 2, 0 among them"),
        ({**VACE, "vace_layers": ["0"]}, r"vace_layers is \('0',\), expected whole numbers"),
        ({**TINY_DIT, "patch_size": [1, 2]}, r"patch_size is \(1, 2\), expected 3 numbers"),
    ],
)
def test_a_wrong_config_is_refused(tmp_path: Path, config: dict, says: str) -> None:
    write_dit(tmp_path, tiny_dit())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=says):
        load_transformer(tmp_path, "cpu")


def test_host_memory_is_known_and_a_container_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = available_bytes(torch.device("cpu"))
    assert plain is None or plain > 0
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("1500000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 300000\n")
    monkeypatch.setattr("profiling_core.runtime.memory.CGROUP", tmp_path)
    assert available_bytes(torch.device("cpu")) == 800_000

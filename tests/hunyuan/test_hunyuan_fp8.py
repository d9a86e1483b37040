"""Eight-bit weights: stored as such, put back layer by layer, with their file of scales."""

import dataclasses
from pathlib import Path

import pytest
import torch

from hunyuan_shapes import predict
from hunyuan_toys import TINY_DIT, dit_file, tiny_config, tiny_dit, write_fp8
from hyvideo.checkpoint import find_files
from hyvideo.config import CONFIGS
from hyvideo.fp8 import Fp8Linear, block_linears
from hyvideo.model import HYVideoDiffusionTransformer
from hyvideo.weights import build_transformer, load_transformer, transformer_bytes
from profiling_core.errors import InputError

FP8 = tiny_config(use_fp8=True, precision="fp32")


def test_ten_linears_of_a_double_and_three_of_a_single_block_are_stored_in_8_bits() -> None:
    config = CONFIGS["HYVideo-T/2-cfgdistill"]
    half = build_transformer(config)
    assert len(block_linears(half)) == 320
    eight = build_transformer(dataclasses.replace(config, use_fp8=True))
    assert {name: p.shape for name, p in eight.named_parameters()} == {
        name: p.shape for name, p in half.named_parameters()
    }
    stored = {n for n, p in eight.named_parameters() if p.dtype == torch.float8_e4m3fn}
    assert stored == {f"{name}.weight" for name in block_linears(half)}
    saved = sum(eight.get_parameter(name).numel() for name in stored)
    assert transformer_bytes(config) - saved == transformer_bytes(
        dataclasses.replace(config, use_fp8=True)
    )
    assert 10e9 < saved < 13e9


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    file = tmp_path / "mp_rank_00_model_states_fp8.pt"
    return file, write_fp8(file, tiny_dit())


def test_the_model_predicts_as_with_the_weights_put_back(
    written: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    file, exact = written
    loaded = load_transformer(file, FP8, "cpu")
    linears = block_linears(loaded)
    assert len(linears) == 2 * 10 + 3 * 3
    assert all(type(linear) is Fp8Linear for linear in linears.values())
    assert all(linear.weight.dtype == torch.float8_e4m3fn for linear in linears.values())
    plain = HYVideoDiffusionTransformer(**TINY_DIT).eval()
    plain.load_state_dict(exact)
    torch.testing.assert_close(predict(loaded), predict(plain), atol=1e-6, rtol=1e-5)
    assert not torch.equal(predict(loaded), predict(tiny_dit()))  # 8 bits are not exact


def test_a_weight_is_rounded_once_to_the_computing_type(
    written: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    file, exact = written
    loaded = load_transformer(file, tiny_config(use_fp8=True), "cpu")
    name = "single_blocks.1.linear1"
    linear = block_linears(loaded)[name]
    assert linear.bias.dtype == torch.bfloat16
    rows = torch.eye(48, dtype=torch.bfloat16)
    weight = (linear(rows) - linear(torch.zeros_like(rows)))[:4, :5]
    assert weight.dtype == torch.bfloat16
    linear.bias.zero_()
    assert torch.equal(linear(rows).T, exact[f"{name}.weight"].bfloat16())


def test_scales_may_be_numbers_or_tensors_of_one(
    written: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    file, _ = written
    path = file.with_name("mp_rank_00_model_states_fp8_map.pt")
    before = predict(load_transformer(file, FP8, "cpu"))
    scales = torch.load(path)
    for change in (float, lambda scale: scale.reshape(1, 1)):
        torch.save({name: change(scale) for name, scale in scales.items()}, path)
        assert torch.equal(predict(load_transformer(file, FP8, "cpu")), before)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {k: v for k, v in s.items() if k[0] == "d"}, "scales of 9 layers are missing"),
        (lambda s: {**s, "single_blocks.0.linear1": torch.ones(2)}, "'single_blocks.0.linear1' is"),
        (lambda s: dict.fromkeys(s, 0.0), "is no positive number"),
        (lambda s: dict.fromkeys(s, float("nan")), "is no positive number"),
        (lambda s: dict.fromkeys(s, "x"), "is no positive number"),
        (lambda s: [1], "holds no dict of scales"),
    ],
)
def test_a_wrong_map_is_named(
    written: tuple[Path, dict[str, torch.Tensor]], change: object, says: str
) -> None:
    file, _ = written
    path = file.with_name("mp_rank_00_model_states_fp8_map.pt")
    torch.save(change(torch.load(path)), path)
    with pytest.raises(InputError, match=rf"fp8_map\.pt.*{says}"):
        load_transformer(file, FP8, "cpu")
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"fp8_map\.pt is not a complete file of scales"):
        load_transformer(file, FP8, "cpu")


def test_weights_that_are_not_in_8_bits_are_refused(
    written: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    file, _ = written
    torch.save({"module": tiny_dit().state_dict()}, file)
    with pytest.raises(InputError, match=r"is torch\.float32, expected float8_e4m3fn: give --dit"):
        load_transformer(file, FP8, "cpu")


def test_the_fp8_file_without_its_option_is_refused_with_the_option(
    written: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    file, _ = written
    with pytest.raises(InputError, match=r"float8_e4m3fn, .*, give --use-fp8 for the official fp8"):
        load_transformer(file, tiny_config(precision="fp32"), "cpu")


def test_the_map_serves_the_blocks_linears_alone(
    written: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    file, _ = written
    state = torch.load(file)["module"]
    state["img_in.proj.weight"] = state["img_in.proj.weight"].to(torch.float8_e4m3fn)
    torch.save({"module": state}, file)
    with pytest.raises(InputError, match=r"1 tensors are stored as .* 'img_in\.proj\.weight'"):
        load_transformer(file, FP8, "cpu")


def test_fp8_takes_its_own_file_by_default_and_needs_the_map(new_hunyuan_checkpoint: Path) -> None:
    plain = dit_file(new_hunyuan_checkpoint)
    with pytest.raises(InputError, match=r"model_states_fp8\.pt do not exist"):
        find_files(new_hunyuan_checkpoint, use_fp8=True)
    with pytest.raises(InputError, match=r"_map\.pt is missing: --use-fp8 needs the scales"):
        find_files(new_hunyuan_checkpoint, plain, use_fp8=True)
    eight = plain.with_name("mp_rank_00_model_states_fp8.pt")
    write_fp8(eight, tiny_dit())
    assert find_files(new_hunyuan_checkpoint, use_fp8=True).dit == eight
    assert find_files(new_hunyuan_checkpoint).dit == plain

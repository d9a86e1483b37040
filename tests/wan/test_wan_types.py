"""Numerical types inside the transformer under bf16 autocast, as the official pipeline runs it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from wan_toys import TINY_DIT, tiny_dit


def types_of(values: list) -> set[torch.dtype]:
    return {value.dtype for value in values if isinstance(value, Tensor)}


def recorded_types(dtype: torch.dtype) -> dict[str, tuple[set[torch.dtype], set[torch.dtype]]]:
    """Module name -> types of its tensor inputs and outputs in one call."""
    model = tiny_dit().to(dtype)
    seen: dict[str, tuple[set[torch.dtype], set[torch.dtype]]] = {}

    def record(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            inputs = [*args, *kwargs.values()]
            outputs = output if isinstance(output, list) else [output]
            types = tuple(
                {v.dtype for v in vs if isinstance(v, Tensor)} for vs in (inputs, outputs)
            )
            seen[name] = types

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(record(name), with_kwargs=True)
    x = [torch.randn(16, 2, 8, 8)]
    text = [torch.randn(7, TINY_DIT["text_dim"], dtype=torch.bfloat16)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(x, torch.tensor([500]), text, 32)
    return seen


HALF, FULL = {torch.bfloat16}, {torch.float32}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def types(request: pytest.FixtureRequest) -> dict:
    """Types seen with fp32 weights (official) and with bf16 weights (half the memory)."""
    return recorded_types(request.param)


def test_embeddings_leave_in_bf16(types: dict) -> None:
    assert types["patch_embedding"][1] == HALF
    assert types["text_embedding"][1] == HALF


def test_residual_stream_is_fp32_after_block_0(types: dict) -> None:
    assert types["blocks.0"] == ({torch.bfloat16, torch.float32, torch.complex128}, FULL)
    for block in ("blocks.1", "blocks.2"):
        assert types[f"{block}.norm1"] == (FULL, FULL)
        assert types[block][1] == FULL
    assert types["blocks.0.norm1"] == (HALF | FULL, FULL)  # the stream, and the scale


def test_norms_return_their_inputs_type_times_the_scale(types: dict) -> None:
    for name, (inputs, outputs) in types.items():
        if name.endswith(("norm2", "norm3", "head.norm")):
            assert inputs == outputs == FULL, name


def test_modulated_tokens_are_rounded_once_for_q_k_and_v(types: dict) -> None:
    assert types["blocks.1.self_attn.q"][0] == types["blocks.1.self_attn.v"][0] == HALF
    assert types["blocks.1.ffn.0"][0] == HALF


def test_block_linears_run_in_bf16(types: dict) -> None:
    for name in ("q", "k", "v", "o"):
        assert types[f"blocks.1.self_attn.{name}"][1] == HALF
        assert types[f"blocks.1.cross_attn.{name}"][1] == HALF
    assert types["blocks.1.ffn.0"][1] == types["blocks.1.ffn.1"][1] == HALF
    assert types["blocks.1.ffn.2"][1] == HALF


def test_head_and_prediction_are_fp32(types: dict) -> None:
    assert types["head"] == (FULL, FULL)
    assert types[""][1] == FULL


def test_query_norm_scales_by_an_fp32_weight() -> None:
    types = recorded_types(torch.float32)
    assert types["blocks.0.self_attn.norm_q"] == (HALF, FULL)


def test_time_embedding_and_modulation_are_fp32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        e, e0 = tiny_dit().embed_time(torch.tensor([999]))
    assert e.dtype == e0.dtype == torch.float32
    assert e.shape == (1, 48) and e0.shape == (1, 6, 48)


def test_bf16_weights_stay_close_to_fp32_weights() -> None:
    x, text = [torch.randn(16, 2, 8, 8)], [torch.randn(7, TINY_DIT["text_dim"])]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        full, half = (
            tiny_dit().to(dtype)(x, torch.tensor([500]), text, 32)[0]
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert (full - half).norm() < 0.03 * full.norm()


def test_the_model_can_be_trained() -> None:
    """Gradients reach every parameter, and no table keeps the model from being copied."""
    model = tiny_dit()
    x, text = [torch.randn(16, 2, 8, 8) for _ in range(2)], [torch.randn(5, 32), torch.randn(9, 32)]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(x, torch.tensor([10, 900]), text, 32)
    torch.stack(outputs).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert not list(model.buffers())

"""The weighted sums of anchors: types, rounding, copies."""

import pytest
import torch

from profiling_core.engine.anchors import forecast_delta, forecast_prediction, keep

HALF = (torch.bfloat16, torch.float16)
WEIGHTS = (1.9, -0.9)


def random(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(64, 48, generator=torch.Generator().manual_seed(seed)).to(dtype)


def anchors(tensors, weights, output=None, storage="stream"):
    """Anchors of a model or block that returned `output` (by default the tensor itself)."""
    kept = [keep(t if output is None else output, [t], storage, "device") for t in tensors]
    return list(zip(kept, weights, strict=True))


def rounded_once(found: torch.Tensor, exact: torch.Tensor) -> bool:
    """Is every value within half a unit in the last place (fp32's own rounding aside)?"""
    half_unit = torch.finfo(found.dtype).eps / 2
    return bool(((found - exact).abs() <= 1.001 * half_unit * exact.abs() + 2e-6).all())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("weights", [WEIGHTS, (2.5, -2.0, 0.5), (0.7,)])
def test_half_precision_prediction_is_rounded_once(dtype, weights):
    tensors = [random(seed, dtype) for seed in range(len(weights))]
    found = forecast_prediction(anchors(tensors, weights))
    exact = sum(w * t.double() for w, t in zip(weights, tensors, strict=True))
    assert found.dtype == dtype and rounded_once(found, exact)
    term_by_term = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        term_by_term.add_(tensor, alpha=weight)
    assert rounded_once(term_by_term, exact) == (len(weights) == 1)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_stream_with_two_anchors_is_rounded_once(dtype):
    hidden, *deltas = (random(seed, dtype) for seed in range(3))
    found = forecast_delta("blocks 1-2", hidden, anchors(deltas, WEIGHTS), 0)
    exact = hidden.double() + sum(w * d.double() for w, d in zip(WEIGHTS, deltas, strict=True))
    assert found.dtype == dtype and rounded_once(found, exact)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_single_weight_one_is_a_copy_of_a_prediction_and_one_plain_sum_of_a_delta(dtype):
    hidden, tensor = random(0, dtype), random(1, dtype)
    tensor[0, 0] = -0.0
    found = forecast_prediction(anchors([tensor], [1.0]))
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))
    assert found.data_ptr() != tensor.data_ptr()
    added = forecast_delta("blocks 1-2", hidden, anchors([tensor], [1.0]), 0)
    assert torch.equal(added, hidden + tensor)


def test_held_delta_makes_no_tensor_but_its_result():
    hidden, delta = random(0, torch.bfloat16), random(1, torch.bfloat16)
    needed = anchors([delta], [1.0])
    with torch.profiler.profile(profile_memory=True) as seen:
        forecast_delta("blocks 1-2", hidden, needed, 0)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in seen.events())
    assert allocated == hidden.nbytes


def test_fp32_prediction_is_summed_as_the_plan_says():
    new, old = random(0), random(1)
    found = forecast_prediction(anchors([new, old], WEIGHTS))
    assert torch.equal(found, (new * 1.9).add(old, alpha=-0.9))


@pytest.mark.parametrize("weights", [(1.0,), WEIGHTS])
def test_stream_stored_in_bf16_comes_back_as_fp32(weights):
    hidden, deltas = random(0), [random(seed) for seed in range(1, 1 + len(weights))]
    needed = anchors(deltas, weights, storage="bfloat16")
    assert all(anchor.nbytes == 2 * hidden.numel() for anchor, _ in needed)
    found = forecast_delta("blocks 1-2", hidden, needed, 0)
    assert found.dtype == forecast_prediction(needed).dtype == torch.float32
    expected = hidden + sum(w * d.bfloat16().float() for w, d in zip(weights, deltas, strict=True))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weights", [(1.0,), WEIGHTS])
def test_fp32_input_of_blocks_that_return_bf16_gives_bf16(weights):
    hidden, deltas = random(0), [random(seed) for seed in range(1, 1 + len(weights))]
    needed = anchors(deltas, weights, output=deltas[0].bfloat16())
    found = forecast_delta("blocks 0-2", hidden, needed, 0)
    exact = hidden + sum(w * d for w, d in zip(weights, deltas, strict=True))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-6)


def test_integers_beside_a_prediction_keep_their_type():
    output = {"x": random(0), "step": torch.tensor(3)}
    held = [(keep(output, output.values(), "stream", "device"), 1.0)]
    assert forecast_prediction(held)["step"].dtype == torch.int64

"""Attention over SDPA and over flash-attn's interface; rope's angles."""

import sys
import types
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tree_paths import ROOT
from wan import attention as module
from wan.attention import attention, backend
from wan.rope import apply_rope, pairs_per_axis, rotation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def forget_choice() -> Iterator[None]:
    module._installed_flash.cache_clear()
    yield
    module._installed_flash.cache_clear()


def qkv(length: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(3, length, 2, 8).to(dtype) for _ in range(3))


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def test_attention_is_softmax_attention() -> None:
    q, k, v = qkv()
    torch.testing.assert_close(attention(q, k, v), explicit(q, k, v))


@pytest.mark.parametrize("lens", [(12, 12, 12), (7, 7, 7), (5, 12, 9)])
def test_keys_past_a_samples_length_are_hidden(lens: tuple[int, ...]) -> None:
    q, k, v = qkv()
    out = attention(q, k, v, lens)
    for i, n in enumerate(lens):
        alone = explicit(q[i : i + 1], k[i : i + 1, :n], v[i : i + 1, :n])
        torch.testing.assert_close(out[i : i + 1], alone)


def test_computed_in_the_type_of_v_and_returned_in_that_of_q() -> None:
    q, k, v = qkv()
    out = attention(q, k, v.bfloat16())
    assert out.dtype == torch.float32
    half = attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert torch.equal(out, half.float())


@pytest.mark.parametrize("as_tuple", [False, True])
def test_flash_attn_gets_its_layout(monkeypatch: pytest.MonkeyPatch, as_tuple: bool) -> None:
    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        out = explicit(q.float(), k.float(), v.float()).bfloat16()
        return (out, out.sum()) if as_tuple else out

    monkeypatch.setattr(module, "_flash_for", lambda q, v: flash)
    q, k, v = qkv()
    out = attention(q, k, v.bfloat16(), (12, 12, 12))
    torch.testing.assert_close(out, explicit(q, k, v), atol=0.05, rtol=0)
    assert out.dtype == torch.float32


def fake_flash(name: str) -> types.ModuleType:
    fake = types.ModuleType(name)
    fake.flash_attn_func = F.scaled_dot_product_attention
    return fake


def test_flash_attn_3_is_preferred_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flash_attn", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, name, fake_flash(name))
    assert backend(CUDA) == "flash-attn 3"
    assert backend(CPU) == "torch SDPA"
    q, _, v = qkv(dtype=torch.bfloat16)
    assert module._flash_for(q, v) is None  # tensors of the CPU


def test_a_broken_flash_attn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = types.ModuleType("flash_attn")  # has no flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", broken)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    assert backend(CUDA).startswith("torch SDPA; flash-attn 2 is installed but fails: Attribute")


def test_rope_splits_128_channels_into_22_21_21_pairs() -> None:
    assert pairs_per_axis(128) == (22, 21, 21)
    assert sum(pairs_per_axis(80)) == 40


def test_rope_turns_pair_0_of_each_axis_by_the_position() -> None:
    factors = rotation((2, 3, 5), 48, 31, CPU)  # (31, 1, 24), the last row is padding
    assert factors.dtype == torch.complex128 and factors.shape == (31, 1, 24)
    t, h, _ = pairs_per_axis(48)
    token = (1 * 3 + 2) * 5 + 4  # frame 1, row 2, column 4
    angles = factors[token, 0].angle()
    expected = torch.tensor([1.0, 2.0, 4.0 - 2 * torch.pi], dtype=torch.float64)
    torch.testing.assert_close(angles[[0, t, t + h]], expected)
    assert (factors[-1] == 1).all()


def test_rope_rotates_adjacent_channels_and_returns_fp32() -> None:
    x = torch.randn(1, 4, 2, 48, dtype=torch.bfloat16)
    factors = rotation((1, 2, 2), 48, 4, CPU)[None]
    turned = apply_rope(x, factors)
    assert turned.dtype == torch.float32
    even, odd = x[..., 0::2].double(), x[..., 1::2].double()
    expected = even * factors.real - odd * factors.imag
    torch.testing.assert_close(turned[..., 0::2].double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(turned.norm(dim=-1), x.float().norm(dim=-1))


def test_both_trees_have_the_same_attention_byte_for_byte() -> None:
    """Each tree is complete by itself; a change in one file is a change in both."""
    files = [ROOT / tree / "attention.py" for tree in ("Wan2.1/wan", "HunyuanVideo/hyvideo")]
    assert files[0].read_bytes() == files[1].read_bytes()

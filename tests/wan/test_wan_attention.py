"""Attention over SDPA and over flash-attn's interface, and which a GPU takes; rope's angles."""

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from devices import DEVICES
from tree_paths import ROOT
from wan import attention as module
from wan.attention import attention
from wan.rope import apply_rope, pairs_per_axis, rotation

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


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


FAILS = {
    "flash-attn 3": "flash_attn_interface",
    "flash-attn 2": "flash_attn",
    "torch SDPA, cuDNN first": module.CUDNN,
    "torch SDPA, Flash first": module.FLASH,
}


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`choose_kernel` on a pretended GPU on which `works` are installed and run; the rest fail.

    Stand-ins: the packages, torch's choice among its kernels, and the CPU in place of the GPU.
    """
    monkeypatch.setattr(module, "_chosen", {})
    probe = module._probe

    def chosen(major: int, works: str = "", flash: Callable[..., object] = explicit) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        monkeypatch.setattr(
            module, "_probe", lambda kernel, device, *rest: probe(kernel, CPU, *rest)
        )

        @contextmanager
        def sdpa_kernel(order: list, set_priority: bool) -> Iterator[None]:
            assert set_priority
            if not any(FAILS[name] == order[0] for name in FAILS if name in works):
                raise RuntimeError("No available kernel.\nA second line.")
            yield

        monkeypatch.setattr(module, "sdpa_kernel", sdpa_kernel)
        for name in ("flash-attn 3", "flash-attn 2"):
            package = types.ModuleType(FAILS[name])
            package.flash_attn_func = flash
            monkeypatch.setitem(sys.modules, FAILS[name], package if name in works else None)
        return module.choose_kernel(CUDA, torch.bfloat16, 8)

    return chosen


@pytest.mark.parametrize(
    ("major", "works", "expected"),
    [
        (9, "flash-attn 3, flash-attn 2, torch SDPA, cuDNN first", "flash-attn 3"),
        (9, "flash-attn 2, torch SDPA, cuDNN first", "torch SDPA, cuDNN first"),
        (9, "torch SDPA, Flash first", "torch SDPA, Flash first"),
        (8, "flash-attn 3, flash-attn 2, torch SDPA, Flash first", "flash-attn 2"),
        (8, "flash-attn 3, torch SDPA, Flash first", "torch SDPA, Flash first"),
        (10, "flash-attn 3, torch SDPA, cuDNN first", "torch SDPA, cuDNN first"),
        (7, "flash-attn 3, flash-attn 2", "torch SDPA"),
        (9, "", "torch SDPA"),
    ],
)
def test_each_gpu_takes_the_first_kernel_that_runs(
    choose: Callable[..., str], major: int, works: str, expected: str
) -> None:
    assert choose(major, works).split(";")[0] == expected
    assert bool(module._chosen) == (expected != "torch SDPA")


def test_what_did_not_run_is_named_with_the_first_line_of_its_error(
    choose: Callable[..., str],
) -> None:
    def old(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise OSError("undefined symbol")

    assert choose(9, "flash-attn 3, torch SDPA, Flash first", old) == (
        "torch SDPA, Flash first; flash-attn 3 did not run: OSError: undefined symbol; "
        "torch SDPA, cuDNN first did not run: RuntimeError: No available kernel."
    )
    assert "; flash-attn 2 did not run: ModuleNotFoundError" in choose(8, "torch SDPA, Flash first")
    wrong = choose(8, "flash-attn 2, torch SDPA, Flash first", lambda q, k, v: v + 1)
    assert wrong.startswith("torch SDPA, Flash first; flash-attn 2 did not run: AssertionError")


def test_fp32_and_the_cpu_stay_with_sdpa(choose: Callable[..., str]) -> None:
    choose(9, "flash-attn 3")
    assert module.choose_kernel(CUDA, torch.float32, 8) == "torch SDPA"
    assert module.choose_kernel(CPU, torch.bfloat16, 8) == "torch SDPA"
    assert set(module._chosen) == {("cuda", torch.bfloat16, 8)}


@pytest.mark.parametrize("as_tuple", [False, True])
def test_flash_attn_gets_its_layout(choose: Callable[..., str], as_tuple: bool) -> None:
    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        out = explicit(q.float(), k.float(), v.float()).bfloat16()
        return (out, out.sum()) if as_tuple else out

    assert choose(8, "flash-attn 2", flash) == "flash-attn 2"
    module._chosen["cpu", torch.bfloat16, 8] = module._chosen["cuda", torch.bfloat16, 8]
    q, k, v = qkv()
    out = attention(q, k, v.bfloat16(), (12, 12, 12))
    torch.testing.assert_close(out, explicit(q, k, v), atol=0.05, rtol=0)
    assert out.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", module.HALF)
def test_the_kernel_of_this_device_gives_what_sdpa_does_in_fp32(device, dtype) -> None:
    kernel = module.choose_kernel(torch.device(device), dtype, 128)
    plain = device == "cpu" or torch.cuda.get_device_capability()[0] < 8
    assert (kernel.split(";")[0] == "torch SDPA") == plain
    q, k, v = (torch.randn(1, 300, 4, 128, device=device, dtype=dtype) for _ in range(3))
    out = attention(q, k, v, (290,))
    wanted = explicit(q.float(), k[:, :290].float(), v[:, :290].float())
    torch.testing.assert_close(out.float(), wanted, atol=0.02, rtol=0)


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

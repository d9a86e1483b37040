"""attention_share: equations 5 and 6 against the dense matrix, sampling errors, memory."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from profiling_core.errors import ProfileError
from profiling_core.recording.attention_share import (
    CHUNK_BYTES,
    Received,
    attention_received,
    foreground_share,
    high_attention,
    row_bytes,
)


def random_qk(batch: int, length: int, heads: int, width: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(batch, length, heads, width, generator=generator) for _ in range(2)]


def dense_sum(q: Tensor, k: Tensor, tokens: int, key_lens: list[int]) -> tuple[Tensor, int]:
    """The definition, in fp64, with whole matrices."""
    total, rows = torch.zeros(tokens, dtype=torch.float64), 0
    for b, length in enumerate(key_lens):
        scores = torch.einsum("qhd,khd->hqk", q[b].double(), k[b, :length].double())
        attention = torch.softmax(scores * q.shape[-1] ** -0.5, dim=-1)
        asking, seen = min(tokens, length), min(tokens, length)
        total[:seen] += attention[:, :asking, :seen].sum(dim=(0, 1))
        rows += q.shape[2] * asking
    return total, rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize(
    ("tokens", "key_lens"),
    [(None, None), (40, None), (40, [47, 43]), (40, [40, 29]), (None, [50, 1])],
    ids=["all", "with text", "padded text", "padded clip", "one key"],
)
def test_column_sums_equal_the_dense_matrix(
    dtype: torch.dtype, rows: int, tokens: int | None, key_lens: list[int] | None
) -> None:
    q, k = (x.to(dtype) for x in random_qk(2, 50, 3, 16))
    chunk_bytes = rows * row_bytes(50, 16)
    received = attention_received(q, k, tokens, key_lens, chunk_bytes=chunk_bytes)
    expected, count = dense_sum(q, k, tokens or 50, key_lens or [50, 50])
    assert received.rows == received.sampled == count
    assert received.total.dtype == torch.float32 and received.relative_error() is None
    error = (received.mean().double() - expected / count).abs().max() / (expected / count).mean()
    assert error < 1e-5


def test_strided_views_and_autocast_change_nothing() -> None:
    q, k = random_qk(1, 30, 2, 8)
    packed = torch.stack([q, k], dim=2)  # (B, L, 2, H, D), as of one projection
    plain = attention_received(q, k)
    with torch.autocast("cpu", torch.bfloat16):
        viewed = attention_received(packed[:, :, 0], packed[:, :, 1])
    assert torch.equal(plain.total, viewed.total)


def test_large_scores_do_not_overflow() -> None:
    q, k = random_qk(1, 20, 1, 4)
    received = attention_received(300 * q, 300 * k)
    assert received.total.sum().item() == pytest.approx(20, rel=1e-5)


def test_every_query_gives_one_in_total() -> None:
    q, k = random_qk(2, 33, 2, 8)
    received = attention_received(q, k)
    assert received.mean().sum().item() == pytest.approx(1, rel=1e-5)


def test_parts_of_ranks_add_up() -> None:
    q, k = random_qk(1, 40, 4, 8)
    whole = attention_received(q, k, tokens=32)
    halves = [attention_received(q[:, :, h], k[:, :, h], 32) for h in (slice(2), slice(2, 4))]
    both = halves[0] + halves[1]
    assert both.rows == whole.rows and both.variance is None
    torch.testing.assert_close(both.mean(), whole.mean())
    with pytest.raises(ProfileError, match="32 and on 40 tokens"):
        whole + attention_received(q, k)


def test_variances_of_parts_add_up() -> None:
    exact = Received(torch.tensor([4.0, 4.0]), 8, 8)
    drawn = Received(torch.tensor([4.0, 4.0]), 8, 2, torch.tensor([4.0, 9.0]))
    assert (exact + drawn).relative_error() == pytest.approx((2 / 8 + 3 / 8) / 2)
    assert (drawn + drawn).relative_error() == pytest.approx(2.5 * math.sqrt(2) / 8)
    assert (drawn + exact).sampled == 10


def test_sampling_all_queries_is_exact() -> None:
    q, k = random_qk(1, 24, 2, 8)
    assert torch.equal(attention_received(q, k, queries=24).total, attention_received(q, k).total)


def test_a_seed_repeats_the_drawn_queries() -> None:
    q, k = random_qk(1, 64, 2, 8)
    first, again, other = (
        attention_received(q, k, queries=8, generator=torch.Generator().manual_seed(s)).total
        for s in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("queries", [16, 64])
def test_the_stated_error_is_the_spread_over_seeds(queries: int) -> None:
    q, k = random_qk(2, 100, 2, 8)
    key_lens = [100, 88]  # strata of unequal size
    exact = attention_received(q, k, 96, key_lens)
    generator = torch.Generator().manual_seed(5)
    draws = [attention_received(q, k, 96, key_lens, queries, generator) for _ in range(150)]
    assert draws[0].rows == exact.rows == 2 * (96 + 88)
    assert draws[0].sampled == 4 * queries
    means = torch.stack([draw.mean() for draw in draws])
    observed = (means.std(dim=0) / exact.mean())[exact.total > 0].mean().item()
    stated = sum(draw.relative_error() for draw in draws) / len(draws)
    assert 1 / 1.3 < stated / observed < 1.3
    standard = means.std(dim=0) / math.sqrt(len(draws))
    assert ((means.mean(dim=0) - exact.mean()).abs() <= 5 * standard + 1e-9).all()  # no bias


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": 51}, "51 tokens of a clip in a sequence of 50"),
        ({"key_lens": [50]}, "expected 2 numbers from 1 to 50"),
        ({"key_lens": [50, 0]}, "expected 2 numbers from 1 to 50"),
        ({"queries": 1}, "1 sampled queries per head"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict, message: str) -> None:
    q, k = random_qk(2, 50, 1, 4)
    with pytest.raises(ProfileError, match=message):
        attention_received(q, k, **arguments)


def test_cross_attention_is_refused() -> None:
    q, k = random_qk(1, 50, 1, 4)
    with pytest.raises(ProfileError, match=r"keys \(1, 20, 1, 4\)"):
        attention_received(q, k[:, :20])


def extra_bytes(tokens: int, head_dim: int, chunk_bytes: int) -> int:
    """Peak memory of `attention_received` beside q and k, whatever the batch and the heads.

    A chunk, or one row where that is larger, one head's keys in fp32, the sums and drawn queries.
    """
    return max(chunk_bytes, row_bytes(tokens, head_dim)) + tokens * (4 * head_dim + 48)


MEASURE = """
import sys
import torch
from profiling_core.recording.attention_share import attention_received

def held(name):  # VmRSS now, VmHWM at most; ru_maxrss would count the parent's memory too
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))

torch.set_num_threads(1)
tokens, width, chunk, queries = map(int, sys.argv[1:])
q = torch.randn(1, tokens, 1, width).bfloat16()
attention_received(q[:, :64], q[:, :64])  # loads what is loaded once
before = held("VmRSS")
attention_received(q, q, queries=queries or None, chunk_bytes=chunk)
print(held("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("tokens", "width", "chunk", "queries"),
    [(6_000, 32, 96 * 2**20, 0), (118_800, 128, CHUNK_BYTES, 600)],
    ids=["whole", "720p sampled"],
)
def test_peak_memory_follows_the_formula(tokens: int, width: int, chunk: int, queries: int) -> None:
    """The second case holds what a 720p clip of 129 frames would, in a chunk and a bit."""
    arguments = [str(n) for n in (tokens, width, chunk, queries)]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True
    )
    measured, formula = int(run.stdout), extra_bytes(tokens, width, chunk)
    assert 0.8 * formula < measured < formula + 24 * 2**20  # the matrix product's own buffers


def test_high_tokens_are_the_share_above_the_quantile() -> None:
    received = torch.randperm(200, generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(high_attention(received), received >= 160)
    assert high_attention(received, share=0.05).sum() == 10


def test_a_constant_map_has_no_high_token() -> None:
    constant = torch.full((50,), 0.02)
    assert not high_attention(constant).any()
    assert not high_attention(constant, share=None, threshold=1.0).any()


def test_ties_never_make_more_high_tokens_than_the_share() -> None:
    received = torch.tensor([3.0] * 2 + [2.0] * 10 + [1.0] * 8)
    assert high_attention(received, share=0.2).sum() == 2


def test_a_threshold_is_a_multiple_of_the_mean() -> None:
    received = torch.tensor([1.0, 1.0, 1.0, 5.0])
    assert high_attention(received, None, 1.5).tolist() == [False, False, False, True]
    assert not high_attention(received, None, 2.5).any()


@pytest.mark.parametrize(
    ("received", "rule", "message"),
    [
        ([1.0, 1.0], (None, None), "exactly one"),
        ([1.0, 1.0], (0.2, 1.0), "exactly one"),
        ([1.0, math.nan, 2.0], (0.2, None), "not finite at 1 of 3 tokens"),
        ([1.0, 2.0], (0.9, None), "leaves no token of 2"),
    ],
)
def test_rules_and_values_that_do_not_fit_are_refused(
    received: list[float], rule: tuple, message: str
) -> None:
    with pytest.raises(ProfileError, match=message):
        high_attention(torch.tensor(received), *rule)


def test_foreground_share_by_hand() -> None:
    high = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    share, chance = foreground_share(high.flatten(), mask.reshape(3, 2, 2), (3, 2, 2))
    assert share == pytest.approx((2 / 4 + 1 / 1) / 2)  # the frame without foreground is left out
    assert chance == pytest.approx((2 / 4 + 1 / 4) / 2)


def test_an_empty_mask_has_no_share() -> None:
    share, chance = foreground_share(torch.ones(8) > 0, torch.zeros(2, 2, 2) > 0, (2, 2, 2))
    assert math.isnan(share) and math.isnan(chance)


def test_sizes_off_the_grid_are_refused() -> None:
    with pytest.raises(ProfileError, match=r"grid \(2, 2, 3\) has 12"):
        foreground_share(torch.ones(12) > 0, torch.ones(8) > 0, (2, 2, 3))

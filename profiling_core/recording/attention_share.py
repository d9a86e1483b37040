"""Attention that every token of the clip receives (eq. 5), and the foreground's share (eq. 6).

Equation 5 averages A_ij over j and leaves open whether i is the query or the key. In a softmax
every query gives attention 1 in total, so the attention *given* is 1/N for every token of any
model. Only the attention *received*, a column mean of A, differs between tokens: it is used here.

No N x N matrix is ever held: a chunk of query rows of one head meets all its keys, each row is
divided by the sum of its exponentials, and the columns are added up.

Axes: B samples, L tokens of the sequence, H heads, D width of a head. The clip's own tokens come
first; text or padding may follow and takes part in the softmax only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from profiling_core.errors import ProfileError

CHUNK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Received:
    """Attention that tokens receive, summed over rows: one for each sample, head and query.

    Partial results add up (`a + b`): other heads or samples of the same tokens.
    """

    total: Tensor  # (tokens,) fp32, the sum over `rows`; its estimate where queries were sampled
    rows: int
    sampled: int  # rows that were computed
    variance: Tensor | None = None  # (tokens,) fp32, of `total`; None where it is exact

    def __add__(self, other: Received) -> Received:
        if self.total.shape != other.total.shape:
            raise ProfileError(
                f"attention on {len(self.total)} and on {len(other.total)} tokens cannot be added: "
                "both must count the same tokens"
            )
        known = [part.variance for part in (self, other) if part.variance is not None]
        return Received(
            self.total + other.total,
            self.rows + other.rows,
            self.sampled + other.sampled,
            sum(known[1:], known[0]) if known else None,
        )

    def mean(self) -> Tensor:
        """Attention received, averaged over queries and heads (eq. 5): (tokens,) fp32."""
        return self.total / self.rows

    def relative_error(self) -> float | None:
        """Standard error over the value, mean over tokens that receive any; None when exact."""
        if self.variance is None:
            return None
        seen = self.total > 0
        return float((self.variance[seen].sqrt() / self.total[seen]).mean())


def row_bytes(keys: int, head_dim: int) -> int:
    """Bytes of one query row of a chunk: its scores, its query twice, its divisors."""
    return 4 * (keys + 2 * head_dim + 4)


@torch.no_grad()
def attention_received(
    q: Tensor,
    k: Tensor,
    tokens: int | None = None,
    key_lens: Sequence[int] | None = None,
    queries: int | None = None,
    generator: torch.Generator | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Received:
    """Attention that the first `tokens` keys receive from the first `tokens` queries (eq. 5).

    q, k: (B, L, H, D), any dtype, computed in fp32 with the scale D**-0.5; the softmax runs over
    all valid keys. q may be a part of the queries. `tokens`: None for all. `key_lens`: valid tokens
    per sample; later ones are neither keys nor queries. `queries`: rows drawn per sample and head
    without replacement by `generator`; None, or at least as many as there are, computes all.
    ProfileError for sizes that do not fit.
    """
    tokens, lengths = _checked(q, k, tokens, key_lens, queries)
    whole = Received(torch.zeros(tokens, device=q.device), 0, 0)
    with torch.autocast(q.device.type, enabled=False):  # not in the caller's bf16
        for sample, length in enumerate(lengths):
            for head in range(q.shape[2]):
                asking = q[sample, : min(tokens, length), head]
                keys = k[sample, :length, head]
                if len(asking):
                    whole += _of_head(asking, keys, tokens, queries, generator, chunk_bytes)
    return whole


def _checked(
    q: Tensor,
    k: Tensor,
    tokens: int | None,
    key_lens: Sequence[int] | None,
    queries: int | None,
) -> tuple[int, list[int]]:
    """Tokens of the clip and valid keys per sample."""
    alike = q.ndim == k.ndim == 4 and q.shape[::2] == k.shape[::2] and q.shape[3] == k.shape[3]
    if not alike or q.shape[1] > k.shape[1]:
        raise ProfileError(
            f"queries {tuple(q.shape)} and keys {tuple(k.shape)}: expected the same "
            "(batch, tokens, heads, head_dim) of a self-attention"
        )
    batch, length = k.shape[:2]
    tokens = length if tokens is None else tokens
    lengths = [length] * batch if key_lens is None else [int(n) for n in key_lens]
    if not 1 <= tokens <= length:
        raise ProfileError(f"{tokens} tokens of a clip in a sequence of {length}")
    if len(lengths) != batch or not all(1 <= n <= length for n in lengths):
        raise ProfileError(f"key_lens {lengths}: expected {batch} numbers from 1 to {length}")
    if queries is not None and queries < 2:
        raise ProfileError(f"{queries} sampled queries per head: a standard error needs 2 or more")
    return tokens, lengths


def _of_head(
    q: Tensor,
    k: Tensor,
    tokens: int,
    queries: int | None,
    generator: torch.Generator | None,
    chunk_bytes: int,
) -> Received:
    """Attention from the queries (rows, D) of one head to the first `tokens` of its keys."""
    rows = len(q)
    if queries is not None and queries < rows:
        device = None if generator is None else generator.device
        drawn = torch.randperm(rows, generator=generator, device=device)[:queries]
        q = q[drawn.to(q.device)]
    seen = min(tokens, len(k))
    total, squares = _column_sums(q, k.float(), seen, chunk_bytes, len(q) < rows)
    padding = (0, max(0, tokens - len(k)))  # hidden keys receive nothing
    spread = None
    if squares is not None:
        spread = pad(_variance(total, squares, rows, len(q)), padding).float()
    return Received(pad(total * (rows / len(q)), padding).float(), rows, len(q), spread)


def _variance(total: Tensor, squares: Tensor, rows: int, count: int) -> Tensor:
    """Variance of `rows` times the mean of `count` rows drawn without replacement."""
    of_a_row = (squares - total.square() / count).clamp_min(0) / (count - 1)
    return of_a_row * (rows**2 / count * (1 - count / rows))


def _column_sums(
    q: Tensor, k: Tensor, tokens: int, chunk_bytes: int, with_squares: bool
) -> tuple[Tensor, Tensor | None]:
    """Sums over rows of softmax(q k^T / sqrt(D)) and of its squares: (tokens,) fp64 each."""
    total = torch.zeros(tokens, dtype=torch.float64, device=q.device)
    squares = torch.zeros_like(total) if with_squares else None
    for scores in _score_chunks(q, k, chunk_bytes):
        scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
        share = scores.sum(dim=1).reciprocal_()  # (rows,), of a row's largest key
        total += share @ scores[:, :tokens]
        if squares is not None:
            squares += share.square_() @ scores[:, :tokens].square_()
    return total, squares


def _score_chunks(q: Tensor, k: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
    """Scores (rows, keys) of as many queries at a time as `chunk_bytes` hold, in one buffer."""
    keys, width = k.shape
    rows = min(len(q), max(1, chunk_bytes // row_bytes(keys, width)))
    buffer = torch.empty(rows, keys, device=q.device)
    for part in q.split(rows):
        yield torch.matmul(part.float() * width**-0.5, k.T, out=buffer[: len(part)])


def high_attention(
    received: Tensor, share: float | None = 0.2, threshold: float | None = None
) -> Tensor:
    """High-attention tokens by exactly one of two rules: bool like `received`.

    `share`: tokens strictly above the (1 - share) quantile of the clip. Ties at the quantile are
    left out, so never more than the share are high, and none of a constant map. `threshold`:
    tokens strictly above threshold times the mean.
    """
    rule = threshold if share is None else share
    if rule is None or None not in (share, threshold):
        raise ProfileError(
            f"high attention by share {share} or threshold {threshold}: give exactly one"
        )
    if not torch.isfinite(received).all():
        count = int((~torch.isfinite(received)).sum())
        raise ProfileError(
            f"attention received is not finite at {count} of {received.numel()} tokens: the "
            "model's queries or keys overflowed; take another dtype"
        )
    if share is None:
        return received > rule * received.mean()
    below = received.numel() - max(1, round(share * received.numel()))
    if below < 1:
        raise ProfileError(f"a share of {share} leaves no token of {received.numel()} below it")
    return received > received.flatten().kthvalue(below).values


def foreground_share(high: Tensor, mask: Tensor, grid: tuple[int, int, int]) -> tuple[float, float]:
    """R_attn (eq. 6) and its chance level, averaged over the frames that hold foreground.

    high, mask: bool, frames x rows x columns of `grid` tokens in any shape. R_attn of a frame is
    |high and foreground| / |foreground|; by chance it would be the share of high tokens in that
    frame. NaN, NaN for an empty mask.
    """
    tokens = grid[0] * grid[1] * grid[2]
    if high.numel() != tokens or mask.numel() != tokens:
        raise ProfileError(
            f"{high.numel()} high-attention flags and a mask of {mask.numel()} tokens: "
            f"the grid {grid} has {tokens}"
        )
    high, mask = (x.to(high.device, torch.bool).reshape(grid[0], -1) for x in (high, mask))
    foreground = mask.sum(dim=1)  # (frames,)
    held = foreground > 0
    both = (high & mask).sum(dim=1)[held] / foreground[held]
    return float(both.mean()), float(high[held].float().mean())

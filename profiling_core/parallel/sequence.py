"""The tokens of one model call shared out over ranks: Ulysses within, a ring across.

Outside attention every rank works on its own shard, a run of consecutive tokens. In attention:

- Ulysses (arXiv 2309.14509): one all-to-all makes of "my tokens, all heads" "all tokens of the
  group, my heads"; attention runs as in one process; a second all-to-all turns it back.
- Ring (arXiv 2310.01889): keys and values travel once around, every rank attends to each block in
  its turn. Blocks are merged in fp32,

    (1)  L' = ln(exp L + exp l),   O' = exp(L - L') O + exp(l - L') o

  with output and log-sum-exp (O, L) so far and (o, l) of the block.

Token counts need not divide: the sequence is padded to equal shards, the padding's keys are left
out of attention and its rows dropped at the end. So the result is that of one process, bit by bit
where the ring has one rank and kernels do not depend on the number of heads or rows.

Text that every rank holds whole (HunyuanVideo) joins the keys once and is attended from on every
rank, in its share of the heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from profiling_core.parallel.ranks import Ranks, all_gather

Attention = Callable[..., Tensor]  # (q, k, v, key_lens) -> output, all (B, L, heads, head_dim)
See = Callable[[Tensor, Tensor, tuple[int, ...] | None, int], None]


class SequenceShare:
    """This rank's share of the tokens.

    ranks: who shares them; attention: the model's own function for one process.
    """

    def __init__(self, ranks: Ranks, attention: Attention) -> None:
        self.ranks, self._attention = ranks, attention
        self.tokens = 0  # of the whole sequence, known once `take` has seen it
        # a recorder's: queries of the tokens that this rank alone attends from, in its heads; all
        # keys of these heads; key_lens; queries of the text that belong to this rank as well
        self.see: See | None = None

    @property
    def _shards(self) -> int:
        return self.ranks.degrees.sequence

    def take(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's shard of a tensor that all ranks hold: ceil(tokens / ranks) of `dim`.

        The last shards are filled up with zeros.
        """
        self.tokens = x.shape[dim]
        rows = -(-self.tokens // self._shards)
        first = min(self.ranks.sequence_rank * rows, self.tokens)
        own = x.narrow(dim, first, min(rows, self.tokens - first))
        missing = rows - own.shape[dim]
        if not missing:
            return own.clone()  # a view would keep the whole tensor alive
        after = [0, 0] * (x.ndim - 1 - dim % x.ndim) + [0, missing]
        return F.pad(own, after)

    def gather(self, x: Tensor, dim: int = 1) -> Tensor:
        """The whole tensor, on every rank, of every rank's shard; padding is dropped.

        One all-gather.
        """
        return self._gathered(x, dim, self._shards, self.ranks.sequence)

    def _gathered(self, x: Tensor, dim: int, ranks: int, group: dist.ProcessGroup | None) -> Tensor:
        dim = dim % x.ndim
        own = x.movedim(dim, 0).contiguous()
        every = own.new_empty((len(own) * ranks, *own.shape[1:]))
        all_gather(every, own, group)
        return every[: self.tokens].movedim(0, dim)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, key_lens: Sequence[int] | None = None, text: int = 0
    ) -> Tensor:
        """Attention of this shard's rows to the whole sequence, in v's type; q's type back.

        q, k, v: (B, rows, heads, head_dim), of which the last `text` rows are held by every rank;
        key_lens: per sample the keys that count, of the whole sequence and the text after it.
        Two all-to-alls where Ulysses has more than one rank; ring - 1 exchanges with neighbours.
        """
        given, dtype = q.dtype, v.dtype
        images, texts = self._text_lens(key_lens, len(q), text)
        q, k, v = self._heads_apart(torch.stack((q.to(dtype), k.to(dtype), v)), text)
        if self.see is not None:
            self._show(self.see, q, k, key_lens, text)
        if self.ranks.degrees.ring == 1:
            lens = [n + t for n, t in zip(images, texts, strict=True)]
            k, v = (self._without_padding(x, text) for x in (k, v))
            out = self._attention(q, k, v, None if min(lens) == k.shape[1] else tuple(lens))
        else:
            out = self._ring(q, k, v, images, texts, text)
        return self._heads_joined(out, text).to(given)

    # -- parts

    def _text_lens(
        self, key_lens: Sequence[int] | None, samples: int, text: int
    ) -> tuple[list[int], list[int]]:
        """Keys that count per sample: of the shared sequence, and of the text."""
        if key_lens is None:
            return [self.tokens] * samples, [text] * samples
        images = [min(n, self.tokens) for n in key_lens]
        return images, [n - m for n, m in zip(key_lens, images, strict=True)]

    def _show(
        self, see: See, q: Tensor, k: Tensor, key_lens: Sequence[int] | None, text: int
    ) -> None:
        """Pass on what a recorder needs; with a ring that is one more all-gather, of the keys."""
        rows, ring, here = q.shape[1] - text, self.ranks.degrees.ring, self.ranks.ring_rank
        own = q[:, : max(0, min(rows, self.tokens - here * rows))]
        image, joint = k.split((rows, text), dim=1)
        keys = image[:, : self.tokens]
        if ring > 1:
            keys = self._gathered(image, 1, ring, self.ranks.ring)
        lens = None if key_lens is None else tuple(key_lens)
        see(own, torch.cat((keys, joint), dim=1), lens, text if here == 0 else 0)

    def _without_padding(self, x: Tensor, text: int) -> Tensor:
        """(B, all rows + text, ...) without the rows that fill up the last shards."""
        if x.shape[1] - text == self.tokens:
            return x
        return torch.cat((x[:, : self.tokens], x[:, x.shape[1] - text :]), dim=1)

    def _heads_apart(self, qkv: Tensor, text: int) -> Tensor:
        """(3, B, rows + text, heads, d) to (3, B, rows of the group + text, own heads, d)."""
        count = self.ranks.degrees.ulysses
        if count == 1:
            return qkv
        apart = qkv.unflatten(3, (count, -1)).movedim(3, 0)  # (U, 3, B, rows + text, heads / U, d)
        own, joint = apart.split((apart.shape[3] - text, text), dim=3)
        sent = own.contiguous()
        got = torch.empty_like(sent)  # (U, 3, B, rows, heads / U, d), by sender
        dist.all_to_all_single(got, sent, group=self.ranks.ulysses)
        rows = got.movedim(0, 2).flatten(2, 3)
        return torch.cat((rows, joint[self.ranks.ulysses_rank]), dim=2) if text else rows

    def _heads_joined(self, out: Tensor, text: int) -> Tensor:
        """(B, rows of the group + text, own heads, d) to (B, rows + text, heads, d)."""
        count = self.ranks.degrees.ulysses
        if count == 1:
            return out
        rows, joint = out.split((out.shape[1] - text, text), dim=1)
        rows = rows.unflatten(1, (count, -1)).movedim(1, 0)  # (U, B, rows, heads / U, d)
        sent = torch.cat((rows, joint.expand(count, *joint.shape)), dim=2).contiguous()
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent, group=self.ranks.ulysses)
        return got.movedim(0, 2).flatten(2, 3)

    def _ring(
        self, q: Tensor, k: Tensor, v: Tensor, images: list[int], texts: list[int], text: int
    ) -> Tensor:
        ring, here = self.ranks.degrees.ring, self.ranks.ring_rank
        block = k.shape[1] - text
        kv = torch.stack((k[:, :block], v[:, :block]))
        joint = torch.stack((k[:, block:], v[:, block:]))
        total = _Merged(q)
        for turn in range(ring):
            last = turn == ring - 1
            coming = None if last else _pass_on(kv, self.ranks)
            first = (here - turn) % ring * block  # the rank before sent what it had
            for sample in range(len(q)):
                count = max(0, min(images[sample] - first, block))
                parts = [kv[:, sample : sample + 1, :count]]
                if turn == 0 and texts[sample]:
                    parts.append(joint[:, sample : sample + 1, : texts[sample]])
                keys, values = torch.cat(parts, dim=2)
                if keys.shape[1]:
                    total.add(sample, *with_log_sum(q[sample : sample + 1], keys, values))
            if coming is not None:
                kv, requests = coming
                for request in requests:
                    request.wait()
        return total.output.to(q.dtype)


class _Merged:
    """Equation (1) for every sample, in fp32."""

    def __init__(self, q: Tensor) -> None:
        self.output = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        self._logs = q.new_full(q.shape[:3], float("-inf"), dtype=torch.float32)

    def add(self, sample: int, output: Tensor, logs: Tensor) -> None:
        """output (1, L, heads, d) and logs (1, L, heads) of one more block."""
        before = self._logs[sample]
        after = torch.logaddexp(before, logs[0])
        old, new = ((x - after).exp()[..., None] for x in (before, logs[0]))
        self.output[sample] = old * self.output[sample] + new * output[0].float()
        self._logs[sample] = after


def _pass_on(kv: Tensor, ranks: Ranks) -> tuple[Tensor, list[dist.Work]]:
    """Send to the next rank of the ring, receive from the one before; wait before use."""
    ring, here = ranks.degrees.ring, ranks.ring_rank
    assert ranks.ring is not None  # only a group of several processes passes on
    there = [dist.get_global_rank(ranks.ring, (here + way) % ring) for way in (1, -1)]
    sent, got = kv.contiguous(), torch.empty_like(kv, memory_format=torch.contiguous_format)
    operations = [
        dist.P2POp(dist.isend, sent, there[0], group=ranks.ring),
        dist.P2POp(dist.irecv, got, there[1], group=ranks.ring),
    ]
    return got, dist.batch_isend_irecv(operations)


def with_log_sum(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (B, L, heads, d) and its log-sum-exp (B, L, heads), fp32, from torch's kernels.

    These return the log-sum-exp as they summed it; rounding it to bf16 costs a ring of 8 ranks more
    than all else that bf16 costs.
    """
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]  # (B, heads, L, d)
    operators = torch.ops.aten
    if q.device.type == "cpu":
        out, logs = operators._scaled_dot_product_flash_attention_for_cpu(*heads_first)[:2]
    elif q.dtype in (torch.float16, torch.bfloat16):
        out, logs = operators._scaled_dot_product_flash_attention(*heads_first)[:2]
    else:
        found = operators._scaled_dot_product_efficient_attention(*heads_first, None, True)
        out, logs = found[:2]
    return out.transpose(1, 2), logs[..., : q.shape[1]].transpose(1, 2).float()

"""The raw data of one run: predictions, latents, sketches of deltas, attention, times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from profiling_core.engine.anchors import Anchor, keep, tensors_of
from profiling_core.errors import ProfileError
from profiling_core.plan.schema import Branch
from profiling_core.profile.profile import Subject
from profiling_core.recording.attention_share import Received
from profiling_core.recording.block_hooks import BlockTap

COLUMNS = 1 << 16  # of the vectors whose products are summed in fp64 at a time


@dataclass(frozen=True)
class Part:
    """What this process sees of a run that several share.

    shards, shard: of the tokens, and which is its own; half: its guidance branch where one call of
    the model is both branches on two groups of processes, 0 for the conditional one.
    """

    shards: int = 1
    shard: int = 0
    half: int | None = None

    @property
    def whole(self) -> bool:
        return self.shards == 1 and self.half is None

    def rows(self, tokens: int) -> range:
        """Its shard of the tokens, without what fills up the last ones."""
        rows = -(-tokens // self.shards)
        first = min(self.shard * rows, tokens)
        return range(first, min(first + rows, tokens))


class Recording:
    """Raw data of one run, tensors on the host; of this process's part until `add_up`."""

    def __init__(self, subject: Subject, device: torch.device, part: Part = Part()) -> None:
        self.subject, self.device, self.part = subject, device, part
        count = sum(subject.model.block_lists.values())
        self.latents: list[Tensor] = []
        self.predictions: dict[Branch, list[Anchor]] = {b: [] for b in subject.branches}
        self.sketches: dict[Branch, list[Tensor]] = {b: [] for b in subject.branches}  # (B, K)
        self.norms: dict[Branch, list[Tensor]] = {b: [] for b in subject.branches}
        self.received: dict[tuple[Branch, int, int], Received] = {}
        self.flops = np.zeros(count)
        self.block_seconds: list[list[float]] = []
        self.model_seconds: list[float] = []
        self.sensitivity: dict[int, float] = {}
        self.seconds = 0.0
        self.copies = 1  # of the clip in one call: two when both guidance halves share it

    def see_latent(self, step: int, latents: list[Tensor]) -> None:
        """The latents before a step, in the model's call."""
        self.latents.append(_checked(flat(latents), f"latent before step {step}"))

    def see_prediction(self, step: int, branch: Branch, output: Any) -> None:
        """A copy of what the model returned; it is waited for, since it is read here at once."""
        copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors_of(output)]
        _checked(flat(copies), f"prediction of step {step}, {branch}")
        self.predictions[branch].append(keep(output, copies, "stream", "device"))

    def see_blocks(self, step: int, branch: Branch, tap: BlockTap) -> None:
        """Sketches of the deltas of all blocks in one call."""
        sketches = torch.stack(tap.sketches).cpu()
        for block, sketch in enumerate(sketches):
            _checked(sketch, f"delta of block {block} at step {step}, {branch},")
        self.sketches[branch].append(sketches)
        self.norms[branch].append(tap.norms.cpu())

    def see_attention(self, step: int, branch: Branch, block: int, received: Received) -> None:
        spread = None if received.variance is None else received.variance.cpu()
        on_host = replace(received, total=received.total.cpu(), variance=spread)
        self.received[branch, step, block] = on_host

    def see_final(self, latent: Tensor) -> None:
        """The latent after the last step; repeated where the calls held it twice."""
        final = _checked(flat([latent.float()]), "final latent")
        if self.part.half is not None and len(self.subject.branches) == 1:
            self.latents = [each.repeat(2) for each in self.latents]
        self.copies = self.latents[0].numel() // final.numel()
        self.latents.append(final.repeat(self.copies))

    @contextmanager
    def counted_linears(self, tap: BlockTap, blocks: list[nn.Module]) -> Iterator[None]:
        """Count the FLOPs of linear layers inside blocks.

        Every one of several processes counts its shard, the first what all hold as well; text that
        is not shorter than a shard is taken for one.
        """

        shard = len(self.part.rows(prod(self.subject.grid)))
        filled = -(-prod(self.subject.grid) // self.part.shards)

        def count(linear: nn.Linear, args: tuple[Any, ...], output: Tensor) -> None:
            rows = output.shape[-2] if output.ndim > 2 else 1
            own = shard if rows >= filled else 0
            if self.part.shard == 0:
                own += rows - (filled if rows >= filled else 0)
            if tap.inside is not None:
                self.flops[tap.inside] += 2.0 * output.numel() / rows * own * linear.in_features

        with ExitStack() as hooks:
            for part in (part for block in blocks for part in block.modules()):
                if isinstance(part, nn.Linear):
                    hooks.callback(part.register_forward_hook(count).remove)
            yield

    def outputs(self, branch: Branch) -> list[tuple[Tensor, ...]]:
        """What the model returned at every step, in the form that one process has it in."""
        branches = self.subject.branches
        if self.part.half is None:
            return [prediction.tensors for prediction in self.predictions[branch]]
        both = [prediction.tensors[0] for prediction in self.predictions[branches[0]]]
        if len(branches) == 1:  # one call, negative prompt first
            return [(pair.flip(0).flatten(0, 1),) for pair in both]
        return [(pair[branches.index(branch)],) for pair in both]

    def vectors(self) -> Tensor:
        """(V, numel) fp32: predictions branch by branch, then the latents."""
        outputs = [flat(each) for b in self.subject.branches for each in self.outputs(b)]
        return torch.stack(outputs + self.latents)

    def signal(self, step: int, guidance: float | None) -> Tensor:
        """(C, F, H, W): the guided prediction of a step for the last clip of the batch."""
        outputs = [self.outputs(branch)[step] for branch in self.subject.branches]
        if len(outputs) == 1 and self.copies == 2:  # negative prompt first
            outputs = [outputs[0], (outputs[0][0][: len(outputs[0][0]) // 2],)]
        last = [output[-1].float() for output in outputs]
        last = [clip[-1] if clip.ndim == 5 else clip for clip in last]
        if len(last) == 1 or guidance is None:
            return last[0]
        cond, uncond = last
        return uncond + guidance * (cond - uncond)

    def add_up(self) -> None:
        """Put together what deltas say; the parts of all processes, all of which have to call it.

        A branch that another group of processes runs counts nothing here.
        """
        branches, steps = self.subject.branches, self.subject.steps
        self.grams: dict[str, list[np.ndarray]] = {name: [] for name, _, _ in spans(self.subject)}
        self.growth: list[np.ndarray] = []
        for branch in branches:
            sketches, norms = self.sketches[branch], self.norms[branch]
            numbers = self._summed(torch.tensor(float(sketches[0].shape[1] if sketches else 0)))
            for name, first, count in spans(self.subject):
                size = count * steps
                own = torch.zeros(size, size, dtype=torch.float64)
                if sketches:  # (count S, count S), block slowest
                    rows = torch.stack([each[first : first + count] for each in sketches])
                    own = products(rows.transpose(0, 1).flatten(0, 1))
                self.grams[name].append((self._summed(own) / numbers).numpy())
            own = torch.zeros(steps - 1, dtype=torch.float64)
            tokens = 0
            if norms:  # growth of what all blocks together add to a token, step by step
                each = torch.stack(norms)
                ratios = each[1:] / each[:-1].clamp_min(1e-12)
                own, tokens = ratios.sum(dim=1), ratios.shape[1]
            counted = self._summed(torch.tensor(float(tokens)))
            self.growth.append((self._summed(own) / counted).numpy())
        if self.part.whole:
            return
        if self.part.half == 1 and len(branches) == 2:
            self.flops[:] = 0.0  # they are those of one call
        self.flops = self._summed(torch.from_numpy(self.flops)).numpy()
        self._add_up_attention()

    def _add_up_attention(self) -> None:
        """Other heads, queries and branches of the same tokens."""
        blocks = range(len(self.flops))
        subject, nothing = self.subject, torch.zeros(prod(self.subject.grid))
        places = [
            (branch, step, block)
            for branch in subject.branches
            for step in subject.attention_steps
            for block in blocks
        ]
        if not places:
            return
        parts = [self.received.get(place, Received(nothing, 0, 0)) for place in places]
        counts = torch.tensor([[part.rows, part.sampled] for part in parts], dtype=torch.float64)
        rows, sampled = self._summed(counts).T
        totals = self._summed(torch.stack([part.total for part in parts]))
        spreads = torch.stack([nothing if p.variance is None else p.variance for p in parts])
        every: list[Tensor | None] = [None] * len(parts)
        if bool((sampled < rows).any()):
            every = [*self._summed(spreads)]
        for place, *found in zip(places, totals, rows, sampled, every, strict=True):
            total, count, drawn, variance = found
            self.received[place] = Received(total, int(count), int(drawn), variance)

    def _summed(self, own: Tensor) -> Tensor:
        """The sum over all processes, on the host."""
        if self.part.whole:
            return own
        every = own.to("cuda" if dist.get_backend() == "nccl" else "cpu", copy=True)
        dist.all_reduce(every)
        return every.cpu()


def spans(subject: Subject) -> Iterator[tuple[str, int, int]]:
    """Every block list with its first block on axis B and its length."""
    first = 0
    for name, count in subject.model.block_lists.items():
        yield name, first, count
        first += count


def products(rows: Tensor) -> Tensor:
    """Products of vectors (V, numel), summed in fp64: (V, V)."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(COLUMNS, dim=1):
        wide = part.double()
        total += wide @ wide.T
    return total


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """One fp32 vector on the host."""
    return torch.cat([tensor.detach().flatten().float().cpu() for tensor in tensors])


def _checked(vector: Tensor, what: str) -> Tensor:
    if not vector.isfinite().all():
        raise ProfileError(
            f"{what} is not finite: nothing is recorded; look at the weights and their precision"
        )
    return vector

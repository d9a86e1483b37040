"""The raw data of one run: predictions, latents, sketches of deltas, attention, times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
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


class Recording:
    """Raw data of one run, tensors on the host."""

    def __init__(self, subject: Subject, device: torch.device) -> None:
        self.subject, self.device = subject, device
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
        self.copies = self.latents[0].numel() // final.numel()
        self.latents.append(final.repeat(self.copies))

    @contextmanager
    def counted_linears(self, tap: BlockTap, blocks: list[nn.Module]) -> Iterator[None]:
        """Count the FLOPs of linear layers inside blocks."""

        def count(linear: nn.Linear, args: tuple[Any, ...], output: Tensor) -> None:
            if tap.inside is not None:
                self.flops[tap.inside] += 2.0 * output.numel() * linear.in_features

        with ExitStack() as hooks:
            for part in (part for block in blocks for part in block.modules()):
                if isinstance(part, nn.Linear):
                    hooks.callback(part.register_forward_hook(count).remove)
            yield

    def vectors(self) -> Tensor:
        """(V, numel) fp32: predictions branch by branch, then the latents."""
        branches = self.subject.branches
        predictions = [flat(p.tensors) for b in branches for p in self.predictions[b]]
        return torch.stack(predictions + self.latents)

    def signal(self, step: int, guidance: float | None) -> Tensor:
        """(C, F, H, W): the guided prediction of a step for the last clip of the batch."""
        outputs = [predictions[step].tensors for predictions in self.predictions.values()]
        if len(outputs) == 1 and self.copies == 2:  # negative prompt first
            outputs = [outputs[0], (outputs[0][0][: len(outputs[0][0]) // 2],)]
        last = [output[-1].float() for output in outputs]
        last = [clip[-1] if clip.ndim == 5 else clip for clip in last]
        if len(last) == 1 or guidance is None:
            return last[0]
        cond, uncond = last
        return uncond + guidance * (cond - uncond)

    def delta_gram(self, branch: Branch, first: int, count: int) -> Tensor:
        """`products` of the deltas of some blocks, (count S, count S), block slowest."""
        rows = torch.stack([sketches[first : first + count] for sketches in self.sketches[branch]])
        return products(rows.transpose(0, 1).flatten(0, 1))

    def norm_ratios(self, branch: Branch) -> Tensor:
        """(S-1, tokens): growth of what all blocks together add to a token, step by step."""
        norms = torch.stack(self.norms[branch])
        return norms[1:] / norms[:-1].clamp_min(1e-12)

    def sum_attention(self, group: dist.ProcessGroup) -> None:
        """Add up over the ranks: other heads of the same tokens, other FLOPs of the blocks."""
        for place, part in self.received.items():
            rows = summed(torch.tensor([part.rows, part.sampled], dtype=torch.float64), group)
            variance = None if part.variance is None else summed(part.variance, group)
            total = summed(part.total, group)
            self.received[place] = Received(total, int(rows[0]), int(rows[1]), variance)
        self.flops = summed(torch.from_numpy(self.flops), group).numpy()


def summed(part: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of every rank's tensor, on the host; the tensor itself without a group."""
    if group is None:
        return part
    on_gpu = dist.get_backend(group) == "nccl"
    whole = part.to("cuda" if on_gpu else "cpu", copy=True)
    dist.all_reduce(whole, group=group)
    return whole.cpu()


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

"""What a model costs before any plan is compared: one call, its attention, its compiled blocks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import hyvideo.attention
import wan.attention
from benchmarks.baselines.base import standing_before
from benchmarks.lib.rows import Row
from benchmarks.lib.timing import Subject, alternate, peak_memory, reset_peak, timed, visit
from benchmarks.speed.policies import allocated, kinds_of, loop_row, medians, rounded
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.files import first_line
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import block_share, speedup_flops
from wan.model import WanModel

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v; all (B, L, heads, head_dim)
ATTENTION_ROUNDS = 3
COMPILE_SECONDS = 60.0  # about what it takes to compile one block


@dataclass(frozen=True)
class BareAndReuse:
    """One bare call and one that reuses `release`'s blocks: the loops of all plans follow.

    The cheapest row of a model: every block of a call is taken to cost the same, a call that keeps
    deltas to cost what a bare one does, and a reused prediction nothing.
    """

    subject: Subject
    part: ClassVar[str] = "call"
    name: ClassVar[str] = "bare and one reuse"

    @property
    def _plan(self) -> tuple[CachePlan, list[int]]:
        plan = self.subject.plan("release")
        return plan, visit(plan, plan.branches[0], {"reuse"})

    def calls(self, rounds: int) -> float:
        plan, steps = self._plan
        return rounds * (1 + sum(block_share(plan, step, plan.branches[0]) for step in steps))

    def row(self, rounds: int, device: torch.device) -> Row:
        (plan, steps), subject = self._plan, self.subject
        first, weights = plan.branches[0], allocated(device)
        kind_of, found = kinds_of(plan, first), {"run": []}
        cache, bare_peak = DeltaCache(plan), 0
        for _ in range(rounds):
            reset_peak(device)
            found["run"].append(timed(subject.call, device))
            bare_peak = max(bare_peak, peak_memory(device))
            with cache.attached(subject.model):
                for step in steps:
                    cache.begin(step, first)
                    found.setdefault(kind_of[step], []).append(timed(subject.call, device))
        seconds = medians(found)
        share = block_share(plan, steps[-1], first)
        loops = {}
        for preset in subject.presets:
            loop = loop_seconds(subject.plan(preset), seconds["run"], seconds["reuse"], share)
            ideal = speedup_flops(subject.plan(preset))
            loops[preset] = loop_row(subject, seconds["run"], loop, ideal)
        return {
            "seconds": rounded(seconds),
            "share_run_by_reuse": round(share, 4),
            "weights_bytes": weights,
            "bare_peak_bytes": bare_peak,
            "peak_bytes": peak_memory(device),
            "loops": [{"plan": preset, **loop} for preset, loop in loops.items()],
        }


def loop_seconds(plan: CachePlan, run: float, reuse: float, share: float) -> float:
    """Seconds of a plan's model calls, from a bare call and one that runs `share` of the blocks."""
    blocks = (run - reuse) / (1 - share)  # of a bare call, without what stands around its blocks
    total = 0.0
    for branch in plan.branches:
        for step in plan.solver_steps:
            ran = block_share(plan, step, branch)
            total += run - (1 - ran) * blocks if ran else 0.0
    return total


@dataclass(frozen=True)
class AttentionKernels:
    """One attention call on every kernel at hand, at the model's own size."""

    subject: Subject
    part: ClassVar[str] = "attention"
    name: ClassVar[str] = "every kernel"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of q, k and v: (1, L, heads, head_dim)."""
        model = self.subject.model
        heads = model.num_heads if isinstance(model, WanModel) else model.heads_num
        width = self.subject.planned.fingerprint.width
        return 1, self.subject.planned.clip.tokens, heads, width // heads

    def calls(self, rounds: int) -> float:
        """At most: as if a block were its attention alone."""
        blocks = sum(self.subject.planned.fingerprint.block_lists.values())
        return len(self._kernels()) * (1 + ATTENTION_ROUNDS) / blocks

    def _kernels(self) -> dict[str, Callable[[], Attend]]:
        tree = wan if isinstance(self.subject.model, WanModel) else hyvideo
        return {
            "chosen": lambda: tree.attention.attention,
            "flash-attn 3": lambda: _flash("flash_attn_interface"),
            "flash-attn 2": lambda: _flash("flash_attn"),
            "torch SDPA, cuDNN": lambda: _sdpa(SDPBackend.CUDNN_ATTENTION),
            "torch SDPA, Flash": lambda: _sdpa(SDPBackend.FLASH_ATTENTION),
            "torch SDPA, efficient": lambda: _sdpa(SDPBackend.EFFICIENT_ATTENTION),
        }

    def row(self, rounds: int, device: torch.device) -> Row:
        seconds, failed, ran = {}, {}, ""
        generator = torch.Generator(device).manual_seed(0)
        drawn = {"generator": generator, "device": device, "dtype": torch.bfloat16}
        q, k, v = (torch.randn(self.shape, **drawn) for _ in range(3))
        for name, load in self._kernels().items():
            try:
                attend = load()
                call = lambda attend=attend: attend(q, k, v)  # noqa: E731
                call()  # warm-up
                seconds[name] = median(timed(call, device) for _ in range(ATTENTION_ROUNDS))
                if name == "chosen":
                    ran = longest_kernel(call, device)
            except Exception as error:  # not installed, or not for this GPU
                failed[name] = f"{type(error).__name__}: {first_line(error)}"
        _, tokens, heads, width = self.shape
        tera = 4e-12 * tokens**2 * heads * width
        return {
            "shape": self.shape,
            "seconds": rounded(seconds),
            "tflops_per_second": {name: round(tera / each, 1) for name, each in seconds.items()},
            "did_not_run": failed,
            "chosen_ran": ran,
        }


def _flash(module: str) -> Attend:
    return importlib.import_module(module).flash_attn_func


def _sdpa(backend: SDPBackend) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))

    return attend


def longest_kernel(call: Callable[[], object], device: torch.device) -> str:
    """Name of what a call spends the most time in, by torch's profiler; "" if unknown."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: getattr(event, kind))
    return events[-1].key if events else ""


@dataclass(frozen=True)
class CompiledBlocks:
    """A bare call with every block compiled as one graph, beside one as it is."""

    subject: Subject
    part: ClassVar[str] = "compile"
    name: ClassVar[str] = "blocks"
    extra_seconds: ClassVar[float] = COMPILE_SECONDS

    def calls(self, rounds: int) -> float:
        return 2 * (rounds + 1) + 1

    def row(self, rounds: int, device: torch.device) -> Row:
        subject = self.subject
        backend = "inductor" if device.type == "cuda" else "eager"
        compiled = [
            (block, torch.compile(block.forward, fullgraph=True, backend=backend))
            for name in subject.planned.fingerprint.block_lists
            for block in getattr(subject.model, name)
        ]

        def with_compiled() -> None:
            with ExitStack() as stack:
                for block, forward in compiled:
                    stack.enter_context(standing_before(block, {"forward": forward}))
                subject.call()

        first = timed(with_compiled, device)
        found = alternate({"run": subject.call, "compiled": with_compiled}, rounds, device)
        seconds = rounded(medians(found))
        return {"backend": backend, "first_seconds": round(first, 3), "seconds": seconds}

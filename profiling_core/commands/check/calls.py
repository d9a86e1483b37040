"""The stage `model`: the loaded model in full and with each preset, timed and compared.

One step of the pipeline's own loop is taken apart: its model calls, one for each branch, are made
again and again with the same inputs. A preset is attached and put at steps of its plan: one that
stores anchors, one that reuses them. Since the inputs do not change, every anchor is equal to what
would be computed, so that a reused result has to be the computed one up to rounding, and a step
that computes has to give the same bits as the model without a plan.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from profiling_core.commands.check.report import Found
from profiling_core.engine.anchors import tensors_of
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.engine.run_stats import timed_call
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import block_share, every_kind, kinds, speedup_flops
from profiling_core.plan.describe import format_bytes
from profiling_core.plan.presets import load_preset
from profiling_core.plan.schema import Branch
from profiling_core.plan.site_schedule import corrections
from profiling_core.trees.tree_model import Pictures, TreeModel

LOOP_STEPS = 2
LATENT_FRAMES = 2  # that are decoded
TOLERANCE = 0.05  # relative error of a reused result whose inputs did not change
HEADER = ("plan", "keep, s", "reuse, s", "its error", "clip, s", "full, s", "speed-up", "by blocks")
Call = Callable[[], Any]
Tensors = tuple[Tensor, ...]  # of one call
Results = dict[tuple[int, Branch], Tensors]  # of calls at steps of a plan


@dataclass
class Subject:
    """The loaded model, its calls of one step by branch, and what they gave without a plan."""

    model: TreeModel
    calls: dict[Branch, Call]
    bare: dict[Branch, Tensors] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # of calls without a plan

    def call(self, branch: Branch) -> tuple[Tensors, float]:
        """What a branch's call gives, and its seconds."""
        self.model.pipeline.model.to(self.model.device)  # where offload took it away
        with torch.no_grad(), self.model.pipeline.autocast():
            output, seconds = timed_call(self.calls[branch], self.model.device)
        return tuple(tensors_of(output)), seconds

    def again(self, when: str, found: Found) -> None:
        """Every call without a plan once more; a fault where it gives other bits than before."""
        for branch, wanted in self.bare.items():
            got, seconds = self.call(branch)
            self.seconds.append(seconds)
            same_bits(got, wanted, f"a full call {when}, {branch}", found)


def check_model(
    model: TreeModel,
    prompt: str,
    presets: list[str],
    needed: int,
    found: Found,
    say: Callable[[str], None],
) -> None:
    """Everything that needs the weights; facts are added as they come, so that none is lost.

    needed: what the stage `memory` came to for denoising, named beside the peak.
    """
    plans = {name: model.check_plan(load_preset(model.plan_model, name)) for name in presets}
    peak = found["peak_bytes"] = {}
    start = time.perf_counter()
    with model.loaded(), drawn(model) as pictures:
        inputs, encoding = timed_call(lambda: model.inputs(prompt, 0, pictures), model.device)
        found["encode_seconds"] = round(encoding, 3)
        found["load_seconds"] = round(time.perf_counter() - start - encoding, 3)
        say(f"loaded in {found['load_seconds']:.1f} s, prompt encoded in {encoding:.2f} s")
        peak["load and encode"] = peak_of(model.device)
        subject, latent = in_full(model, inputs, list(plans.values()), found)
        peak["in full"] = peak_of(model.device)
        least, left = min(subject.seconds), sum(map(_calls, plans.values()))
        say(f"two steps in full and all calls of a step again: {_agree(found)}")
        say(f"a full call takes {least:.3f} s; {left:.0f} like it follow, {least * left:.0f} s")
        found["plans"] = {}
        say(_cells(HEADER))
        for name, plan in plans.items():
            found["plans"][name] = one_plan(subject, plan, found)
            peak[name] = peak_of(model.device)
            say(_plan_line(name, found["plans"][name]))
        frames = latent[..., :LATENT_FRAMES, :, :]
        video, decoding = timed_call(lambda: model.decode(frames), model.device)
        check_finite(video, "the decoded frames", found)
        found["decoded"] = {"shape": list(video.shape), "seconds": round(decoding, 3)}
        peak["decode"] = peak_of(model.device)
        say(f"decoded {video.shape[1]} frames of {video.shape[3]}x{video.shape[2]}")
    if peak["in full"] is not None:
        most = max(peak[name] for name in ("in full", *plans))
        say(f"denoising took {format_bytes(most)} of the GPU, {format_bytes(needed)} estimated")


@contextmanager
def drawn(model: TreeModel) -> Iterator[Pictures]:
    """A gradient of the clip's size, as every picture that the model needs."""
    from PIL import Image

    with TemporaryDirectory() as folder:
        path, (_, height, width) = Path(folder) / "drawn.png", model.clip_shape
        Image.linear_gradient("L").resize((width, height)).save(path)
        yield Pictures(**dict.fromkeys(model.pictures, path))


def in_full(
    model: TreeModel, inputs: tuple[Any, ...], plans: list[CachePlan], found: Found
) -> tuple[Subject, Tensor]:
    """Two steps of the pipeline's loop without a plan, and with one that computes all of them."""
    inner, made = model.pipeline.model, []
    hook = inner.register_forward_pre_hook(
        lambda _, args, kwargs: made.append((args, kwargs)), with_kwargs=True
    )
    try:
        latent = model.denoise(inputs, steps=LOOP_STEPS)
    finally:
        hook.remove()
    found["loop_seconds"] = round(model.last_run.denoise_seconds, 4)
    branches = plans[0].branches
    subject = Subject(
        model,
        {
            branch: partial(inner, *args, **kwargs)
            for branch, (args, kwargs) in zip(branches, made, strict=False)
        },
    )
    for branch in branches:
        subject.bare[branch] = subject.call(branch)[0]
        for tensor in subject.bare[branch]:
            check_finite(tensor, f"a full call, {branch}", found)
    subject.again("made twice", found)
    with _unlogged():  # on so few steps every plan computes all of them
        attached = model.denoise(inputs, plans[0], steps=LOOP_STEPS)
    same_bits((attached,), (latent,), f"two steps, all computed by plan {plans[0].name}", found)
    found["calls_per_clip"] = model.steps * len(branches)
    return subject, latent


def one_plan(subject: Subject, plan: CachePlan, found: Found) -> Found:
    """A plan's kinds of calls, made twice; what they cost, and a clip of them."""
    steps = _steps_of(plan)
    seconds: dict[str, list[float]] = defaultdict(list)
    passes: list[Results] = []
    cache = DeltaCache(plan)
    with cache.attached(subject.model.pipeline.model):
        for _ in range(2):
            passes.append({})
            for step, branch in ((step, branch) for step in steps for branch in plan.branches):
                cache.begin(step, branch)
                passes[-1][step, branch], taken = subject.call(branch)
                seconds[kinds(plan, branch)[step]].append(taken)
        ran, anchors = cache.stats.block_runs, cache.stats.peak_bytes
    worst = _compare(subject, plan, passes, found)
    shares = (block_share(plan, step, branch) for step, branch in passes[0])
    wanted = round(sum(shares) * sum(plan.model.block_lists.values()))
    if ran != wanted:
        found["faults"].append(f"plan {plan.name}: {ran} blocks ran, the plan has {wanted}")
    subject.again(f"after plan {plan.name} was detached", found)
    each = defaultdict(lambda: min(subject.seconds), {k: min(all_) for k, all_ in seconds.items()})
    each["run"] = min(subject.seconds)  # as a call without a plan
    clip = sum(each[kind] for branch in plan.branches for kind in kinds(plan, branch).values())
    full = plan.steps * len(plan.branches) * each["run"]
    return {
        "steps": steps,
        "kinds": {kind: round(least, 5) for kind, least in each.items()},
        "largest_error": worst,
        "anchor_bytes": anchors,
        "clip_seconds": round(clip, 3),
        "full_clip_seconds": round(full, 3),
        "speedup": round(full / clip, 3),
        "ideal": round(speedup_flops(plan), 3),
    }


def _steps_of(plan: CachePlan) -> list[int]:
    """Steps that show every kind of call; two where all are plain."""
    return every_kind(plan, plan.branches[0]) or list(plan.solver_steps[:2])


def _calls(plan: CachePlan) -> float:
    """Calls that `one_plan` makes, counted in full ones."""
    pairs = ((step, branch) for step in _steps_of(plan) for branch in plan.branches)
    return len(plan.branches) + 2 * sum(block_share(plan, *pair) for pair in pairs)


def _compare(
    subject: Subject,
    plan: CachePlan,
    passes: list[Results],
    found: Found,
) -> float:
    """Faults where calls give what they must not; the largest error of a reused result."""
    worst = 0.0
    for (step, branch), got in passes[0].items():
        what = f"plan {plan.name}, step {step}, {branch} ({kinds(plan, branch)[step]})"
        same_bits(passes[1][step, branch], got, f"{what}, made twice", found)
        wanted = subject.bare[branch]
        if block_share(plan, step, branch) == 1.0 and step not in corrections(plan, branch):
            same_bits(got, wanted, f"{what}, computed", found)
            continue
        error = max(relative_error(*pair) for pair in zip(got, wanted, strict=True))
        if not error <= TOLERANCE:  # also one that is not a number
            found["faults"].append(
                f"{what}: the relative error is {error:.2g} though nothing changed, expected at "
                f"most {TOLERANCE:g}"
            )
        worst = max(worst, error)
    return worst


def same_bits(got: Tensors, wanted: Tensors, what: str, found: Found) -> None:
    """Count a comparison; a fault that says how far apart two results are that must be equal."""
    found["compared"] = found.get("compared", 0) + 1
    for one, other in zip(got, wanted, strict=True):
        if not torch.equal(one, other):
            share = (one != other).float().mean().item()
            found["faults"].append(
                f"{what}: other bits than before in {share:.2%} of the values, relative error "
                f"{relative_error(one, other):.2g}"
            )


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """|got - wanted| / |wanted|."""
    difference = (got.double() - wanted.double()).norm()
    return (difference / wanted.double().norm()).item()


def check_finite(tensor: Tensor, what: str, found: Found) -> None:
    count = int((~tensor.isfinite()).sum())
    if count:
        found["faults"].append(f"{what}: {count} of {tensor.numel()} values are not finite")


def peak_of(device: torch.device) -> int | None:
    """The most bytes that torch had on a GPU since the last call; None on the CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _agree(found: Found) -> str:
    return "they differ" if found["faults"] else "the same bits"


def _plan_line(name: str, row: Found) -> str:
    """A row of the table under HEADER; seconds of a reuse are those of its cheapest kind."""
    by_kind = row["kinds"].items()
    reused = [seconds for kind, seconds in by_kind if "reuse" in kind]
    kept = [seconds for kind, seconds in by_kind if "keep" in kind and "reuse" not in kind]
    cells = (
        name,
        f"{min(kept):.4f}" if kept else "-",
        f"{min(reused):.4f}" if reused else "-",
        f"{row['largest_error']:.1e}" if reused else "-",
        f"{row['clip_seconds']:.1f}",
        f"{row['full_clip_seconds']:.1f}",
        f"{row['speedup']:.2f}x",
        f"{row['ideal']:.2f}x",
    )
    return _cells(cells)


def _cells(cells: Sequence[str]) -> str:
    return f"{cells[0]:<11}" + "".join(f"{cell:>11}" for cell in cells[1:])


@contextmanager
def _unlogged() -> Iterator[None]:
    """The tree's log would warn that nothing is skipped on so few steps."""
    from loguru import logger

    logger.disable("")
    try:
        yield
    finally:
        logger.enable("")

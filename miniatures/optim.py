"""What both trainings share: Muon, a moving average, decay by the clock, checkpoints."""

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from loguru import logger
from torch import Tensor, nn

# Quintic whose iteration pushes all singular values of a matrix to about one.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack (N, rows, columns), approximately."""
    a, b, c = QUINTIC
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if fast_bf16(x.device) else x
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each weight matrix is orthogonalised; lr is in units of RMS."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            stacks = defaultdict(list)
            for p in group["params"]:
                stacks[p.flatten(1).shape].append(p)
            for params in stacks.values():
                self._step(params, group)

    def _step(self, params: list[nn.Parameter], group: dict) -> None:
        for p in params:
            average = self.state[p].setdefault("momentum", torch.zeros_like(p))
            average.lerp_(p.grad, 1 - group["momentum"])
        look_ahead = torch.stack(
            [p.grad.lerp(self.state[p]["momentum"], group["momentum"]).flatten(1) for p in params]
        )
        updates = orthogonalise(look_ahead)
        scale = math.sqrt(max(updates.shape[1:]))  # an orthogonal matrix has RMS 1 / sqrt(max)
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view_as(p), alpha=-group["lr"] * scale)


class Average:
    """Exponential moving average of a model's parameters, shorter at the beginning."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.count = deepcopy(model).requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, self.count / (self.count + 10))
        targets, sources = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(targets, sources, 1 - decay)


class Clock:
    """Progress of a training planned in minutes or in steps; it goes on across restarts."""

    def __init__(self, minutes: float | None, steps: int | None) -> None:
        if (minutes is None) == (steps is None):
            raise ValueError(f"minutes {minutes} and steps {steps}: expected exactly one of them")
        self.minutes, self.steps = minutes, steps
        self.before, self.start = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start

    def progress(self, step: int) -> float:
        """Share of the plan that is done, 0 to 1, the same on all ranks."""
        done = step / self.steps if self.steps else self.seconds / (60 * self.minutes)
        if dist.is_initialized():
            shared = torch.tensor(done)
            dist.broadcast(shared, 0)
            done = shared.item()
        return min(done, 1.0)


@dataclass(frozen=True)
class Run:
    """A stage's working folder, seed, device, and its length in minutes or in steps."""

    folder: Path
    seed: int
    device: str
    minutes: float | None = None
    steps: int | None = None

    def clock(self) -> Clock:
        return Clock(self.minutes, self.steps)


def rate(progress: float, step: int, warmup: int, flat: float) -> float:
    """Learning-rate factor: linear warm-up, flat, then linear decay to zero."""
    decay = (1 - progress) / (1 - flat) if progress > flat else 1.0
    return min(1.0, (step + 1) / warmup) * decay


def set_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("base", group["lr"]) * factor


def average_gradients(model: nn.Module) -> None:
    """Mean of the gradients over all processes, in one message."""
    if not dist.is_initialized():
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def fast_bf16(device: torch.device | str) -> bool:
    """Does bf16 save time here? An AVX2 core ran a linear at 56 GFLOPS in fp32, at 5 in bf16."""
    return torch.device(device).type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def mixed_precision(device: torch.device | str) -> AbstractContextManager:
    """bf16 autocast where that is faster than fp32, else nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16) if fast_bf16(device) else nullcontext()


def start_processes(device: str) -> tuple[int, int]:
    """Rank and world size; joins the group when launched by torchrun."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0)) if world > 1 else 0  # alone it is a leftover
    if world > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return rank, world


def save(path: Path, state: dict) -> None:
    """Writes a checkpoint atomically."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def fit(
    model: nn.Module,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    loss: Callable[[np.random.Generator, float], Tensor],
    path: Path,
    seed: int,
    clock: Clock,
    *,
    warmup: int,
    flat: float = 0.3,
    report: Callable[[], float] | None = None,
) -> None:
    """Steps on `loss(rng, progress)` until the clock ends; resumes from `path`.

    The rng is a function of seed, step and process. `report` is a held-out figure for the log.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    step = restore(path, model, average, optimizers, clock) if path.exists() else 0
    saved, recent = clock.seconds, []
    while (progress := clock.progress(step)) < 1:
        rng = np.random.default_rng([seed, step, rank])
        set_rate(optimizers, rate(progress, step, warmup, flat))
        value = loss(rng, progress)
        value.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        average.update(model)
        step += 1
        recent.append(value.item())
        if rank == 0 and step % 25 == 0:
            mean = sum(recent) / len(recent)
            logger.info(f"step {step}  {progress:.1%}  {clock.seconds:.0f} s  loss {mean:.4f}")
            recent.clear()
        if rank == 0 and report and step % 250 == 0:
            logger.info(f"step {step}  held-out loss {report():.4f}")
        if rank == 0 and clock.seconds - saved > 180:
            save(path, snapshot(model, average, optimizers, clock, step))
            saved = clock.seconds
    if rank == 0:
        save(path, snapshot(model, average, optimizers, clock, step))
        if report:
            logger.info(f"step {step}  held-out loss {report():.4f}")


def snapshot(
    model: nn.Module,
    average: Average,
    opts: list[torch.optim.Optimizer],
    clock: Clock,
    step: int,
) -> dict:
    return {
        "model": model.state_dict(),
        "average": average.model.state_dict(),
        "count": average.count,
        "optimizers": [opt.state_dict() for opt in opts],
        "seconds": clock.seconds,
        "step": step,
    }


def restore(
    path: Path,
    model: nn.Module,
    average: Average,
    opts: list[torch.optim.Optimizer],
    clock: Clock,
) -> int:
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    average.model.load_state_dict(state["average"])
    average.count, clock.before = state["count"], state["seconds"]
    for opt, saved in zip(opts, state["optimizers"], strict=True):
        rates = [group["lr"] for group in opt.param_groups]
        opt.load_state_dict(saved)
        for group, lr in zip(opt.param_groups, rates, strict=True):
            group["base"] = lr  # the caller's rate wins over the file's
    return state["step"]

"""Small models in the shapes of the real ones, and a naive cache to compare the engine with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from naive_walk import naive
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.plan import CachePlan


class WanBlock(nn.Module):
    """Called as block(x, **kwargs), returns x: Wan's contract."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.runs = 0

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        # as Wan under autocast: bf16 inside, an fp32 stream from the first block on
        inside = self.linear(x.to(self.linear.weight.dtype))
        return x.float() + torch.tanh(inside.float() + e)


class ToyWan(nn.Module):
    """Tokens in, tokens out; predictions come as a list of tensors as Wan's do."""

    def __init__(self, depth: int = 6, width: int = 8) -> None:
        super().__init__()
        self.dim = width
        self.blocks = nn.ModuleList(WanBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, width)

    def forward(self, x: list[torch.Tensor], t: torch.Tensor, context: Any) -> list[torch.Tensor]:
        hidden = torch.stack(x)
        e = t.float().sin() + context
        for block in self.blocks:
            hidden = block(hidden, e=e)
        return list(self.head(hidden.to(self.head.weight.dtype)))

    @property
    def runs(self) -> int:
        return sum(block.runs for block in self.blocks)


class DoubleBlock(nn.Module):
    """Called as block(img, txt, vec), returns (img, txt): HunyuanVideo's double-stream contract."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.img, self.txt = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, img: torch.Tensor, txt: torch.Tensor, vec: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mean = txt.mean(1, keepdim=True)
        return img + torch.tanh(self.img(img + mean) + vec), txt + torch.tanh(self.txt(txt) * vec)


class SingleBlock(nn.Module):
    """Called as block(x, vec, txt_len), returns x: HunyuanVideo's single-stream contract."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, vec: torch.Tensor, txt_len: int) -> torch.Tensor:
        return x + torch.tanh(self.linear(x) + vec)


class ToyHunyuan(nn.Module):
    """Double blocks, then single blocks on the joined stream; the output is a dict."""

    def __init__(self, double: int = 4, single: int = 5, width: int = 8) -> None:
        super().__init__()
        self.hidden_size = width
        self.double_blocks = nn.ModuleList(DoubleBlock(width) for _ in range(double))
        self.single_blocks = nn.ModuleList(SingleBlock(width) for _ in range(single))

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, txt: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        for block in self.double_blocks + self.single_blocks:  # as its parallel wrapper does
            block.marked = True
        img, vec = x, t.float().cos()
        for _, block in enumerate(self.double_blocks):
            img, txt = block(img, txt, vec)
        joined = torch.cat([img, txt], 1)
        for _, block in enumerate(self.single_blocks):
            joined = block(joined, vec, txt.shape[1])
        return {"x": joined[:, : img.shape[1]]}


def toy_plan(
    sites: list[dict], steps: int = 12, lists: dict[str, int] | None = None, **fields: Any
) -> CachePlan:
    """A plan for the toys: width 8, falling sigmas."""
    model = {"family": "toy", "name": "toy", "block_lists": lists or {"blocks": 6}, "width": 8}
    sigmas = [1 - (step / (steps + 1)) ** 1.5 for step in range(steps)]
    return CachePlan.build(
        name=fields.pop("name", "toy"),
        model=model,
        steps=steps,
        sigmas=sigmas,
        solver="euler",
        shift=1.0,
        sites=sites,
        provenance={"made_by": "tests", "source": "toy"},
        **fields,
    )


def both(*steps: int) -> dict[str, list[int]]:
    return {"cond": list(steps), "uncond": list(steps)}


def intervals(computed: dict, runs: list, skip: str = "hold", block_list: str = "blocks") -> dict:
    return {
        "kind": "intervals",
        "block_list": block_list,
        "intervals": runs,
        "compute_steps": computed,
        "skip": skip,
    }


def prediction(computed: dict, skip: str = "hold") -> dict:
    return {"kind": "prediction", "compute_steps": computed, "skip": skip}


def run_clip(model: Any, plan: CachePlan, call: Any = None, seed: int = 0) -> list[torch.Tensor]:
    """All predictions of one clip: `call(step, branch, x, t, context)` or the model itself."""
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(5, 8, generator=generator)]
    outputs = []
    with torch.no_grad():
        for step in range(plan.steps):
            t = torch.tensor([1000 * plan.sigmas[step]])
            guided = []
            for branch in plan.branches:
                guided.append(call(step, branch, x, t, {"cond": 0.3, "uncond": -0.2}[branch])[0])
            outputs += guided
            x = [x[0] - 0.1 * (guided[-1] + 2 * (guided[0] - guided[-1]))]
    return outputs


def cached_call(cache: Any, model: ToyWan) -> Any:
    """A call for run_clip that gives the cache its position."""

    def call(step: int, branch: str, x: Any, t: Any, context: Any) -> Any:
        cache.begin(step, branch)
        return model(x, t, context)

    return call


def bare(model, plan, seed=0):
    return run_clip(model, plan, lambda step, branch, x, t, c: model(x, t, c), seed)


def cached(model, plan, seed=0):
    cache = DeltaCache(plan)
    with cache.attached(model):
        return run_clip(model, plan, cached_call(cache, model), seed), cache


def naively(model, plan, seed=0):
    """The clip by the cache's second implementation."""
    lists = {name: name for name in plan.model.block_lists}
    with naive(plan, model, lists, len(plan.branches)):
        return bare(model, plan, seed)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


PLANS = {
    "release shape": [intervals(both(0, 1, 2, 6, 10), [[0, 0], [2, 4]])],
    "run to the last block": [intervals(both(0, 1, 5), [[1, 5]])],
    "every block": [intervals(both(0, 3, 7), [[0, 5]])],
    "linear deltas": [intervals(both(0, 1, 4, 8), [[1, 2], [4, 5]], "linear")],
    "prediction held": [prediction(both(0, 1, 4, 8))],
    "prediction linear": [prediction(both(0, 1, 2, 5, 9), "linear")],
    "branches apart": [intervals({"cond": [0, 2, 4, 6, 8, 10], "uncond": [0, 6]}, [[1, 4]])],
    "prediction and intervals": [
        prediction(both(0, 1, 2, 4, 6, 8, 10), "linear"),
        intervals(both(0, 1, 6), [[1, 2], [3, 4]]),
    ],
}

"""A tiny HunyuanVideo transformer, a clip made with it, and its cached walk written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hyvideo.model import HYVideoDiffusionTransformer
from hyvideo.rope import rope_tables
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import HUNYUAN, Clip, PlannedModel
from profiling_core.plan.schema import ModelFingerprint
from wan_toys import randomise

WIDTH, DOUBLE, SINGLE, CHANNELS = 48, 4, 6, 4
GRID = (2, 3, 2)  # image tokens along frames, rows, columns
LISTS = {"double_blocks": DOUBLE, "single_blocks": SINGLE}
Call = Callable[..., Tensor]


def planned(width: int = WIDTH, double: int = DOUBLE, single: int = SINGLE) -> PlannedModel:
    """What presets need to know of such a model."""
    lists = {"double_blocks": double, "single_blocks": single}
    fingerprint = ModelFingerprint(
        family="hunyuan-video", name="tiny", block_lists=lists, width=width
    )
    return PlannedModel(HUNYUAN, fingerprint, Clip("tiny", tokens=1, latent=1))


def tiny_model(seed: int = 0, **changes: object) -> HYVideoDiffusionTransformer:
    sizes = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "hidden_size": WIDTH,
        "heads_num": 2,
        "mm_double_blocks_depth": DOUBLE,
        "mm_single_blocks_depth": SINGLE,
        "rope_dim_list": (4, 10, 10),
        "text_states_dim": 20,
        "text_states_dim_2": 12,
        "guidance_embed": True,
    }
    return randomise(HYVideoDiffusionTransformer(**{**sizes, **changes}), seed, std=0.2)


@dataclass
class Inputs:
    """A clip's start and its prompts; `lens` are the valid tokens of each prompt of the batch."""

    lens: tuple[int, ...] = (5,)
    seed: int = 0
    grid: tuple[int, int, int] = GRID

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        batch, (frames, rows, columns) = len(self.lens), self.grid
        self.x = torch.randn(batch, CHANNELS, frames, 2 * rows, 2 * columns, generator=random)
        self.text = torch.randn(batch, 9, 20, generator=random)
        self.mask = (torch.arange(9) < torch.tensor(self.lens)[:, None]).long()
        self.pooled = torch.randn(batch, 12, generator=random)

    def tokens(self) -> int:
        """Of the joint stream, all samples together."""
        frames, rows, columns = self.grid
        return len(self.lens) * (frames * rows * columns + max(self.lens))


def clip(
    model: HYVideoDiffusionTransformer, plan: CachePlan, inputs: Inputs, call: Call, bf16: bool
) -> list[Tensor]:
    """All predictions of an Euler loop; call(step, x, t, *the other arguments of the model)."""
    x, outputs = inputs.x, []
    rope = rope_tables(inputs.grid, model.rope_dim_list)
    rest = (inputs.text, inputs.mask, inputs.pooled, *rope)
    if model.guidance_embed:
        rest += (torch.full((len(x),), 6016.0),)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for step, (sigma, following) in enumerate(pairwise((*plan.sigmas, 0.0))):
            t = torch.full((len(x),), 1000 * sigma)
            outputs.append(call(step, x, t, *rest))
            x = x + outputs[-1].float() * (following - sigma)
    return outputs


class NaiveWalk:
    """The cache written a second time, from the plan's document, on the parts of the transformer.

    It keeps everything for ever. The sums are the promised ones: one anchor is added as it is,
    several are added in fp32 from the newest on and rounded once.
    """

    def __init__(self, model: HYVideoDiffusionTransformer, plan: CachePlan) -> None:
        self.model, self.plan = model, plan.model_dump(mode="json")
        self.kept: dict[object, list[tuple[int, list[Tensor]]]] = {}
        self.block_runs = 0

    def __call__(self, step: int, x: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
        site = next((s for s in self.plan["sites"] if s["kind"] == "prediction"), None)
        if site and step not in site["compute_steps"]["cond"]:
            return self._forecast(site, "prediction", step, None)[0]
        flow = self._forward(step, x, t, *rest)
        kept = self.kept.setdefault("prediction", [])
        kept.append((step, [flow]))
        if site and site["skip"] == "corrected" and len(kept) > 1 and kept[-2][0] < step - 1:
            return self._corrected(kept)
        return flow

    def _corrected(self, kept: list[tuple[int, list[Tensor]]]) -> Tensor:
        """The new flow plus what the forecasts before it missed, over its own step."""
        levels = [*self.plan["sigmas"], 0.0]
        n, j = kept[-1][0], kept[-2][0]
        factors = [0.0] * min(3, len(kept))  # of the flows at n, j and the one before
        for s in range(j + 1, n):
            width = levels[s + 1] - levels[s]
            rise = (levels[s] - levels[j]) / (levels[n] - levels[j])
            factors[0] += width * rise
            factors[1] += width * (1.0 - rise)
            for place, weight in enumerate(self._weights("corrected", kept[:-1], s), start=1):
                factors[place] -= width * weight
        own = levels[n + 1] - levels[n]
        total = kept[-1][1][0].float() * (1 + factors[0] / own)
        for (_, (flow,)), factor in zip(kept[-2::-1], factors[1:], strict=False):
            total = torch.add(total, flow, alpha=factor / own)
        return total.to(kept[-1][1][0].dtype)

    def _weights(self, skip: str, kept: list[tuple[int, list[Tensor]]], step: int) -> list[float]:
        """Of the newest kept value and the one before it, in a forecast of `step`."""
        sigmas, new = self.plan["sigmas"], kept[-1][0]
        if skip == "hold" or len(kept) == 1:
            return [1.0]
        slope = (sigmas[step] - sigmas[new]) / (sigmas[new] - sigmas[kept[-2][0]])
        return [1 + slope, -slope]

    def _forward(self, step, x, t, text, text_mask, pooled, cos, sin, guidance=None) -> Tensor:
        model = self.model
        lens = text_mask.sum(1).tolist()
        longest = max(lens)
        uneven = len(set(lens)) > 1
        vec = model.time_in(t) + model.vector_in(pooled)
        if guidance is not None:
            vec = vec + model.guidance_in(guidance)
        img = model.img_in(x)
        mask = text_mask[:, :longest].float()
        txt = model.txt_in(text[:, :longest], t, mask, tuple(lens) if uneven else None)
        n = img.shape[1]
        keys = tuple(n + length for length in lens) if uneven else None
        img, txt = self._walk(step, "double_blocks", [img, txt], vec, (cos, sin), keys)
        joint = torch.cat([img, txt], 1)
        (joint,) = self._walk(step, "single_blocks", [joint], vec, longest, (cos, sin), keys)
        frames, height, width = x.shape[2:]
        out = model.final_layer(joint[:, :n], vec)
        return model.unpatchify(out, (frames, height // 2, width // 2))

    def _walk(self, step: int, name: str, state: list[Tensor], *rest: object) -> list[Tensor]:
        blocks, index = getattr(self.model, name), 0
        while index < len(blocks):
            site, last = self._interval_at(name, index)
            if site and step not in site["compute_steps"]["cond"]:
                state = self._forecast(site, (name, index), step, state)
            else:
                before = state
                for number in range(index, last + 1):
                    out = blocks[number](*state, *rest)
                    state = list(out) if isinstance(out, tuple) else [out]
                    self.block_runs += 1
                deltas = [after - old for after, old in zip(state, before, strict=True)]
                self.kept.setdefault((name, index), []).append((step, deltas))
            index = last + 1
        return state

    def _interval_at(self, name: str, index: int) -> tuple[dict | None, int]:
        for site in self.plan["sites"]:
            for first, last in site.get("intervals", []) if site.get("block_list") == name else []:
                if first == index:
                    return site, last
        return None, index

    def _forecast(self, site: dict, key: object, step: int, state: list[Tensor] | None):
        kept = self.kept[key]
        newest, weights = kept[-1][1], self._weights(site["skip"], kept, step)
        if len(weights) == 1:
            return newest if state is None else [s + d for s, d in zip(state, newest, strict=True)]
        results = []
        for index, delta in enumerate(newest):
            if state is None:
                total = delta.float() * weights[0]
            else:
                total = torch.add(state[index].float(), delta, alpha=weights[0])
            total = torch.add(total, kept[-2][1][index], alpha=weights[1])
            results.append(total.to(delta.dtype))
        return results

"""The packages that a user would install instead: cache-dit and diffusers' own hooks.

They run on diffusers' transformer with the weights of a tree's model, in our loop
(package_run.py). The threshold is what the package tunes; 0 computes everything. Settings
that stand for an official depth are scaled to the depth of the miniatures, all others are the
package's defaults, its documentation's advice, or what an engine sets for it. What had to be
configured around, with the versions of requirements-bench.txt (see the packages' tests):

- cache-dit counts calls to know the branch (conditional, then unconditional) and the step; it
  matches HunyuanVideo's two block lists with one probe and one decision each. Its F8B0 is a fifth
  of the blocks of Wan2.1 14B and of HunyuanVideo's single blocks, two fifths of its double blocks:
  F2B0 in 12 and in 4 + 10 blocks.
- diffusers' TaylorSeer hooks nothing on Wan by default, since its patterns match names that end in
  "attn" and Wan's modules are attn1 and attn2: patterns are given. Its factors are kept in fp32
  (default bf16), the type of the miniatures. After the warm-up it first forecasts, then computes.
- diffusers' MagCache takes one list of ratios for both branches: the mean over branches and
  prompts, calibrated by its own hook.
- diffusers' FasterCache and PAB keep one state for both branches; with Wan's two calls per step (as
  diffusers' own pipeline makes them) PAB hands the conditional attention to the unconditional call
  and FasterCache raises IndexError, for it halves a batch of one. Here the two calls are a batch.
- diffusers' FasterCache on a guidance-distilled model raises TypeError where the first call is
  already in the range of timesteps in which it skips: the range ends at 1000.
- diffusers' SeaCache computes everything without step, noise level and step count, as its
  Wan text-to-video pipeline does and its HunyuanVideo pipeline does not. Here it gets them on both;
  the noise level is the timestep / 1000, which Wan's solvers round to a whole timestep.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.mag_cache import _MAG_CACHE_LEADER_BLOCK_HOOK

from benchmarks.baselines.base import BRANCHES, Call, Variant, intercepted
from benchmarks.baselines.cache_dit import DBCache, StepMask
from benchmarks.baselines.package_run import BatchedGuidance, PackagePeer, PackageRule
from benchmarks.lib.clips import Inputs, Tree

EXPERIMENTAL = logging.getLogger("diffusers.hooks.faster_cache")  # says so at every attach


class FirstBlockCache(PackagePeer):
    """Reuse where the first block changed less than the threshold (relative L1)."""

    name: ClassVar[str] = "diffusers FirstBlockCache"
    thresholds: ClassVar[tuple[float, float]] = 0.0, 1.0

    def variants(self, tree: Tree) -> list[Variant]:
        return [Variant("default")]

    def enable(self, rule: PackageRule, tree: Tree, variant: Variant, threshold: float) -> None:
        rule.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))


@dataclass(frozen=True)
class SkipVariant(Variant):
    most_skips: int  # steps reused in a row


class MagCacheHook(PackagePeer):
    """A schedule from calibrated ratios of residual norms; the first 20 % of steps are computed."""

    name: ClassVar[str] = "diffusers MagCache"

    def __init__(self) -> None:
        self.ratios: dict[str, list[float]] = {}  # of the calibrated tree

    def variants(self, tree: Tree) -> list[SkipVariant]:
        return [SkipVariant(f"K {most}", most) for most in (2, 3, 4, 6)]

    def calibrate(self, tree: Tree, inputs: Sequence[Inputs], *, solver: str | None = None) -> None:
        """Ratios per step by the package's own calibration, averaged over branches and prompts."""
        runs = []
        for item in inputs:
            rule = self._new_rule(tree)
            # a step more than there are: at the last one the hook prints its ratios and drops them
            rule.transformer.enable_cache(
                MagCacheConfig(calibrate=True, num_inference_steps=tree.steps + 1)
            )
            with intercepted(tree, rule):
                tree.denoise(item, solver=solver)
            first = next(iter(rule.converted.lists.values()))[0]
            hook = first._diffusers_hook.get_hook(_MAG_CACHE_LEADER_BLOCK_HOOK)
            runs += [state.calibration_ratios for state in hook.state_manager._state_cache.values()]
        self.ratios = {tree.name: np.mean(runs, axis=0).tolist()}

    def span(self, variant: SkipVariant) -> tuple[float, float]:
        """From 0 to above the largest sum of |1 - product| that K skipped steps can reach."""
        if not self.ratios:
            raise ValueError(f"{self.name} is not calibrated: its span follows from the ratios")
        (ratios,) = self.ratios.values()
        products = [np.cumprod(ratios[i : i + variant.most_skips]) for i in range(1, len(ratios))]
        return 0.0, 1.01 * max(float(np.abs(1 - each).sum()) for each in products)

    def enable(self, rule: PackageRule, tree: Tree, variant: SkipVariant, threshold: float) -> None:
        if len(self.ratios.get(tree.name, ())) != tree.steps:
            raise ValueError(f"{self.name} has no ratios of {tree.steps} steps of {tree.name}")
        rule.transformer.enable_cache(
            MagCacheConfig(
                threshold=threshold,
                max_skip_steps=variant.most_skips,
                num_inference_steps=tree.steps,
                mag_ratios=self.ratios[tree.name],
            )
        )


@dataclass(frozen=True)
class SeaVariant(SkipVariant):
    order: int  # of the residual's forecast


class SeaRule(PackageRule):
    """Hands on the step and its noise level too."""

    def context(self, call: Call) -> AbstractContextManager:
        return self.transformer.cache_context(
            call.branch,
            step_index=call.step,
            num_inference_steps=self.steps,
            sigma=self.timestep / 1000,
        )


class SeaCache(PackagePeer):
    """Reuse, forecast to first order, while the filtered latents' summed change is small."""

    name: ClassVar[str] = "diffusers SeaCache"
    thresholds: ClassVar[tuple[float, float]] = 0.0, 1.5

    def variants(self, tree: Tree) -> list[SeaVariant]:
        return [
            SeaVariant(f"order {order}, at most {most} in a row", most, order)
            for order, most in ((1, 2), (1, 4), (0, 4))  # the first is the default
        ]

    def _new_rule(self, tree: Tree) -> PackageRule:
        return SeaRule(tree)

    def enable(self, rule: PackageRule, tree: Tree, variant: SeaVariant, threshold: float) -> None:
        rule.transformer.enable_cache(
            SeaCacheConfig(
                threshold=threshold,
                residual_order=variant.order,
                max_consecutive_cached=variant.most_skips,
                # built in for Wan alone: the clips of the call, each (C, T, H, W)
                raw_vision_callback=lambda model, args, kwargs: list(kwargs["hidden_states"]),
            )
        )


@dataclass(frozen=True)
class TaylorVariant(Variant):
    forecast: str  # a key of TAYLOR_PATTERNS
    warmup: int  # steps computed first


# per forecast and tree: modules that are forecast, modules that are left out meanwhile
TAYLOR_PATTERNS: dict[str, dict[str, tuple[list[str], list[str]]]] = {
    "attention": {  # what the defaults mean
        "wan": ([r"blocks\.\d+\.attn[12]"], []),
        "hunyuan": ([r"(single_)?transformer_blocks\.\d+\.attn"], []),
    },
    "attention and feed-forward": {  # a single block's last linear takes both
        "wan": ([r"blocks\.\d+\.(attn[12]|ffn)"], []),
        "hunyuan": (
            [
                r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
                r"single_transformer_blocks\.\d+\.proj_out",
            ],
            [r"single_transformer_blocks\.\d+\.(attn|proj_mlp)"],
        ),
    },
}


class TaylorSeer(PackagePeer):
    """Every n-th step is computed, n the threshold; between them outputs are forecast, order 1.

    "lite" forecasts the model's last projection alone and leaves out all blocks.
    """

    name: ClassVar[str] = "diffusers TaylorSeer"
    thresholds: ClassVar[tuple[float, float]] = 1.0, 12.0
    in_parts: ClassVar[bool] = True

    def variants(self, tree: Tree) -> list[TaylorVariant]:
        kinds = [
            *product(("lite", "attention and feed-forward"), (3, 8, 16)),
            ("attention", 3),
        ]
        return [TaylorVariant(f"{kind}, {first} first steps", kind, first) for kind, first in kinds]

    def enable(
        self, rule: PackageRule, tree: Tree, variant: TaylorVariant, threshold: float
    ) -> None:
        lite = variant.forecast == "lite"
        forecast, skipped = (None, None) if lite else TAYLOR_PATTERNS[variant.forecast][tree.name]
        rule.transformer.enable_cache(
            TaylorSeerCacheConfig(
                cache_interval=max(1, round(threshold)),
                disable_cache_before_step=variant.warmup,
                taylor_factors_dtype=torch.float32,
                cache_identifiers=forecast,
                skip_predict_identifiers=skipped or None,
                use_lite_mode=lite,
            )
        )


class WithinBlocks(PackagePeer):
    """A cache that knows no branches: Wan's two calls of a step are one batch."""

    in_parts: ClassVar[bool] = True

    def _new_rule(self, tree: Tree) -> PackageRule:
        batched = len(BRANCHES[tree.name]) == 2
        return (BatchedGuidance if batched else PackageRule)(tree, self.in_parts)


@dataclass(frozen=True)
class FasterVariant(Variant):
    attention: int  # every n-th call computes self-attention
    unconditional: int  # every n-th step computes the unconditional half


class FasterCache(WithinBlocks):
    """Self-attention and the unconditional half are forecast where the timestep is below the
    threshold (0 to 1000); only attention where guidance is embedded."""

    name: ClassVar[str] = "diffusers FasterCache"
    thresholds: ClassVar[tuple[float, float]] = 0.0, 1000.0

    def variants(self, tree: Tree) -> list[FasterVariant]:
        both = len(BRANCHES[tree.name]) == 2
        return [
            FasterVariant(
                f"attention 1 in {attention}{f', unconditional 1 in {half}' if both else ''}",
                attention,
                half,
            )
            for attention, half in ((2, 5), (4, 10))  # the first is the default
        ]

    def enable(
        self, rule: PackageRule, tree: Tree, variant: FasterVariant, threshold: float
    ) -> None:
        EXPERIMENTAL.setLevel(logging.ERROR)
        skipped = (-1, min(threshold, 1000))
        rule.transformer.enable_cache(
            FasterCacheConfig(
                spatial_attention_block_skip_range=variant.attention,
                spatial_attention_timestep_skip_range=skipped,
                unconditional_batch_skip_range=variant.unconditional,
                unconditional_batch_timestep_skip_range=skipped,
                # from 0 to 1 over the video, as its paper advises
                attention_weight_callback=lambda module: rule.call.step / max(1, tree.steps - 1),
                is_guidance_distilled=len(BRANCHES[tree.name]) == 1,
                current_timestep_callback=lambda: rule.timestep,
            )
        )


@dataclass(frozen=True)
class RangeVariant(Variant):
    timesteps: tuple[int, int]  # between which attention is reused


class PyramidAttentionBroadcast(WithinBlocks):
    """Every n-th call computes self-attention, every 3n-th cross-attention. The threshold is n."""

    name: ClassVar[str] = "diffusers PAB"
    thresholds: ClassVar[tuple[float, float]] = 1.0, 12.0

    def variants(self, tree: Tree) -> list[RangeVariant]:
        ranges = ((100, 800), (-1, 1001))  # the default, and everywhere
        return [RangeVariant(f"timesteps {low} to {high}", (low, high)) for low, high in ranges]

    def enable(
        self, rule: PackageRule, tree: Tree, variant: RangeVariant, threshold: float
    ) -> None:
        every = max(1, round(threshold))
        rule.transformer.enable_cache(
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=every,
                cross_attention_block_skip_range=1 if every == 1 else 3 * every,
                spatial_attention_timestep_skip_range=variant.timesteps,
                cross_attention_timestep_skip_range=variant.timesteps,
                # not the token refiner, whose name holds "blocks" too
                spatial_attention_block_identifiers=("^blocks", "^(single_)?transformer_blocks"),
                cross_attention_block_identifiers=("^blocks",),
                current_timestep_callback=lambda: rule.timestep,
            )
        )


PACKAGES: tuple[type[PackagePeer], ...] = (
    DBCache,
    StepMask,
    FirstBlockCache,
    MagCacheHook,
    SeaCache,
    TaylorSeer,
    FasterCache,
    PyramidAttentionBroadcast,
)

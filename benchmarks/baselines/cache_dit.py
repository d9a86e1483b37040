"""cache-dit on diffusers' transformers; why it is set up so stands in diffusers_hooks.py."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any, ClassVar

import numpy as np

from benchmarks.baselines.base import BRANCHES, Variant
from benchmarks.baselines.package_run import PackagePeer, PackageRule
from benchmarks.lib.clips import Tree

SCM_PRESETS = ("slow", "medium", "fast", "ultra")  # the package's masks, for any number of steps


@dataclass(frozen=True)
class ProbeVariant(Variant):
    probe: int  # blocks of each list that always run, F of cache-dit
    taylor: bool  # forecast the residual to first order, or hold it
    warmup: int = 8  # steps computed first
    most_skips: int = -1  # steps reused in a row; no limit below 0


class CacheDit(PackagePeer):
    """cache-dit: the residual of all blocks behind the first F is reused."""

    @classmethod
    def missing(cls) -> str | None:
        if find_spec("cache_dit") is None:
            return "cache-dit is not installed: pip install -r requirements-bench.txt"
        return None

    def _enable(self, rule: PackageRule, tree: Tree, variant: ProbeVariant, **config: Any) -> None:
        import cache_dit  # optional: takes seconds

        for handler in logging.getLogger("CACHE_DIT").handlers:  # shared by all its loggers
            handler.setLevel(logging.ERROR)  # else a dozen lines per video on stdout
        cache_dit.enable_cache(
            rule.transformer,
            cache_config=cache_dit.DBCacheConfig(
                Fn_compute_blocks=variant.probe,
                Bn_compute_blocks=0,
                max_warmup_steps=variant.warmup,
                max_continuous_cached_steps=variant.most_skips,
                num_inference_steps=tree.steps,
                enable_separate_cfg=len(BRANCHES[tree.name]) == 2,
                **config,
            ),
            calibrator_config=(
                cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if variant.taylor else None
            ),
        )


# F, warm-up, limit: the package's defaults for two depths; SGLang's defaults for it (4 first steps,
# then at most 3 reused in a row); the same with a limit that lets a budget of 3x be reached
DBCACHE_SETTINGS = ((1, 8, -1), (2, 8, -1), (1, 4, 3), (1, 4, 7))


class DBCache(CacheDit):
    """Reuse where the first F blocks changed less than the threshold (relative L1) since the last
    computed step."""

    name: ClassVar[str] = "cache-dit DBCache"
    thresholds: ClassVar[tuple[float, float]] = 0.0, 1.0  # 1 and more count as always alike

    def variants(self, tree: Tree) -> list[ProbeVariant]:
        return [
            ProbeVariant(
                f"F{probe}B0W{warmup}{f'MC{limit}' if limit > 0 else ''}{' TaylorSeer' * taylor}",
                probe,
                taylor,
                warmup,
                limit,
            )
            for (probe, warmup, limit), taylor in product(DBCACHE_SETTINGS, (False, True))
        ]

    def enable(self, rule: PackageRule, tree: Tree, variant: Variant, threshold: float) -> None:
        self._enable(rule, tree, variant, residual_diff_threshold=threshold)


class StepMask(CacheDit):
    """A static mask of computed steps; the threshold is its grade, see `graded_mask`."""

    name: ClassVar[str] = "cache-dit SCM"
    thresholds: ClassVar[tuple[float, float]] = 0.0, float(len(SCM_PRESETS) + 1)

    def variants(self, tree: Tree) -> list[ProbeVariant]:
        return [ProbeVariant("F1B0", 1, False), ProbeVariant("F1B0 TaylorSeer", 1, True)]

    def enable(self, rule: PackageRule, tree: Tree, variant: Variant, threshold: float) -> None:
        mask = graded_mask(threshold, tree.steps)
        static = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
        self._enable(rule, tree, variant, **static)


def graded_mask(grade: float, steps: int) -> list[int]:
    """1 for a computed step. Grade 0: all; 1 to 4: slow, medium, fast, ultra; 5: half of ultra's.

    Between two whole grades the number of computed steps and their places are interpolated.
    """
    denser = min(int(grade), len(SCM_PRESETS))
    part = min(grade - denser, 1.0)
    ends = [_graded_steps(each, steps) for each in (denser, denser + 1)]
    count = round((1 - part) * len(ends[0]) + part * len(ends[1]))
    places = [np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(e)), e) for e in ends]
    computed = set(np.rint((1 - part) * places[0] + part * places[1]).astype(int).tolist())
    return [int(step in computed) for step in range(steps)]


def _graded_steps(grade: int, steps: int) -> list[int]:
    import cache_dit

    if grade == 0:
        return list(range(steps))
    preset = SCM_PRESETS[min(grade, len(SCM_PRESETS)) - 1]
    mask = cache_dit.steps_mask(total_steps=steps, mask_policy=preset)
    computed = [step for step, run in enumerate(mask) if run]
    return computed if grade <= len(SCM_PRESETS) else sorted({0, *computed[1::2], steps - 1})

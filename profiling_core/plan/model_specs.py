"""The models that plans are shipped for, and the facts of the released code about their blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from profiling_core.plan.schema import BRANCHES, Branch, ModelFingerprint

Runs = tuple[tuple[int, int], ...]  # [first, last] of consecutive blocks, inclusive
BACKGROUND_ALONE = ("double_blocks",)  # the rows of the paper's table 3 differ in other lists alone


@dataclass(frozen=True)
class ReleasedList:
    """The background blocks of one block list, as the released code has them."""

    depth: int
    background: Runs

    def background_at(self, depth: int) -> Runs:
        """The background runs on a list of `depth` blocks.

        Block b of `depth` stands where block b (released - 1) / (depth - 1) of the released list
        stands and is background when that one (rounded) is; the released depth gives the released
        list itself.
        """
        return consecutive(block for block, is_ in enumerate(self._marks(depth)) if is_)

    def foreground_at(self, depth: int) -> Runs:
        """All other blocks."""
        return consecutive(block for block, is_ in enumerate(self._marks(depth)) if not is_)

    @property
    def blocks(self) -> int:
        return sum(self._marks(self.depth))

    def _marks(self, depth: int) -> list[bool]:
        released = {b for first, last in self.background for b in range(first, last + 1)}
        scale = (self.depth - 1) / max(1, depth - 1)
        return [int(block * scale + 0.5) in released for block in range(depth)]


@dataclass(frozen=True)
class Family:
    """What models of one code base and task share: block lists, guidance branches, noise levels."""

    released: dict[str, ReleasedList]
    branches: tuple[Branch, ...]
    solver: str
    shift: float
    first_level: float  # noise level of step 0 before the shift
    stream: str  # dtype of the residual stream, and of the block deltas
    prediction: str  # dtype of what the model returns
    other_solvers: dict[str, float] = field(default_factory=dict)  # and their first levels
    steps: int = 50  # of a run


@dataclass(frozen=True)
class Clip:
    """A clip with the model's default sizes, in one process."""

    size: str
    tokens: int  # of the residual stream, text included where it is a part
    latent: int  # elements of one prediction


@dataclass(frozen=True)
class PlannedModel:
    """What a preset needs to know of a model."""

    family: Family
    fingerprint: ModelFingerprint
    clip: Clip
    like: str | None = None  # a model of the same blocks, whose published plans it takes

    def depth(self, block_list: str) -> int:
        return self.fingerprint.block_lists[block_list]

    def sigmas(self, steps: int) -> list[float]:
        """Noise levels of the model's solver: a straight line to 0, last dropped, then shifted."""
        shift, start = self.family.shift, float(np.float32(self.family.first_level))
        grid = np.linspace(start, 0.0, steps + 1)[:-1].astype(np.float32)
        return [float(s) for s in shift * grid / (1 + (shift - 1) * grid)]


WAN = Family(
    released={
        "blocks": ReleasedList(40, ((0, 0), (2, 7), (10, 20), (25, 32), (37, 38))),
    },
    branches=BRANCHES,
    solver="unipc",
    shift=5.0,
    first_level=0.999,
    stream="float32",
    prediction="float32",
    other_solvers={"dpm++": 1.0},
)
WAN_I2V = replace(WAN, shift=3.0, steps=40)  # at 480p
WAN_I2V_720P = replace(WAN_I2V, shift=5.0)
WAN_FLF2V = WAN_VACE = replace(WAN, shift=16.0)
# Guidance is embedded, or both halves share one call: a single branch.
HUNYUAN = Family(
    released={
        "double_blocks": ReleasedList(20, ((6, 19),)),
        "single_blocks": ReleasedList(
            40, ((0, 0), (2, 2), (4, 7), (10, 21), (23, 23), (25, 27), (31, 31), (33, 33))
        ),
    },
    branches=("cond",),
    solver="euler",
    shift=7.0,
    first_level=1.0,
    stream="bfloat16",
    prediction="bfloat16",
)


def _wan(
    name: str, depth: int, width: int, clip: Clip, family: Family = WAN, **others: Any
) -> PlannedModel:
    fingerprint = ModelFingerprint(
        family="wan2.1", name=name, block_lists={"blocks": depth}, width=width
    )
    return PlannedModel(family, fingerprint, clip, **others)


def _hunyuan(name: str, double: int, single: int, width: int, clip: Clip) -> PlannedModel:
    # Every block counts the same: per token a double and a single one cost 24 width^2 FLOPs in
    # linears (qkv 3, projection 1, MLP 4 + 4, fused or not) and one attention over all tokens.
    lists = {"double_blocks": double, "single_blocks": single}
    fingerprint = ModelFingerprint(
        family="hunyuan-video", name=name, block_lists=lists, width=width
    )
    return PlannedModel(HUNYUAN, fingerprint, clip)


WAN_14B = (40, 5120)  # blocks, width
WAN_480P = Clip("832x480, 81 frames", tokens=21 * 30 * 52, latent=16 * 21 * 60 * 104)
WAN_720P = Clip("1280x720, 81 frames", tokens=21 * 45 * 80, latent=16 * 21 * 90 * 160)
HUNYUAN_720P = Clip(
    "1280x720, 129 frames, 256 text tokens", tokens=33 * 45 * 80 + 256, latent=16 * 33 * 90 * 160
)
MINI = Clip("128x128, 33 frames", tokens=9 * 8 * 8, latent=16 * 9 * 16 * 16)
HUNYUAN_MINI = Clip("128x128, 33 frames, 32 text tokens", MINI.tokens + 32, MINI.latent)

MODELS = {
    planned.fingerprint.name: planned
    for planned in (
        _wan("wan2.1-t2v-14B", *WAN_14B, WAN_480P),
        _wan("wan2.1-t2v-1.3B", 30, 1536, WAN_480P),
        _wan("wan2.1-i2v-14B", *WAN_14B, WAN_480P, WAN_I2V, like="wan2.1-t2v-14B"),
        _wan("wan2.1-i2v-14B-720P", *WAN_14B, WAN_720P, WAN_I2V_720P, like="wan2.1-t2v-14B"),
        _wan("wan2.1-flf2v-14B", *WAN_14B, WAN_720P, WAN_FLF2V, like="wan2.1-t2v-14B"),
        _wan("wan2.1-vace-14B", *WAN_14B, WAN_720P, WAN_VACE, like="wan2.1-t2v-14B"),
        _wan("wan2.1-vace-1.3B", 30, 1536, WAN_480P, WAN_VACE, like="wan2.1-t2v-1.3B"),
        _wan("wan2.1-t2v-mini", 12, 160, MINI),
        _wan("wan2.1-i2v-mini", 10, 160, MINI),
        _hunyuan("hunyuan-video-t2v-720p", 20, 40, 3072, HUNYUAN_720P),
        _hunyuan("hunyuan-video-t2v-mini", 4, 10, 128, HUNYUAN_MINI),
    )
}


def known_model(family: str, block_lists: dict[str, int], width: int) -> ModelFingerprint:
    """The fingerprint of a model with these lists and width: its own name where it is in MODELS."""
    for planned in MODELS.values():
        known = planned.fingerprint
        if (known.family, known.block_lists, known.width) == (family, block_lists, width):
            return known
    sizes = "+".join(str(count) for count in block_lists.values())
    name = f"{family}-{sizes}x{width}"
    return ModelFingerprint(family=family, name=name, block_lists=block_lists, width=width)


def first_levels(family: str) -> dict[str, float]:
    """For every solver of a family the level that its grid starts at before the shift.

    Empty for a family that is not known here.
    """
    for planned in MODELS.values():
        if planned.fingerprint.family == family:
            own = planned.family
            # as UniPC holds it: in fp32
            return {own.solver: float(np.float32(own.first_level)), **own.other_solvers}
    return {}


def consecutive(blocks: Iterable[int]) -> Runs:
    """Ascending block numbers as runs [first, last] of neighbours: the intervals of equation 9."""
    runs: list[tuple[int, int]] = []
    for block in blocks:
        if runs and runs[-1][1] == block - 1:
            runs[-1] = (runs[-1][0], block)
        else:
            runs.append((block, block))
    return tuple(runs)

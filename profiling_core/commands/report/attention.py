"""Figures of the attention that the foreground receives: R_attn by block and step, and the maps."""

from __future__ import annotations

import numpy as np

from profiling_core.commands.report.figures import (
    Absent,
    AttentionMaps,
    Axis,
    Figure,
    HeatMap,
    Layer,
    block_axis,
    step_axis,
)
from profiling_core.errors import ProfileError
from profiling_core.profile.block_scores import (
    SCORES,
    BlockSplit,
    attention,
    block_scores,
    mean_over,
    split_blocks,
)
from profiling_core.profile.profile import Profile
from profiling_core.profile.summary import agreement, stability

SHARE_ID, SHARE_TITLE = "fig-attention", "Which blocks look at the foreground"
MAPS_ID, MAPS_TITLE = "fig-maps", "Where the attention goes"
OF_EACH_SIDE = 3  # blocks whose maps are shown
NO_ATTENTION = "no attention was recorded (attention_every is 0)"


def share_figure(profile: Profile) -> Figure:
    """R_attn of blocks by attention steps (equation 6), with F and B (equation 7)."""
    if not profile.has_attention:
        return Absent(SHARE_ID, SHARE_TITLE, NO_ATTENTION)
    share = mean_over(attention(profile), (0, 1))  # (A, B)
    if not np.isfinite(share).any():
        return Absent(SHARE_ID, SHARE_TITLE, "no mask of the profile has any foreground")
    chance = mean_over(attention(profile, "attention_chance"), (0, 1))
    lift = np.divide(share, chance, out=np.full_like(share, np.nan), where=chance > 0)
    return HeatMap(
        SHARE_ID,
        SHARE_TITLE,
        _share_caption(profile),
        step_axis(profile.recorded.attention_steps),
        block_axis(profile.recorded.model),
        (_layer(profile, "share", share.T), _layer(profile, "lift", lift.T)),
    )


def maps_figure(profile: Profile) -> Figure:
    """Attention maps of the most foreground and the most background blocks at the map steps."""
    if not profile.has_attention:
        return Absent(MAPS_ID, MAPS_TITLE, NO_ATTENTION)
    chosen, sides = chosen_blocks(profile)
    maps = profile.arrays["attention_maps"][:, :, chosen].astype(np.float64)
    maps = maps.transpose(0, 2, 1, 3, 4, 5)  # (R, blocks, M, f, h, w)
    masks = np.stack([pooled(mask, maps.shape[3:]) for mask in profile.arrays["mask"]])
    everything, frame = block_axis(profile.recorded.model), maps.shape[3] // 2
    return AttentionMaps(
        MAPS_ID,
        MAPS_TITLE,
        _maps_caption(profile, frame),
        step_axis(profile.recorded.map_steps),
        Axis("block", "block", tuple(everything.full_name(block) for block in chosen)),
        sides,
        maps[0, :, :, frame],
        masks[0, frame],
        _on_foreground(maps, masks),
    )


def parted_by(profile: Profile, score: str) -> BlockSplit | ProfileError:
    """F and B by Otsu's threshold, or why there are none."""
    try:
        return split_blocks(profile, score=score)
    except ProfileError as error:
        return error


def chosen_blocks(profile: Profile) -> tuple[list[int], tuple[str, ...]]:
    """Numbers along axis B: the largest R_attn first, then the smallest; and their sides.

    Blocks of the lists that are parted; all blocks, as they stand, when there are no scores.
    """
    parted = parted_by(profile, "share")
    if isinstance(parted, ProfileError):
        first = list(range(min(2 * OF_EACH_SIDE, len(profile.blocks))))
        return first, ("",) * len(first)
    scores, sides = block_scores(profile), _sides(profile, parted)
    ranked = sorted((n for n, side in enumerate(sides) if side), key=lambda n: -scores[n])
    most = min(OF_EACH_SIDE, (len(ranked) + 1) // 2)
    chosen = ranked[:most] + ranked[max(most, len(ranked) - OF_EACH_SIDE) :]
    return chosen, tuple(sides[n] for n in chosen)


def pooled(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Means over the windows that the recorder pools attention maps with."""
    values = mask.astype(np.float64)
    for axis, parts in enumerate(size):
        whole = values.shape[axis]
        windows = [(n * whole // parts, -(-(n + 1) * whole // parts)) for n in range(parts)]
        values = np.stack(
            [values.take(range(*window), axis).mean(axis) for window in windows], axis
        )
    return values


def _layer(profile: Profile, score: str, values: np.ndarray) -> Layer:
    parted = parted_by(profile, score)
    if isinstance(parted, ProfileError):
        return Layer(SCORES[score], values, note=f"No F and B: {parted}.")
    means = tuple(block_scores(profile, score=score).tolist())
    note = (
        f"Marks: F where the mean {SCORES[score]} is at least {parted.tau:.4g}, else B "
        f"({parted.found_by}, over {', '.join(parted.lists)})."
    )
    return Layer(
        SCORES[score], values, sides=_sides(profile, parted), means=means, tau=parted.tau, note=note
    )


def _sides(profile: Profile, parted: BlockSplit) -> tuple[str, ...]:
    return tuple(parted.sides.get(block, "") for block in profile.blocks)


def _share_caption(profile: Profile) -> str:
    high = profile.settings.high_share
    ranked = f"the top {high:.0%} of the tokens" if high is not None else "the threshold"
    return (
        "Each cell: the share of foreground tokens that are among the high-attention tokens of "
        f"this block at this step (equation 6; high means {ranked}), mean over runs and branches. "
        "A block that keeps its colour along its row keeps its preference over the steps. Right: "
        f"the mean of every block, filled for F, open for B.{_correlations(profile)}"
    )


def _correlations(profile: Profile) -> str:
    try:
        steady, alike = stability(profile).mean, agreement(profile).prompts
    except ProfileError:
        return ""
    said = [
        f"{value:.2f} between {what}"
        for value, what in ((steady, "steps"), (alike, "prompts"))
        if np.isfinite(value)
    ]
    return f" Rank correlation of the blocks: {', '.join(said)}." if said else ""


def _maps_caption(profile: Profile, frame: int) -> str:
    frames, *size = profile.arrays["attention_maps"].shape[3:]
    return (
        f"Attention that the tokens of latent frame {frame} of {frames} receive in the first run, "
        f"over its mean of 1 (first branch, pooled to {' x '.join(map(str, size))}): the blocks "
        "with the largest R_attn above, those with the smallest below. The outline is the "
        f"foreground by the mask {profile.settings.mask!r} at half of the attention steps or more. "
        "The table has the mean over runs."
    )


def _on_foreground(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Attention of foreground tokens over the mean, mean over runs; (blocks, steps)."""
    weights = masks[:, None, None]
    area = masks.sum(axis=(1, 2, 3))[:, None, None]
    sums = (maps * weights).sum(axis=(3, 4, 5))
    found = np.divide(sums, area, out=np.full_like(sums, np.nan), where=area > 0)
    return mean_over(found, (0,))

"""What the profiles of the miniatures say: the figures of docs/profile.md.

Per tree, from the profile of the calibration prompts (calibrate.py, which makes it if need be):

stability   rank correlation of the blocks' R_attn over steps, prompts and branches
masks       on drawn clips, whose shapes are known: overlap of the `pca` mask with the truth, and
            whether both masks rank the blocks alike and part them into the same F and B
cost        error of the final latent when one block alone is reused (computed at every third
            step), against R_attn, lift and drift

Rows go to results/findings.jsonl.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import calibrate
from common import TREES, append_row, default_device, environment, quiet_log, table
from miniatures import clips
from miniatures.autoencoder import to_tensor
from pipelines import BUILD, Tree
from profiling_core.block_scores import block_scores, part_blocks
from profiling_core.foreground import file_mask
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.profile import Profile, Settings
from profiling_core.profile_arrays import attention_arrays, foreground_masks
from profiling_core.profile_summary import agreement, rank_correlations, stability
from profiling_core.profiler import Recorder

DRAWN = 6  # clips with known masks
EVERY = 3  # a lone block is computed at every third step
Figures = dict[str, Any]


def main() -> int:
    args = build_parser().parse_args()
    quiet_log()
    torch.set_num_threads(args.threads)
    device = default_device()
    for name in args.trees:
        tree = BUILD[name](device)
        profile = calibrate.record(tree, calibrate.profile_path(tree))
        row = {"tree": name, "runs": len(profile.runs), **steadiness(profile)}
        row |= masks_against_truth(tree) | cost_of_reuse(tree, profile, args.cost_prompts)
        append_row("findings", {**row, **environment(device)})
        lines = [[key, str(value)] for key, value in row.items()]
        sys.stdout.write(table(["figure", "value"], lines) + "\n\n")
    return 0


def steadiness(profile: Profile) -> Figures:
    """Rank correlations of R_attn, over all blocks."""
    lists = tuple(profile.recorded.model.block_lists)
    over_steps, between = stability(profile, lists), agreement(profile, lists)
    shares = np.nanmean(profile.arrays["attention_share"], axis=(0, 1))  # (A, B)
    return {
        "steps": _round(over_steps.mean),
        "early_late": _round(over_steps.early_late),
        "prompts": _round(between.prompts),
        "branches": _round(between.branches),
        "spread_blocks": _round(float(shares.mean(axis=0).std())),
        "spread_steps": _round(float(shares.mean(axis=1).std())),
        "r_attn": [_round(float(score)) for score in block_scores(profile)],
    }


def masks_against_truth(tree: Tree) -> Figures:
    """R_attn by the `pca` mask and by the shapes that were drawn, on the same attention."""
    scores: dict[str, list[np.ndarray]] = {"pca": [], "truth": []}
    overlaps = []
    for index in range(DRAWN):
        recording, settings = _noised(tree, index)
        found = foreground_masks(recording, settings, None, None, 0)
        truth = _token_mask(clips.shape_mask(calibrate.SEED, index), recording.subject.grid)
        overlaps.append([_overlap(mask, truth) for mask in found.values()])
        true = dict.fromkeys(found, truth)
        for name, masks in (("pca", found), ("truth", true)):
            share = attention_arrays(recording, settings, masks)["attention_share"]
            scores[name].append(np.nanmean(share, axis=(0, 1, 2)))
    pca, truth = (np.mean(scores[name], axis=0) for name in ("pca", "truth"))
    sides = [values >= np.median(values) for values in (pca, truth)]
    per_step = np.mean(overlaps, axis=0)
    return {
        "overlap": _round(float(per_step.mean())),
        "overlap_per_clip": [_round(float(value)) for value in np.mean(overlaps, axis=1)],
        "overlap_per_step": [_round(float(value)) for value in per_step],
        "r_attn_truth": [_round(float(value)) for value in truth],
        "pca_truth_rank": _round(_rank(pca, truth)),
        "pca_truth_same_side": int((sides[0] == sides[1]).sum()),
    }


def _noised(tree: Tree, index: int) -> tuple[Any, Settings]:
    """Attention on a drawn clip at the noise levels of the usual attention steps."""
    drawn = clips.clip(calibrate.SEED, index)
    clean = tree.encode_video(to_tensor(drawn.frames))
    whole = tree.recorder()
    steps = whole.sampling["attention_steps"]
    levels = [whole.sampling["sigmas"][step] for step in steps]
    settings = Settings(attention_every=1, delta_tokens=1)
    recorder = Recorder(
        settings=settings,
        model=whole.model,
        steps=len(steps),
        sigmas=tuple(levels),
        solver=whole.sampling["solver"],
        shift=whole.sampling["shift"],
        branches=("cond",),
    )
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(index))
    with recorder.attached(tree.pipeline.model):
        for step, level in enumerate(levels):
            recorder.begin(step, "cond")
            tree.predict(clean + level * (noise - clean), level, drawn.prompt)
    recorder.recording.see_final(clean)
    return recorder.recording, settings


def _token_mask(inside: np.ndarray, grid: tuple[int, int, int]) -> Tensor:
    """Pixels (T, H, W) as tokens, as a user's mask file is read."""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"shape-{os.getpid()}.npy"
    np.save(path, inside)
    try:
        return file_mask(path, 0, grid)
    finally:
        path.unlink()


def cost_of_reuse(tree: Tree, profile: Profile, prompts: int) -> Figures:
    """Error of the final latent when one block alone is held, and what foretells it."""
    chosen = clips.held_out_prompts(prompts)
    errors = np.zeros(len(profile.blocks))
    for number, prompt in enumerate(chosen):
        inputs = tree.inputs(prompt, 100 + number)
        full = tree.denoise(inputs).cpu()
        for position, (name, block) in enumerate(profile.blocks):
            latent = tree.denoise(inputs, _holding(profile, name, block)).cpu()
            errors[position] += latent_error(latent, full) / len(chosen)
        sys.stderr.write(f"{tree.name} reused every block of {prompt}\n")
    drift = profile.arrays["drift"].mean(axis=(0, 1, 2))
    foretold = {
        "r_attn": block_scores(profile),
        "lift": block_scores(profile, score="lift"),
        "drift": drift,
    }
    return {
        "cost_prompts": prompts,
        "cost": [_round(float(error), 5) for error in errors],
        **{f"cost_rank_{name}": _round(_rank(of, errors)) for name, of in foretold.items()},
        **_sides(profile, errors),
    }


def _sides(profile: Profile, errors: np.ndarray) -> Figures:
    """Mean cost of the foreground and of the background blocks by the default tau."""
    parted = part_blocks(profile, tau=None, share=None, lists=None, score="share")
    found = {}
    for side in ("foreground", "background"):
        blocks = getattr(parted, side)
        chosen = [n for n, (name, b) in enumerate(profile.blocks) if b in blocks.get(name, ())]
        found[f"cost_{side}"] = _round(float(errors[chosen].mean()), 5)
        found[side] = {name: list(numbers) for name, numbers in blocks.items()}
    return found


def _holding(profile: Profile, name: str, block: int) -> CachePlan:
    subject = profile.recorded
    site = {
        "kind": "intervals",
        "block_list": name,
        "intervals": [[block, block]],
        "compute_steps": dict.fromkeys(subject.branches, tuple(range(0, subject.steps, EVERY))),
        "skip": "hold",
    }
    return CachePlan.build(
        name=f"{name} {block}",
        **subject.plan_fields,
        sites=[site],
        provenance={"made_by": "benchmarks", "source": "one block held"},
    )


def _overlap(mask: Tensor, truth: Tensor) -> float:
    """Intersection over union."""
    return float((mask & truth).sum() / (mask | truth).sum())


def _rank(one: np.ndarray, other: np.ndarray) -> float:
    return float(rank_correlations(np.stack([one, other]))[0, 1])


def _round(value: float, digits: int = 3) -> float | None:
    """None, which JSON can hold, for what there is none of: branches of a single branch."""
    return round(value, digits) if np.isfinite(value) else None


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--cost-prompts", type=int, default=2, help="whole runs per block")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser


if __name__ == "__main__":
    sys.exit(main())

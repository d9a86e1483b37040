"""Markdown tables of transfer.py, from its rows alone."""

from __future__ import annotations

from math import log10, sqrt
from statistics import fmean, stdev

import numpy as np

from benchmarks.lib.ranks import spearman
from benchmarks.lib.rows import TREES, Row, markdown, spread
from profiling_core.search.step_search import QUANTILE

Groups = dict[tuple[str, str, str], list[Row]]  # by tree, setting and policy


def tables(rows: list[Row]) -> str:
    """Of every part that has rows."""
    found, rows = [], sorted(rows, key=lambda row: TREES.index(row["tree"]))
    settings = grouped(rows, "settings")
    if settings:
        found += [quality_table(settings), loss_table(settings), *prediction_lines(settings)]
    sets = grouped(rows, "prompts")
    if sets:
        found.append(prompt_table(sets))
    return "\n\n".join(found) + "\n"


def grouped(rows: list[Row], part: str) -> Groups:
    """The newest row of every prompt, in the order of the first ones."""
    newest: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row["part"] == part:
            group = newest.setdefault((row["tree"], row["setting"], row["policy"]), {})
            group[row["prompt"]] = row
    return {key: list(group.values()) for key, group in newest.items()}


def quality_table(groups: Groups) -> str:
    """Every sampler at every setting; errors are quantiles over prompts, as predicted ones are."""
    lines = []
    for (tree, setting, policy), of in groups.items():
        psnr = [row["psnr_frames"] for row in of]
        guesses = [_error(of[0][name]) for name in ("predicted", "predicted_recorded")]
        cells = [tree, setting, policy, f"{of[0]['speedup']:.2f}x", of[0]["skip"] or "-"]
        cells.append(_spread(psnr))
        cells.append(f"{fmean(row['ssim'] for row in of):.4f}")
        lines.append([*cells, _error(_measured(of)), *guesses, str(len(of))])
    header = ["tree", "setting", "policy", "ideal", "skip", "PSNR dB (worst)", "SSIM"]
    return markdown([*header, "latent error", "predicted", "predicted there", "n"], lines)


def loss_table(groups: Groups) -> str:
    """What regridding loses against the search at equal cost: predicted and measured."""
    lines = []
    for (tree, setting, policy), of in groups.items():
        cost = len(of[0]["computed"]) if of[0]["skip"] else 0
        names = [(tree, setting, f"searched, {cost + c} computed") for c in (0, -1, 1)]
        other = next((groups[name] for name in names if name in groups), None)
        if not policy.startswith("carried") or other is None:
            continue
        guess = 20 * log10(of[0]["predicted"] / other[0]["predicted"])
        lost = [
            two["psnr_frames"] - one["psnr_frames"]
            for one in of
            for two in other
            if one["prompt"] == two["prompt"]
        ]
        measured = f"{fmean(lost):.1f}"
        if len(lost) > 1:
            measured += f" +-{stdev(lost) / sqrt(len(lost)):.1f}"
        lines.append([tree, setting, policy, f"{guess:.1f}", measured, str(len(lost))])
    header = ["tree", "setting", "plan", "predicted loss dB", "measured loss dB", "n"]
    return markdown(header, lines)


def prediction_lines(groups: Groups) -> list[str]:
    """Predicted errors of all plans against measured ones, and against those of a recording."""
    found = []
    for tree in dict.fromkeys(key[0] for key in groups):
        plans = {  # two policies may have come to the same one
            (key[1], str(rows[0]["computed"]), rows[0]["skip"]): rows
            for key, rows in groups.items()
            if key[0] == tree and rows[0]["predicted"]
        }
        of = list(plans.values())
        guess, there = (
            np.array([rows[0][name] for rows in of]) for name in ("predicted", "predicted_recorded")
        )
        real = np.array([_measured(rows) for rows in of])
        ratio = np.abs(20 * np.log10(guess / there))
        found.append(
            f"{tree}, {len(of)} plans: rank correlation with the measured error "
            f"{spearman(guess, real):.2f} for errors predicted on the resampled profile, "
            f"{spearman(there, real):.2f} on one recorded there; the two predictions "
            f"differ by {np.median(ratio):.1f} dB (median; at most {ratio.max():.1f} dB)."
        )
    return found


def prompt_table(groups: Groups) -> str:
    """Plans of each half of the prompts on its own half, on the other, and the plan of all."""
    prompts = {
        tree: list(dict.fromkeys(row["prompt"] for of in groups.values() for row in of))
        for tree in dict.fromkeys(key[0] for key in groups)
    }
    lines = []
    for (tree, _, policy), of in groups.items():
        for name, half in (("1-3", prompts[tree][:3]), ("4-6", prompts[tree][3:])):
            own = [row for row in of if row["prompt"] in half]
            if own:
                psnr = [row["psnr_frames"] for row in own]
                cells = [tree, policy, name, f"{of[0]['speedup']:.2f}x"]
                cells.append(_spread(psnr))
                cells += [f"{fmean(row['latent_error'] for row in own):.4f}", str(len(own))]
                lines.append(cells)
    header = ["tree", "plan", "on prompts", "ideal", "PSNR dB (worst)", "latent error", "n"]
    return markdown(header, lines)


def _spread(psnr: list[float]) -> str:
    """Mean, standard deviation and the worst; of one clip itself."""
    return spread(psnr) if len(psnr) > 1 else f"{psnr[0]:.1f}"


def _measured(rows: list[Row]) -> float:
    return float(np.quantile([row["latent_error"] for row in rows], QUANTILE))


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

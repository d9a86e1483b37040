"""Spearman's rank correlation."""

from __future__ import annotations

import numpy as np


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation; equal values share their mean rank, fewer than two have none."""
    ranks = np.corrcoef(_ranked(one), _ranked(other)) if len(one) > 1 else np.full((2, 2), np.nan)
    return float(ranks[0, 1])


def _ranked(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]

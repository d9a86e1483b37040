"""How a profile's symmetric arrays lie in its file: one triangle, and deltas as angles.

gram: the lower triangle of every run, fp64 (R, V (V + 1) / 2).
delta_gram.LIST: the squared norms, fp32, and one minus the cosine of every pair below the diagonal,
fp16. A drift of a few percent is a cosine near 1, which fp16 would round to 1; its distance from 1
keeps three digits. Packing what was unpacked gives the same bits again.
"""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]
DELTAS, NORMS, ANGLES = "delta_gram.", "delta_squares.", "delta_angles."


def packed(arrays: Arrays) -> Arrays:
    """The arrays as they are written."""
    found: Arrays = {}
    for name, array in arrays.items():
        if name == "gram":
            rows, columns = np.tril_indices(array.shape[-1])
            found[name] = array[:, rows, columns]
        elif name.startswith(DELTAS):
            block_list = name.removeprefix(DELTAS)
            found[NORMS + block_list], found[ANGLES + block_list] = _angles(array)
        else:
            found[name] = array
    return found


def unpacked(arrays: Arrays) -> Arrays:
    """The arrays as they are used; ValueError when a triangle is not whole."""
    found: Arrays = {}
    for name, array in arrays.items():
        if name == "gram":
            found[name] = _symmetric(array, _side(array.shape[-1], 0))
        elif name.startswith(ANGLES):
            block_list = name.removeprefix(ANGLES)
            found[DELTAS + block_list] = _products(arrays[NORMS + block_list], array)
        elif not name.startswith(NORMS):
            found[name] = array
    return found


def _angles(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms (C, N) and 1 - cosine of the pairs below the diagonal (C, N (N - 1) / 2)."""
    squares = np.diagonal(grams, axis1=1, axis2=2).astype(np.float32)
    rows, columns = np.tril_indices(grams.shape[-1], -1)
    products = grams[:, rows, columns].astype(np.float64)
    return squares, (1 - products / _norm_products(squares)).astype(np.float16)


def _products(squares: np.ndarray, angles: np.ndarray) -> np.ndarray:
    side = _side(angles.shape[-1], -1)
    if side != squares.shape[-1]:
        raise ValueError(f"{squares.shape[-1]} norms of block deltas with angles of {side}")
    rows, columns = np.tril_indices(side, -1)
    found = np.zeros((len(squares), side, side))
    found[:, rows, columns] = (1 - angles.astype(np.float64)) * _norm_products(squares)
    found += found.swapaxes(1, 2)
    found[:, np.arange(side), np.arange(side)] = squares
    return found


def _norm_products(squares: np.ndarray) -> np.ndarray:
    """Products of the norms of every pair below the diagonal, from squared norms (C, N)."""
    lengths = np.sqrt(np.maximum(squares.astype(np.float64), np.finfo(np.float32).tiny))
    rows, columns = np.tril_indices(squares.shape[-1], -1)
    return lengths[:, rows] * lengths[:, columns]


def _symmetric(triangles: np.ndarray, side: int) -> np.ndarray:
    found = np.zeros((len(triangles), side, side))
    rows, columns = np.tril_indices(side)
    found[:, rows, columns] = triangles
    found[:, columns, rows] = triangles
    return found


def _side(count: int, diagonal: int) -> int:
    """Rows of the matrix whose lower triangle, with or without the diagonal, has `count` items."""
    side = int((np.sqrt(8 * count + 1) - 1) / 2 + 0.5) - diagonal
    if len(np.tril_indices(side, diagonal)[0]) != count:
        raise ValueError(f"{count} products are not a triangle of a matrix")
    return side

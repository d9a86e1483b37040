import numpy as np
import pytest

from profiling_core.profile.packing import packed, unpacked


def products(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return rows @ rows.T


def test_gram_comes_back_to_the_bit() -> None:
    gram = np.stack([products((11, 5)), products((11, 5), 1)])
    small = packed({"gram": gram})["gram"]
    assert small.shape == (2, 66)
    whole = np.tril(gram) + np.tril(gram, -1).swapaxes(1, 2)
    assert np.array_equal(unpacked({"gram": small})["gram"], whole)


def test_drifts_of_a_few_percent_keep_three_digits() -> None:
    rng = np.random.default_rng(2)
    path = np.cumsum(rng.normal(size=(30, 64)) * 0.02, axis=0) + rng.normal(size=64)
    gram = (path @ path.T)[None]
    again = unpacked(packed({"delta_gram.blocks": gram}))["delta_gram.blocks"]
    assert np.allclose(drift(again[0]), drift(gram[0]), rtol=3e-3)


def drift(gram: np.ndarray) -> np.ndarray:
    squares = np.diag(gram)
    change = squares[1:] + squares[:-1] - 2 * np.diag(gram, 1)
    return np.sqrt(change / squares[:-1])


def test_packing_again_gives_the_same_bits() -> None:
    arrays = {"gram": products((6, 4))[None], "delta_gram.blocks": products((40, 9))[None]}
    first = packed(unpacked(packed(arrays)))
    for name, array in packed(arrays).items():
        assert np.array_equal(first[name], array), name


def test_a_delta_that_is_zero_stays_zero() -> None:
    gram = products((4, 3))[None].copy()
    gram[:, 2] = gram[:, :, 2] = 0
    again = unpacked(packed({"delta_gram.blocks": gram}))["delta_gram.blocks"]
    assert np.abs(again[:, 2]).max() < 1e-12
    assert np.allclose(again, gram, atol=2e-3 * np.abs(gram).max())


@pytest.mark.parametrize("count", [2, 4, 67])
def test_a_triangle_that_is_not_whole_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} products are not a triangle"):
        unpacked({"gram": np.zeros((1, count))})


def test_norms_of_other_blocks_are_refused() -> None:
    small = packed({"delta_gram.blocks": products((5, 3))[None]})
    small["delta_squares.blocks"] = small["delta_squares.blocks"][:, :4]
    with pytest.raises(ValueError, match="4 norms of block deltas with angles of 5"):
        unpacked(small)

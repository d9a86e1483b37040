"""One decode shared out over ranks: the tiles of diffusers' tiled decoding, each on one of them.

Every rank walks the same tiles in diffusers' own code. Tile k is decoded on rank k mod ranks and
sent to rank 0, which blends what it gets as if it had decoded everything: the clip of one process
that decodes in the same tiles, bit by bit. The other ranks blend zeros and have no clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from profiling_core.parallel.ranks import Ranks

Shape = Callable[[tuple[int, ...], bool], Sequence[int]]  # (latent's, first of a tile) -> decoded


@contextmanager
def shared_tiles(
    decoder: nn.Module, ranks: Ranks, shape: Shape, *, goes_on: str | None = None
) -> Iterator[None]:
    """While open, each call of `decoder` runs on one rank; rank 0 has every result.

    shape: of what the decoder returns for a latent. goes_on: the keyword argument that is false in
    calls that go on with the last tile (its next frames), which stay on that tile's rank; None:
    every call is a tile. All ranks have to make the same calls.
    """
    share = _Share(decoder.forward, ranks, shape, goes_on)
    decoder.forward = share.call
    try:
        yield
        share.finish()
    finally:
        del decoder.forward


class _Share:
    def __init__(
        self, run: Callable[..., Tensor], ranks: Ranks, shape: Shape, goes_on: str | None
    ) -> None:
        self._run, self._ranks, self._shape, self._goes_on = run, ranks, shape, goes_on
        self._tile = -1
        self._sent: list[tuple[dist.Work, Tensor]] = []

    def call(self, latent: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The decoder's own call on this tile's rank; elsewhere its result, or zeros."""
        first = self._goes_on is None or bool(kwargs[self._goes_on])
        self._tile += first
        owner, rank = self._tile % self._ranks.world, self._ranks.rank
        if owner == rank:
            decoded = self._run(latent, *args, **kwargs)
            if rank > 0:
                # a copy: the blending that goes on here changes the tile while it is sent
                self._send(decoded.clone(memory_format=torch.contiguous_format))
            return decoded
        found = latent.new_zeros(tuple(self._shape(tuple(latent.shape), first)))
        if rank == 0:
            dist.recv(found, src=owner)
        return found

    def finish(self) -> None:
        """Wait until rank 0 has everything."""
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()

    def _send(self, decoded: Tensor) -> None:
        self._sent = [(work, kept) for work, kept in self._sent if not work.is_completed()]
        if (work := dist.isend(decoded, dst=0)) is not None:
            self._sent.append((work, decoded))


def tile_grid(height: int, width: int, ranks: int, overlap: int, least: int) -> tuple[int, int]:
    """Rows and columns of tiles with the shortest decode: the most pixels that one rank gets.

    height, width, overlap, least (a tile's smallest side without its overlap): pixels. (1, 1) where
    sharing out would not pay.
    """
    best, shortest = (1, 1), float(height * width)
    for rows in range(1, max(1, height // least) + 1):
        for columns in range(1, max(1, width // least) + 1):
            tile = (-(-height // rows) + overlap * (rows > 1)) * (
                -(-width // columns) + overlap * (columns > 1)
            )
            pixels = float(-(-rows * columns // ranks) * tile)
            if pixels < shortest:
                best, shortest = (rows, columns), pixels
    return best

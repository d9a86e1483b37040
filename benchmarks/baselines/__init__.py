"""Threshold caches of other authors, run on this project's trees to be compared with plans.

Each module states one rule, written anew from its description, with the warm-up, the protected
steps and the order of guidance branches that its authors' scripts have. A peer is one tree's:

    peer = MagCache()
    peer.calibrate(tree, [tree.inputs(prompt, seed) for ...])
    for variant in peer.variants(tree):
        low, high = peer.span(variant)
        with peer.attached(tree, variant, threshold) as spent:
            latent = tree.denoise(inputs)
        spent.block_runs, spent.bytes_held
"""

from .base import Peer, Spent, Variant
from .dicache import DiCache
from .easycache import EasyCache
from .magcache import MagCache
from .teacache import TeaCache

PEERS: tuple[type[Peer], ...] = (TeaCache, MagCache, EasyCache, DiCache)

__all__ = ["PEERS", "DiCache", "EasyCache", "MagCache", "Peer", "Spent", "TeaCache", "Variant"]

"""How long a clip takes on several GPUs: compute, communication, and what runs once.

A clip is `steps` calls of every branch; on n = ulysses x ring x cfg GPUs it takes

    (1)  clip(n) = rest(n) + calls x (flops / (p rate) + blocks x exchange) / speedup

with calls = steps x branches / cfg and p = ulysses x ring ranks that share the tokens. speedup is a
plan's, by block FLOPs: what it skips is neither computed nor sent. In a block a rank sends q, k and
v of its own tokens to the other u - 1 ranks of its Ulysses group and gets the output back,

    (2)  exchange = 4 x tokens/p x width x bytes x (u - 1)/u / link + 2 latency

and a ring passes keys and values on r - 1 times behind the attention to the block before; it costs
what that does not hide:

    (3)  (r - 1) x (latency + max(0, 2 x tokens/p x width x bytes / link - attention / (p r rate)))

rest(n) is what does not go by steps: text, saving, and the VAE's decode, on one rank or in tiles on
all of them. Rates and links are data sheets times what is reached of them: fit_seconds fits
the shares to published seconds, fit_paper sets the model against the paper's speed-ups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, log

import numpy as np

import benchmarks.lib  # noqa: F401  (puts the trees on the path)
from profiling_core.parallel.degrees import Degrees
from profiling_core.parallel.vae_tiles import tile_grid
from wan.vae import LEAST_TILE, OVERLAP

BYTES = 2  # of a number that travels, in bf16


@dataclass(frozen=True)
class Machine:
    """One GPU and its link; flops: dense bf16 a second; link: bytes a second each way."""

    name: str
    flops: float
    link: float
    latency: float = 20e-6  # seconds of a collective, however little it sends

    def reached(self, compute: float, link: float) -> Machine:
        """With these shares of the data sheet."""
        return replace(self, flops=self.flops * compute, link=self.link * link)


# NVIDIA's data sheets: 989.4 TFLOP/s dense bf16, NVLink 4 with 450 GB/s each way; the H200 differs
# in its memory alone
H100 = Machine("H100 SXM", 989.4e12, 450e9)
H200 = Machine("H200 SXM", 989.4e12, 450e9)


@dataclass(frozen=True)
class Clip:
    """Pixels and frames; the VAEs' strides are 4, 8, 8, the patches 1, 2, 2."""

    height: int
    width: int
    frames: int
    steps: int = 50

    @property
    def tokens(self) -> int:
        return self.latents * (self.height // 16) * (self.width // 16)

    @property
    def latents(self) -> int:
        """Latent frames."""
        return (self.frames - 1) // 4 + 1

    @property
    def megapixels(self) -> float:
        """Pixels of all frames: what a decode's seconds go by."""
        return self.height * self.width * self.frames / 1e6

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.frames} frames"


@dataclass(frozen=True)
class Model:
    """What a call costs; block_weights: parameters that one token meets in one block.

    decode_share: the part of a decode's work that the busiest of so many ranks has.
    """

    name: str
    width: int
    blocks: int
    block_weights: float
    branches: int  # calls of a step
    text: int  # tokens that join the attention
    decode_share: Callable[[Clip, int], float]

    def flops(self, clip: Clip) -> float:
        """FLOPs of one call: 2 per weight and token, and the attention."""
        return 2 * self.blocks * self.block_weights * (clip.tokens + self.text) + self.attention(
            clip
        )

    def attention(self, clip: Clip) -> float:
        """FLOPs of both products, all blocks: 4 x width for every pair of tokens."""
        return 4.0 * self.blocks * self.width * (clip.tokens + self.text) ** 2


def official_tiles(clip: Clip, ranks: int) -> float:
    """HunyuanVideo: tiles of 256 pixels and 64 frames, three quarters apart."""
    rows, columns = (ceil(side / 192) for side in (clip.height, clip.width))
    tiles = rows * columns * ceil(clip.latents / 12)
    return ceil(tiles / ranks) / tiles


def grid_tiles(clip: Clip, ranks: int) -> float:
    """Wan: as many tiles as pay, with their overlap."""
    rows, columns = tile_grid(clip.height, clip.width, ranks, OVERLAP, LEAST_TILE)
    tile = (ceil(clip.height / rows) + OVERLAP * (rows > 1)) * (
        ceil(clip.width / columns) + OVERLAP * (columns > 1)
    )
    return ceil(rows * columns / ranks) * tile / (clip.height * clip.width)


# a token meets 4 + 8 width^2 in a double block's stream, 7 + 5 width^2 in a single block
HUNYUAN = Model("HunyuanVideo", 3072, 60, 12 * 3072**2, 1, 256, official_tiles)
# self-attention 4, cross-attention's q and o 2 width^2, the FFN 2 width x 13824
WAN_14B = Model("Wan2.1 14B", 5120, 40, 6 * 5120**2 + 2 * 5120 * 13824, 2, 0, grid_tiles)


@dataclass(frozen=True)
class Rest:
    """Seconds around the loop: fixed of every clip, decode of a million pixels on one GPU."""

    fixed: float
    decode: float

    def seconds(self, model: Model, clip: Clip, ranks: int, shared: bool) -> float:
        share = model.decode_share(clip, ranks) if shared and ranks > 1 else 1.0
        return self.fixed + self.decode * clip.megapixels * share


def sent(model: Model, clip: Clip, degrees: Degrees) -> float:
    """Bytes that one rank sends in one call: all-to-alls, ring, and the gathered prediction."""
    own = clip.tokens / degrees.sequence
    to_all = 4 * own * model.width * BYTES * (degrees.ulysses - 1) / degrees.ulysses
    around = 2 * own * model.width * BYTES * (degrees.ring - 1)
    prediction = own * 64 * 4 * (degrees.sequence - 1)  # 64 numbers a token in fp32, to every rank
    return model.blocks * (to_all + around) + prediction


def call_seconds(model: Model, clip: Clip, degrees: Degrees, machine: Machine) -> float:
    """One call of one branch: what stands in the brackets of (1)."""
    u, r, p = degrees.ulysses, degrees.ring, degrees.sequence
    moved = clip.tokens / p * model.width * BYTES / machine.link  # seconds of one tensor
    exchange = 0.0
    if u > 1:
        exchange += 4 * moved * (u - 1) / u + 2 * machine.latency
    if r > 1:
        hidden = model.attention(clip) / model.blocks / (p * r * machine.flops)
        exchange += (r - 1) * (machine.latency + max(0.0, 2 * moved - hidden))
    return model.flops(clip) / (p * machine.flops) + model.blocks * exchange


def loop_seconds(
    model: Model, clip: Clip, degrees: Degrees, machine: Machine, speedup: float = 1.0
) -> float:
    """The denoising loop."""
    calls = clip.steps * model.branches / degrees.cfg
    return calls * call_seconds(model, clip, degrees, machine) / speedup


def clip_seconds(
    model: Model,
    clip: Clip,
    degrees: Degrees,
    machine: Machine,
    rest: Rest,
    speedup: float = 1.0,
    *,
    shared: bool = False,
) -> float:
    """(1), without loading the weights; shared: the decode is on all ranks."""
    loop = loop_seconds(model, clip, degrees, machine, speedup)
    return loop + rest.seconds(model, clip, degrees.world, shared)


GPUS = (1, 2, 4, 8)
# HunyuanVideo's README, H100: seconds of 50 steps (two GPUs: 925 to 934)
PUBLISHED_CLIP = Clip(720, 1280, 129)
PUBLISHED_SECONDS = (1904.0, 930.0, 514.0, 338.0)
# arXiv 2504.03140, the plot in the release's documents, H200: speed-ups of the paper's plan
PUBLISHED_SPEEDUPS = {
    Clip(720, 1280, 129): (1.87, 1.84, 1.80, 1.61),
    Clip(720, 1280, 69): (1.84, 1.83, 1.74, 1.47),
    Clip(360, 640, 129): (1.84, 1.61, 1.61, 1.83),
    Clip(360, 640, 49): (1.80, 1.81, 1.16, 1.42),
}
FIXED = 5.0  # seconds of text encoding and saving that every clip is given


@dataclass(frozen=True)
class Fit:
    """compute, link: shares of the data sheet; decode: seconds of a million pixels."""

    compute: float
    link: float
    decode: float
    seconds: tuple[float, ...]  # modelled, on GPUS
    error: float  # root mean square of ln(modelled / published)

    def machine(self, sheet: Machine) -> Machine:
        return sheet.reached(self.compute, self.link)

    @property
    def rest(self) -> Rest:
        return Rest(FIXED, self.decode)


def fit_seconds() -> Fit:
    """The best of a grid; officially every rank decodes the whole clip."""
    found = []
    for compute, link, decode in product(
        np.arange(0.28, 0.50, 0.005), np.geomspace(0.02, 1.0, 24), np.arange(0.0, 1.55, 0.05)
    ):
        machine, rest = H100.reached(float(compute), float(link)), Rest(FIXED, float(decode))
        seconds = tuple(
            clip_seconds(HUNYUAN, PUBLISHED_CLIP, Degrees(ulysses=n), machine, rest) for n in GPUS
        )
        logs = [log(a / b) for a, b in zip(seconds, PUBLISHED_SECONDS, strict=True)]
        error = float(np.sqrt(np.mean(np.square(logs))))
        found.append(Fit(float(compute), float(link), float(decode), seconds, error))
    return min(found, key=lambda one: one.error)


@dataclass(frozen=True)
class PaperFit:
    """What explains the paper's speed-ups best: the plan's own by blocks, the seconds around."""

    speedup: float
    rest: Rest
    modelled: dict[Clip, tuple[float, ...]]
    error: float  # root mean square of modelled - published


def fit_paper(fit: Fit) -> PaperFit:
    """Three numbers against sixteen: what jumps up and down in those stays unexplained."""
    machine, found = fit.machine(H200), []
    for speedup, decode, fixed in product(
        np.arange(1.80, 2.10, 0.01), np.arange(0.0, 1.05, 0.05), np.arange(0.0, 10.5, 0.5)
    ):
        rest = Rest(float(fixed), float(decode))
        modelled = {
            clip: speedups(HUNYUAN, clip, machine, rest, float(speedup))
            for clip in PUBLISHED_SPEEDUPS
        }
        differences = np.subtract(list(modelled.values()), list(PUBLISHED_SPEEDUPS.values()))
        error = float(np.sqrt(np.mean(np.square(differences))))
        found.append(PaperFit(float(speedup), rest, modelled, error))
    return min(found, key=lambda one: one.error)


def speedups(
    model: Model,
    clip: Clip,
    machine: Machine,
    rest: Rest,
    speedup: float,
    *,
    shared: bool = False,
) -> tuple[float, ...]:
    """End to end without over with the plan, on GPUS; both decode in the same way."""
    found = []
    for n in GPUS:
        degrees = Degrees(ulysses=n)
        plain, planned = (
            clip_seconds(model, clip, degrees, machine, rest, s, shared=shared)
            for s in (1.0, speedup)
        )
        found.append(plain / planned)
    return tuple(found)

"""The scaling model against published seconds and speed-ups."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import log

import numpy as np

from profiling_core.parallel.degrees import Degrees
from scaling_model import H100, H200, HUNYUAN, Clip, Machine, Model, Rest, clip_seconds

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
    cfg: int = 1,
) -> tuple[float, ...]:
    """End to end without over with the plan, on GPUS; both decode in the same way."""
    found = []
    for n in GPUS:
        degrees = Degrees(ulysses=max(1, n // cfg), cfg=min(cfg, n))
        plain, planned = (
            clip_seconds(model, clip, degrees, machine, rest, s, shared=shared)
            for s in (1.0, speedup)
        )
        found.append(plain / planned)
    return tuple(found)

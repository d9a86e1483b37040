"""A world without training that ranks public lists as the real models do: a Gaussian's denoiser.

Latents of drawn clips have principal axes with variances lambda_k. In the latent of a real model,
RATIO times as large, what is smooth covers RATIO times as many numbers, so an axis there has the
variance l_k = RATIO lambda_k, while the noise keeps the variance 1. With alpha = 1 - sigma and the
clips as one Gaussian, the posterior mean on an axis and the prediction that it stands for are

    (1)  E[clip | x] = alpha l / (sigma^2 + alpha^2 l) x
    (2)  v = (x - E[clip | x]) / sigma = (sigma - alpha l) / (sigma^2 + alpha^2 l) x

A run is linear in its start, axis by axis, so one run from ones gives the root mean square over all
noise and clips: nothing is sampled. A list's error is that of the final latent against the run that
computes every step; skipped steps hold the last prediction. The first command draws the clips and
appends their variances to results/spectral_world.jsonl, the second prints the tables:

    python -m benchmarks.search.spectral_world --threads 1
    python -m benchmarks.search.spectral_world --table
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.lib import ROOT
from benchmarks.lib.command_line import Parser, at_least
from benchmarks.lib.rows import Row, Rows, append_row, default_device, environment, load_rows, table
from benchmarks.search.law_scores import COUNTS, by_class, grid_of, of_length
from benchmarks.search.regret import lists_of
from miniatures import clips
from miniatures.autoencoder import to_tensor
from miniatures.wan import vae
from profiling_core.plan.importers import public_document
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels

NAME = "spectral_world"
FRAMES, SIZE, TOGETHER = 17, 64, 8  # of the drawn clips
MODELS = {  # of the Golden Path study, and how many numbers a latent there has
    "hunyuan": ("hunyuan-video-t2v-720p", 16 * 17 * 60 * 80),
    "wan": ("wan2.1-t2v-1.3B", 16 * 17 * 60 * 104),
}
MINIATURE = 16 * 9 * 16 * 16
SHOWN = (33, 25, 16)  # computed steps of the presets


class SpectralWorld:
    """Runs of (2) on a grid, for the variances l of the axes."""

    def __init__(self, variances: np.ndarray, levels: Levels, solver: str) -> None:
        sigma, alpha = levels.sigma[:-1, None], levels.alpha[:-1, None]
        self.rates = (sigma - alpha * variances) / (sigma**2 + alpha**2 * variances)
        self.levels, self.solver = levels, solver
        self.full = self.final(range(len(levels)))

    def final(self, steps: Sequence[int]) -> np.ndarray:
        """The final latent where `steps` are computed and the others hold."""
        computed, held = set(steps), np.empty(0)

        def predict(step: int, x: np.ndarray) -> np.ndarray:
            nonlocal held
            if step in computed:
                held = self.rates[step] * x
            return held

        start = np.full(self.rates.shape[1], self.levels.sigma[0])
        return flow_solvers.run(self.solver, self.levels, start, predict)[-1]

    def decibels(self, final: np.ndarray) -> float:
        """How far a final latent is from the full run's; more is better."""
        ratio = np.linalg.norm(final - self.full) / np.linalg.norm(self.full)
        return float(-20 * np.log10(ratio))


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    row: Row = {"clips": args.clips, "seed": args.seed, "frames": FRAMES, "size": SIZE}
    if not args.table and row not in Rows(load_rows(NAME), tuple(row), ()):
        row |= spectrum(args.clips, args.seed)
        append_row(NAME, {**row, **environment(default_device())})
    for row in load_rows(NAME):
        sys.stdout.write(summary(row) + "\n")
    return 0


@torch.no_grad()
def spectrum(count: int, seed: int) -> Row:
    """Variances of the principal axes of `count` clips' latents, every channel of variance 1."""
    encoder, frames = vae.read(ROOT / "Wan2.1" / "ckpts" / "Wan2.1-T2V-mini").eval(), []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        frames.append(clips.draw(clips.random_scene(rng), rng, FRAMES, SIZE).frames)
    groups = [np.stack(frames[k : k + TOGETHER]) for k in range(0, count, TOGETHER)]
    latents = torch.cat([vae.encode(encoder, to_tensor(group))[0] for group in groups]).double()
    latents = (latents / latents.std(dim=(0, 2, 3, 4), keepdim=True)).flatten(1)
    values = torch.linalg.svdvals(latents - latents.mean(dim=0))[: count - 1].square() / count
    return {"numbers": latents.shape[1], "variances": [float(f"{v:.4g}") for v in values.tolist()]}


def world_of(row: Row, tree: str, numbers: int | None = None, steps: int = 50) -> SpectralWorld:
    """The world of a tree's real model, or with a latent of another size, or on fewer steps."""
    model, real = MODELS[tree]
    variances = (numbers or real) / row["numbers"] * np.array(row["variances"])
    return SpectralWorld(variances, *grid_of(model, steps=steps))


def rank(world: SpectralWorld, tree: str, count: int) -> float:
    """Spearman's of the errors of Golden Path's lists of that length and their classes."""
    lists = of_length(public_document()["golden-path"][MODELS[tree][0]], count)
    decibels = [world.decibels(world.final(steps)) for steps in lists.values()]
    return by_class(-np.array(decibels), lists)


def summary(row: Row) -> str:
    """Correlations by the size of the latent, then errors of the study's and of our lists."""
    sizes = {"drawn clips": row["numbers"], "miniatures": MINIATURE}
    cells = [(tree, count) for count in COUNTS for tree in MODELS]
    ranks, errors = [], []
    for name in (*sizes, 0.3, 1, 3):
        found = []
        for tree, count in cells:
            numbers = sizes.get(name) or int(name * MODELS[tree][1])
            found.append(rank(world_of(row, tree, numbers), tree, count))
        label = name if name in sizes else f"real x {name}"
        ranks.append([label, *(f"{value:.2f}" for value in (np.mean(found[:4]), *found))])
    for tree, (model, _) in MODELS.items():
        world, golden = world_of(row, tree), public_document()["golden-path"][model]
        lists = {name: steps for name, steps in golden.items() if not name.endswith("-9")}
        lists |= {name: steps for name, steps in lists_of(tree).items() if len(steps) in SHOWN}
        finals = {name: world.final(steps) for name, steps in lists.items()}
        finals["a plain run of 25 steps"] = world_of(row, tree, steps=25).full
        errors += [[tree, name, f"{world.decibels(x):.1f}"] for name, x in finals.items()]
    heads = ["latent", "mean 21, 13", *(f"{tree} {count}" for tree, count in cells)]
    return f"{table(heads, ranks)}\n\n{table(['world', 'list', 'dB'], errors)}"


def build_parser() -> Parser:
    parser = Parser(__doc__, table=True)
    parser.add_argument("--clips", type=at_least(2), default=768)
    parser.add_argument("--seed", type=at_least(0), default=2)
    return parser


if __name__ == "__main__":
    sys.exit(main())

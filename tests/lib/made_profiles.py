"""Profiles made of smooth random numbers, in the shapes of real ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from profiling_core.plan.model_specs import MODELS
from profiling_core.profile.profile import Profile, Run, Settings, Subject
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels

GUIDANCE = 5.0


def made_profile(
    model: str = "wan2.1-t2v-mini",
    runs: int = 2,
    steps: int = 50,
    foreground: tuple[int, ...] = (1, 5, 8, 9),
    seed: int = 0,
    settings: Settings | None = None,
) -> Profile:
    """`runs` runs whose blocks in `foreground` attend to the foreground, at every fifth step."""
    planned, rng = MODELS[model], np.random.default_rng(seed)
    branches = planned.family.branches
    attention_steps = tuple(range(0, steps, 5))
    subject = Subject(
        model=planned.fingerprint,
        steps=steps,
        sigmas=tuple(round(sigma, 6) for sigma in planned.sigmas(steps)),
        solver=planned.family.solver,
        shift=planned.family.shift,
        branches=branches,
        latent=(16, 9, 16, 16),
        grid=(9, 8, 8),
        attention_steps=attention_steps,
        map_steps=attention_steps[::2],
    )
    lists = planned.fingerprint.block_lists
    blocks = sum(lists.values())
    shape = (runs, len(branches))
    share = rng.normal(0.2, 0.02, (*shape, len(attention_steps), blocks))
    share[..., list(foreground)] += 0.3
    chance = np.full_like(share, 0.2)
    curve = np.abs(np.linspace(-1, 1, steps - 1)) ** 3 * 0.2 + 0.03  # the U of real models
    steps_first = curve * rng.uniform(0.9, 1.1, (*shape, steps - 1))
    drift = curve[:, None] * rng.uniform(0.8, 1.2, (*shape, steps - 1, blocks))
    vectors = np.stack([_vectors(rng, subject) for _ in range(runs)])
    path = np.cumsum(rng.normal(size=(len(branches), blocks, steps, 16)), axis=2) * 0.05 + 1
    mask = np.zeros((runs, *subject.grid))
    mask[:, :, 2:5, 2:5] = 1
    arrays = {
        "attention_share": share,
        "attention_chance": chance,
        "attention_maps": rng.gamma(4, 0.25, (runs, len(subject.map_steps), blocks, *subject.grid)),
        "mask": mask,
        "l1": steps_first,
        "l1_relative": steps_first * 1.2,
        "cosine": 1 - steps_first**2,
        "magnitude": 1 - steps_first / 3,
        "drift": drift,
        "delta_cosine": 1 - drift**2,
        "gram": np.einsum("rik,rjk->rij", vectors, vectors) / 64,
        "block_seconds": rng.uniform(0.01, 0.011, (runs, blocks)),
        "block_flops": np.full(blocks, 1e9),
        "sensitivity": np.full((runs, steps), np.nan),
    }
    first = 0
    for name, count in lists.items():
        rows = path[:, first : first + count].reshape(len(branches), count * steps, 16)
        arrays[f"delta_gram.{name}"] = np.einsum("cik,cjk->cij", rows, rows) / 16
        first += count
    typed = {name: array.astype(_dtype(name)) for name, array in arrays.items()}
    return Profile(
        settings or Settings(), subject, tuple(_run(i, seed) for i in range(runs)), typed
    )


def with_arrays(profile: Profile, **arrays: np.ndarray) -> Profile:
    return replace(profile, arrays={**profile.arrays, **arrays})


def _vectors(rng: np.random.Generator, subject: Subject) -> np.ndarray:
    """Predictions that turn slowly, and the latents that the solver makes of them: (V, 64)."""
    count, steps = len(subject.branches), subject.steps
    turns = np.cumsum(rng.normal(size=(steps, 64)), axis=0) * 0.05
    predictions = rng.normal(size=(count, 1, 64)) + turns
    guided = predictions[0]
    if count == 2:
        guided = predictions[1] + GUIDANCE * (predictions[0] - predictions[1])
    noise, levels = rng.normal(size=64), Levels(subject.sigmas)
    latents = flow_solvers.run(subject.solver, levels, noise, lambda k, _: guided[k])
    return np.concatenate([*predictions, latents])


def _dtype(name: str) -> type:
    if name in ("gram", "block_flops"):
        return np.float64
    return np.float16 if name in ("attention_maps", "mask") else np.float32


def _run(number: int, seed: int) -> Run:
    return Run(
        prompt=f"prompt {number} of {seed}",
        seed=number,
        guidance=GUIDANCE,
        device="cpu",
        dtype="float32",
        torch="2.13.0",
        seconds=20.0,
        model_seconds=0.1,
        foreground=0.14,
        made_by="tests",
    )

"""Predicted against measured errors of many plans: the runs, and what their ranks say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.compare.samplers import Planned, plan_hash, save_array, weights_hash
from benchmarks.compare.tuning import tell
from benchmarks.lib.calibrate import PROMPTS, SEED, calibration_prompts
from benchmarks.lib.clips import Inputs, Tree
from benchmarks.lib.rows import append_row, environment
from benchmarks.search.prediction_plans import Kind
from miniatures.clips import held_out_prompts
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.search.search import PlanSearch
from profiling_core.search.step_search import QUANTILE

HELD_OUT_SEED = 100  # of the first held-out prompt's noise
Row = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """run: the prompt's place in the profile; None for a held-out one."""

    text: str
    seed: int
    run: int | None

    @property
    def label(self) -> str:
        return "held out" if self.run is None else "calibration"


def prompts_of(search: PlanSearch, calibration: int, held_out: int) -> list[Prompt]:
    """Prompts of both sorts by turns; ValueError for a profile of other prompts."""
    places = {(run.prompt, run.seed): place for place, run in enumerate(search.profile.runs)}
    own = []
    for number, text in enumerate(calibration_prompts(PROMPTS)[:calibration]):
        if (text, SEED + number) not in places:
            raise ValueError(f"the profile has no run of {text!r}, seed {SEED + number}")
        own.append(Prompt(text, SEED + number, places[text, SEED + number]))
    others = [
        Prompt(text, HELD_OUT_SEED + number, None)
        for number, text in enumerate(held_out_prompts(held_out))
    ]
    turns = [(n, prompt) for each in (own, others) for n, prompt in enumerate(each)]
    return [prompt for _, prompt in sorted(turns, key=lambda turn: turn[0])]


def measure_all(
    tree: Tree,
    plans: dict[Kind, CachePlan],
    prompts: Sequence[Prompt],
    known: Sequence[Row],
    folder: Path,
) -> None:
    """Run every plan on every prompt that has no row yet."""
    weights, found = weights_hash(tree), environment(tree.pipeline.device)
    done = {(row["weights"], row["plan"], row["prompt"], row["seed"]) for row in known}
    for number, prompt in enumerate(prompts, 1):
        inputs = tree.inputs(prompt.text, prompt.seed)
        full = full_latent(tree, inputs, folder / f"{weights}-{prompt.seed}.npy")
        for kind, plan in plans.items():
            key = (weights, plan_hash(plan), prompt.text, prompt.seed)
            if key in done:
                continue
            done.add(key)
            error = latent_error(Planned(plan).run(tree, inputs).latent, full)
            row = {
                **{"what": "error", "tree": tree.name, "weights": weights, "plan": key[1]},
                **{"kind": kind.kind, "skip": kind.skip, "speedup": kind.speedup},
                "steps": list(plan.prediction.compute_steps["cond"]),
                **{"prompt": prompt.text, "seed": prompt.seed, "of": prompt.label},
                "measured": round(error, 7),
            }
            append_row("prediction", {**row, **found})
            tell(f"{tree.name} {number}/{len(prompts)} {kind.name}: {error:.4f}")


def full_latent(tree: Tree, inputs: Inputs, path: Path) -> Tensor:
    """The full run's latent, kept in a file."""
    if not path.exists():
        save_array(path, tree.denoise(inputs).cpu().numpy())
    return torch.from_numpy(np.load(path))


@dataclass(frozen=True)
class Pair:
    """One plan; predicted: the quantile over the profile's runs; by seed: (predicted, measured).

    Of a held-out prompt the quantile is the prediction.
    """

    kind: Kind
    predicted: float
    by_seed: dict[int, tuple[float, float]]

    @property
    def measured(self) -> float:
        """The same quantile over the prompts that were run."""
        return float(np.quantile([measured for _, measured in self.by_seed.values()], QUANTILE))


def pairs_of(
    search: PlanSearch,
    plans: dict[Kind, CachePlan],
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    weights: str,
) -> list[Pair]:
    """What the rows say of the plans; a plan that some prompt lacks is left out."""
    measured = {
        (row["plan"], row["prompt"], row["seed"]): row["measured"]
        for row in rows
        if row["weights"] == weights
    }
    found = []
    for kind, plan in plans.items():
        errors, name = search.predicted_errors(plan), plan_hash(plan)
        predicted = float(np.quantile(errors, QUANTILE))
        by_seed = {
            prompt.seed: (
                predicted if prompt.run is None else float(errors[prompt.run]),
                measured[name, prompt.text, prompt.seed],
            )
            for prompt in prompts
            if (name, prompt.text, prompt.seed) in measured
        }
        if len(by_seed) == len(prompts):
            found.append(Pair(kind, predicted, by_seed))
    return found


@dataclass(frozen=True)
class Ranks:
    """Of some pairs: Spearman's rank correlation and the median of measured / predicted."""

    group: str
    count: int
    overall: float  # quantiles over prompts and runs
    ratio: float
    calibration: float | None  # mean over prompts of the correlation over plans
    held_out: float | None


def ranks(pairs: Sequence[Pair], prompts: Sequence[Prompt]) -> list[Ranks]:
    """All pairs, then those of every way to skip, every speed-up and every kind of plan."""
    return [_ranks(group, chosen, prompts) for group, chosen in _groups(pairs) if len(chosen) > 3]


def _groups(pairs: Sequence[Pair]) -> Iterator[tuple[str, list[Pair]]]:
    yield "all", list(pairs)
    sorts: tuple[Callable[[Kind], str], ...] = (
        lambda kind: kind.skip,
        lambda kind: f"{kind.speedup:g}x",
        lambda kind: kind.kind,
    )
    for sort in sorts:
        for name in sorted({sort(pair.kind) for pair in pairs}):
            yield name, [pair for pair in pairs if sort(pair.kind) == name]


def _ranks(group: str, pairs: Sequence[Pair], prompts: Sequence[Prompt]) -> Ranks:
    predicted = np.array([pair.predicted for pair in pairs])
    measured = np.array([pair.measured for pair in pairs])
    by_label: dict[str, list[float]] = {"calibration": [], "held out": []}
    for prompt in prompts:
        both = np.array([pair.by_seed[prompt.seed] for pair in pairs])
        by_label[prompt.label].append(spearman(both[:, 0], both[:, 1]))
    means = [float(np.mean(found)) if found else None for found in by_label.values()]
    ratio = float(np.median(measured / predicted))
    return Ranks(group, len(pairs), spearman(predicted, measured), ratio, *means)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(_ranked(one), _ranked(other))[0, 1])


def _ranked(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]

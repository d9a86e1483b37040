"""Samplers of a clip (fewer steps, a plan, a peer at a threshold), and what a run of one took.

A sampler is measured against the full run of the same prompt and noise with the tree's own solver.
Full runs are kept as .npy files, so that they are made once. Packages run on diffusers' transformer
with the same weights, which differs from ours by 1e-4 in fp32: the full run is ours for all.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines import Peer, Variant
from benchmarks.lib.clips import Inputs, Tree
from benchmarks.lib.rows import quality_row
from profiling_core.files import write_whole
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import speedup_flops


@dataclass(frozen=True)
class Ran:
    """One clip: latent on the CPU, share of block FLOPs of all branches, bytes, wall seconds."""

    latent: Tensor
    share: float
    bytes_held: int
    seconds: float  # of the denoising loop


class Sampler(ABC):
    """What a policy runs at one budget."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What it takes to repeat the run, as JSON."""

    @abstractmethod
    def run(self, tree: Tree, inputs: Inputs) -> Ran:
        """One clip."""

    @cached_property
    def key(self) -> str:
        """Equal for samplers that do the same."""
        return json.dumps(self.settings, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class FewerSteps(Sampler):
    steps: int
    solver: str

    @property
    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "solver": self.solver}

    def run(self, tree: Tree, inputs: Inputs) -> Ran:
        latent = tree.denoise(inputs, steps=self.steps, solver=self.solver).cpu()
        return Ran(latent, self.steps / tree.steps, 0, tree.last_run.denoise_seconds)


@dataclass(frozen=True)
class Planned(Sampler):
    plan: CachePlan
    words: str = ""  # what sets the plan apart from its siblings

    @property
    def settings(self) -> dict[str, Any]:
        return {"plan": plan_hash(self.plan), **({"words": self.words} if self.words else {})}

    def run(self, tree: Tree, inputs: Inputs) -> Ran:
        """ValueError when other blocks ran than the plan says."""
        latent, stats = tree.denoise(inputs, self.plan).cpu(), tree.last_run
        plan = self.plan
        if stats.block_runs != plan.expected.block_runs:
            raise ValueError(
                f"plan {plan.name!r}: {stats.block_runs} block runs, "
                f"expected {plan.expected.block_runs}"
            )
        share = 1 / speedup_flops(plan)  # of these block runs
        return Ran(latent, share, stats.peak_bytes, stats.denoise_seconds)


@dataclass(frozen=True)
class Thresholded(Sampler):
    peer: Peer
    variant: Variant
    threshold: float

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "peer": self.peer.name,
            "variant": self.variant.label,
            "threshold": self.threshold,
        }

    def run(self, tree: Tree, inputs: Inputs) -> Ran:
        with self.peer.attached(tree, self.variant, self.threshold) as spent:
            latent = tree.denoise(inputs).cpu()
        seconds = tree.last_run.denoise_seconds
        return Ran(latent, spent.share(), spent.bytes_held, seconds)


@dataclass(frozen=True)
class Reference:
    """The full run of one prompt and seed; seconds: of a full run in this process."""

    prompt: str
    seed: int
    inputs: Inputs
    latent: Tensor
    video: Tensor
    seconds: float


class References:
    """Full runs of a tree, made once and kept in a folder."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        self.tree, self.folder = tree, folder
        self.seconds: list[float] = []  # of the full runs of this process

    def get(self, kind: str, number: int, prompt: str, seed: int) -> Reference:
        """The full run that is named by kind and number.

        A kept latent is taken as it is, once this process has a full run of its own to time by.
        """
        inputs = self.tree.inputs(prompt, seed)
        path = self.folder / f"{kind}-{number}.npy"
        if path.exists() and self.seconds:
            latent, seconds = torch.from_numpy(np.load(path)), median(self.seconds)
        else:
            latent = self.tree.denoise(inputs).cpu()
            seconds = self.tree.last_run.denoise_seconds
            self.seconds.append(seconds)
            save_array(path, latent.numpy())
        return Reference(prompt, seed, inputs, latent, self.tree.decode(latent), seconds)


def measured(tree: Tree, sampler: Sampler, reference: Reference) -> dict[str, Any]:
    """Figures of a row: speed-up by block FLOPs, bytes, latent error, video metrics, seconds."""
    ran = sampler.run(tree, reference.inputs)
    return {
        "speedup": round(1 / ran.share, 4),
        "bytes_held": ran.bytes_held,
        "latent_error": round(latent_error(ran.latent, reference.latent), 6),
        **quality_row(tree.decode(ran.latent), reference.video),
        "seconds": round(ran.seconds, 3),
        "full_seconds": round(reference.seconds, 3),
    }


def plan_hash(plan: CachePlan) -> str:
    """A hash of what the plan does; its name and provenance do not count."""
    document = plan.model_dump(mode="json", exclude_none=True)
    named = ("steps", "sigmas", "solver", "shift", "sites")
    kept = {name: document[name] for name in named if name in document}
    for site in kept["sites"]:
        if site["skip"] in ("linear", "corrected"):
            site["lines"] = "log-SNR"  # those of older rows lay in sigma
        # fitted on one machine or another, weights differ in the last bits
        if "solver_weights" in site:
            site["solver_weights"] = _rounded(site["solver_weights"])
    text = json.dumps({**kept, "storage": plan.storage}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _rounded(values: Any) -> Any:
    """Numbers of a JSON document to nine digits."""
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return float(f"{values:.9g}")


def weights_hash(tree: Tree) -> str:
    """A hash of the model's weights: results of other weights are never mixed with these."""
    found = hashlib.sha256()
    for name, tensor in sorted(tree.pipeline.model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:12]


def save_array(path: Path, array: np.ndarray) -> None:
    """Write .npy under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    np.save(buffer, array)
    write_whole(path, buffer.getvalue())

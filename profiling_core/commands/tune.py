"""The runs of `plan --tune N`, kept in a folder until the plan is written, and their table."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from profiling_core.errors import PlanError, ProfileError
from profiling_core.files import write_whole
from profiling_core.metrics import latent_error
from profiling_core.plan import CachePlan
from profiling_core.profile.profile import Profile
from profiling_core.refit.halving import Errors
from profiling_core.refit.refit import check_size, clips_of
from profiling_core.search.search import Point
from profiling_core.trees.tree_model import TreeModel

NOT_FINITE = 1e3  # relative error that stands for a latent that is not finite


def table(errors: Errors, points: dict[str, Point], chosen: str) -> list[str]:
    """How all candidates fared."""
    names = max(len("candidate"), *map(len, points))
    skips = max(len("mode"), *(len(point.skip) for point in points.values()))
    lines = [f"{'candidate':<{names}}  {'mode':<{skips}}  predicted  measured   worst  prompts"]
    for name, found in errors.items():
        point, mark = points[name], "<" if name == chosen else ""
        lines.append(
            f"{name:<{names}}  {point.skip:<{skips}}  {point.error:>9.4f}  "
            f"{np.mean(found):>8.4f}  {max(found):.4f}  {len(found):>7}{mark}"
        )
    return lines


class Runs:
    """The runs of a tuning, each taken once and kept in a folder: full latents, and errors."""

    def __init__(self, folder: Path, profile: Profile, model: TreeModel, weights: str) -> None:
        """PlanError where the folder holds runs of something else."""
        self.folder, self.profile, self.model = folder, profile, model
        self._clips = clips_of(profile)
        settings = {name: str(value) for name, value in model.settings.items()}
        self._of = {"profile": profile.sha256(), "weights": weights, **settings}
        self._errors: dict[str, float] = {}
        self._last: tuple[int, tuple[Any, ...], np.ndarray] | None = None
        if self._path.exists():
            self._read()

    @property
    def _path(self) -> Path:
        return self.folder / "runs.json"

    def _read(self) -> None:
        try:
            document = json.loads(self._path.read_text("utf-8"))
            of, self._errors = dict(document["of"]), dict(document["errors"])
        except (ValueError, KeyError, TypeError):
            raise PlanError(
                f"{self._path} holds no runs of a tuning: remove the folder, or name another plan"
            ) from None
        for name in {**of, **self._of}:
            if of.get(name) != self._of.get(name):
                raise PlanError(
                    f"{self.folder} holds runs with {name} {of.get(name)}, this tuning has "
                    f"{self._of.get(name)}: remove the folder, or name another plan"
                )

    def error(self, plan: CachePlan, number: int) -> float:
        """The relative error of a plan's final latent on a prompt of the profile, from 0."""
        key = f"{hashlib.sha256(plan.dumps().encode()).hexdigest()[:16]} {number}"
        if key not in self._errors:
            _, inputs, full = self._prompt(number)
            found = latent_error(_array(self.model.denoise(inputs, plan)), full)
            self._errors[key] = found if np.isfinite(found) else NOT_FINITE
            self._keep()
        return self._errors[key]

    def _keep(self) -> None:
        document = {"of": self._of, "errors": self._errors}
        write_whole(self._path, json.dumps(document, indent=1).encode())

    def _prompt(self, number: int) -> tuple[int, tuple[Any, ...], np.ndarray]:
        """The number, inputs and full latent of a prompt; those of the last one are remembered."""
        if self._last is None or self._last[0] != number:
            path = self.folder / f"full-{number}.npy"
            inputs = self.model.inputs(*self._clips[number])
            if not path.exists():
                latent = self.model.denoise(inputs)
                check_size(self.profile, latent)
                self._keep()  # first: a latent never lies there without what it is of
                buffer = BytesIO()
                np.save(buffer, _array(latent))
                write_whole(path, buffer.getvalue())
            full = np.load(path)
            if not np.isfinite(full).all():
                raise ProfileError(
                    f"the full run of prompt {number + 1} is not finite: look at the weights and "
                    f"their precision, and remove {self.folder}"
                )
            self._last = number, inputs, full
        return self._last


def _array(latent: Any) -> np.ndarray:
    return latent.float().cpu().numpy()

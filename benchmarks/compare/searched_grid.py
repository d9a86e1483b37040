"""Noise levels for fewer steps, searched as OptimalSteps does (arXiv 2503.21774), written anew.

The teacher is the full run: X_j is its latent at level j of N, X_N the final one. A student visits
some of the levels, the first among them, with the solver's own steps F and the model's predictions
at its own latents. The best one at level j after k steps comes from the level i < j for which

    x(k, j) = F(x(k - 1, i) -> j)   has the least sum over prompts of |x(k, j) - X_j|^2

One pass over the levels gives the students of every number of steps. F is linear in the first
latent and in the predictions (flow_solvers), which a student remembers. With Euler such a student
is a held plan, with UniPC or DPM++ the solver on a subset of the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lib.clips import Inputs, Tree
from benchmarks.lib.command_line import log
from profiling_core.engine.anchors import tensors_of
from profiling_core.engine.full_run import FullRun
from profiling_core.engine.seams import in_front
from profiling_core.plan.schema import Branch
from profiling_core.search import flow_solvers
from profiling_core.search.flow_solvers import Levels

Predict = Callable[[int, np.ndarray], np.ndarray]  # level, latents (R, D) -> predictions


@dataclass(frozen=True)
class Student:
    """At a level or the end; terms: the first latents and the predictions so far, each (R, D)."""

    error: float
    visited: tuple[int, ...]  # levels, without the one where it is
    terms: tuple[np.ndarray, ...]
    factors: np.ndarray  # of the terms in the latent


def students_of(
    tree: Tree, prompts: Sequence[Inputs], counts: Collection[int]
) -> dict[int, Student]:
    """The best student of every number of steps, searched on these prompts."""
    teachers = [_Teacher(tree) for _ in prompts]
    for teacher, inputs in zip(teachers, prompts, strict=True):
        teacher.run(inputs)

    def predict(level: int, latents: np.ndarray) -> np.ndarray:
        pairs = zip(teachers, latents, strict=True)
        return np.stack([teacher.predict(level, latent) for teacher, latent in pairs])

    path = np.stack([teacher.latents for teacher in teachers], axis=1)  # (N + 1, R, D)
    sampling = tree.sampling
    return search(sampling.solver, tree.sigmas(sampling), path, predict, counts)


def search(
    solver: str,
    sigmas: Sequence[float],
    teacher: np.ndarray,
    predict: Predict,
    counts: Collection[int],
) -> dict[int, Student]:
    """The best student of every count; teacher: its latents at every level, (N + 1, R, D)."""
    last = len(sigmas)
    reached = {(0, 0): Student(0.0, (), (teacher[0],), np.ones(1))}
    for level in range(last):
        for taken in range(level + 1):
            if (taken, level) not in reached:
                continue
            before = reached.pop((taken, level))
            latents = np.tensordot(before.factors, np.stack(before.terms), 1)
            terms = (*before.terms, predict(level, latents.astype(np.float32)))
            visited, stacked = (*before.visited, level), np.stack(terms)
            for to in range(level + 1, last + 1):
                if not any(_reaches(count - taken - 1, last - to) for count in counts):
                    continue
                factors = _factors(solver, sigmas, visited, to)
                off = np.tensordot(factors, stacked, 1) - teacher[to]
                error = float(np.vdot(off, off))
                known = reached.get((taken + 1, to))
                if known is None or error < known.error:
                    reached[taken + 1, to] = Student(error, visited, terms, factors)
        log(f"searched grid: level {level + 1} of {last}")
    return {count: reached[count, last] for count in counts}


def _reaches(steps: int, levels: int) -> bool:
    """Can a student that has so many steps left visit so many levels and be at the end?"""
    return 0 <= steps <= levels and (steps > 0) == (levels > 0)


def _factors(solver: str, sigmas: Sequence[float], visited: Sequence[int], to: int) -> np.ndarray:
    """Of the first latent and of the predictions at the visited levels, in the latent at `to`."""
    levels = [*visited, to] if to < len(sigmas) else visited
    units = np.eye(len(levels) + 1)
    on = Levels([sigmas[level] for level in levels])
    latents = flow_solvers.run(solver, on, units[0], lambda k, _: units[k + 1])
    return latents[len(visited)][: len(visited) + 1]


class _Teacher(FullRun):
    """A full run: keeps its latents, and its model calls to repeat them at other latents."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree.steps, blocks=0)
        self.tree, self.latents = tree, []
        self.calls: list[dict[Branch, tuple]] = []

    def run(self, inputs: Inputs) -> None:
        final = self.tree.denoise(inputs, recorder=self)
        self.latents.append(_flat(final))

    def begin(self, step: int, branch: Branch = "cond") -> None:
        self.step, self.branch = step, branch

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[_Teacher]:
        with in_front(model, self):
            yield self

    def call(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.step == len(self.calls):
            self.calls.append({})
            self.latents.append(_flat(args[0] if args else next(iter(kwargs.values()))))
        self.calls[self.step][self.branch] = run, args, kwargs
        return run(*args, **kwargs)

    def predict(self, level: int, latent: np.ndarray) -> np.ndarray:
        """The guided prediction at a latent."""
        found = {}
        for branch, (run, args, kwargs) in self.calls[level].items():
            if args:
                args = (_like(args[0], latent), *args[1:])
            else:
                name = next(iter(kwargs))
                kwargs = {**kwargs, name: _like(kwargs[name], latent)}
            with torch.no_grad():
                found[branch] = _flat(run(*args, **kwargs))
        cond, uncond = found["cond"], found.get("uncond")
        return cond if uncond is None else uncond + self.tree.guidance * (cond - uncond)


def _flat(latent: Any) -> np.ndarray:
    return tensors_of(latent)[0].detach().to("cpu", torch.float32).flatten().numpy()


def _like(given: Any, latent: np.ndarray) -> Any:
    """The latent as the model takes it: a tensor or a list of one."""
    like: Tensor = tensors_of(given)[0]
    made = torch.from_numpy(latent).to(like).view_as(like)
    return made if isinstance(given, Tensor) else [made]

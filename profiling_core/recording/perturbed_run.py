"""PerturbedRun: a recorded run once more with a small error before one step.

Up to that step the model does not run: its recorded predictions are returned, so that the solver,
with all its history, comes to the same latent. EPSILON of the change to the next prediction is
added to the one before the step, the kind of error that reuse makes; from there on the model runs.
Sensitivity is the distance of the final latents over that of the latents at the step: how much of
an error in the middle is left at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from profiling_core.engine.anchors import Anchor, forecast_prediction, tensors_of
from profiling_core.engine.full_run import FullRun
from profiling_core.engine.seams import in_front
from profiling_core.errors import ProfileError
from profiling_core.plan.schema import Branch
from profiling_core.recording.run_data import Recording, flat

EPSILON = 0.1


class PerturbedRun(FullRun):
    """Attached like a Recorder, which gets its position by `begin`; step: 1..steps-1."""

    _position: tuple[int, Branch]

    def __init__(self, recording: Recording, step: int) -> None:
        if not 1 <= step < recording.subject.steps:
            raise ProfileError(
                f"sensitivity step {step}: expected 1..{recording.subject.steps - 1}"
            )
        blocks = sum(recording.subject.model.block_lists.values())
        super().__init__(recording.subject.steps, blocks)
        self.recording, self.step = recording, step
        self.injected: float | None = None  # distance of the latents at the step

    def begin(self, step: int, branch: Branch = "cond") -> None:
        """Say which step and branch the next model call belongs to."""
        self._position = (step, branch)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[PerturbedRun]:
        """In front of the model's call inside the with block."""
        self.stats = self.new_stats()
        with in_front(model, self):
            yield self

    def call(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer one call of the model from the recording, or by running it."""
        step, branch = self._position
        if step < self.step:
            return self._recorded(step, branch)
        if step == self.step and self.injected is None:
            latents = tensors_of(args[0] if args else next(iter(kwargs.values())))
            apart = flat(latents) - self.recording.latents[step]
            self.injected = float(apart.double().norm())
        self.count_call()
        return run(*args, **kwargs)

    def effect(self, latent: Tensor, perturbed: Tensor) -> float:
        """Sensitivity: distance of the final latents over the injected one."""
        if not self.injected:
            raise ProfileError(
                f"the error before step {self.step} left the latent as it was: the predictions of "
                "these steps do not differ, or the loop does not use what the model returns"
            )
        copies = self.recording.latents[0].numel() // latent.numel()  # of the clip in one call
        distance = float((latent.double() - perturbed.double()).norm())
        return distance * copies**0.5 / self.injected

    def _recorded(self, step: int, branch: Branch) -> Any:
        predictions = self.recording.predictions[branch]
        needed: list[tuple[Anchor, float]] = [(predictions[step], 1.0)]
        if step == self.step - 1:
            needed = [(predictions[step], 1.0 - EPSILON), (predictions[step + 1], EPSILON)]
        return forecast_prediction(needed)

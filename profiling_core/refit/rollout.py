"""Rollout: one of the profile's prompts run with unfinished weights, up to any step.

The fit of a stretch needs the latents that all prompts reach with the weights before it. The trees'
loops run one prompt from start to end, so a `Rollout` starts its loop again for every stretch:
earlier predictions come from memory, only the solver works again, and the loop is left where the
stretch ends. The model runs once at every compute step.

    rollout = Rollout(model, inputs, guidance, steps)
    rollout.record(steps)                       the full run: the target latents
    latent = rollout.run(weights, until=12)     as the model would see it at step 12
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from profiling_core.engine.anchors import Anchor, forecast_prediction, keep, tensors_of
from profiling_core.engine.full_run import FullRun
from profiling_core.engine.seams import in_front
from profiling_core.errors import ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.schema import Branch, Forecast


class LoadedModel(Protocol):
    """A model with its weights, set to the size and steps that the profile recorded."""

    def inputs(self, prompt: str, seed: int) -> tuple[Any, ...]:
        """The encoded prompt and the noise."""

    def denoise(
        self, inputs: tuple[Any, ...], plan: CachePlan | None = None, *, recorder: Any = None
    ) -> Tensor:
        """The final latent, with a plan or under a recorder."""


@dataclass
class Weights:
    """Weights of an unfinished plan: forecasts of reuse steps, corrections at compute steps.

    At a compute step without correction the solver gets the new prediction itself.
    """

    forecasts: dict[int, Forecast] = field(default_factory=dict)
    corrected: dict[int, Forecast] = field(default_factory=dict)


class Rollout:
    """One prompt and seed: the latents of its full run, and the predictions with the weights.

    guidance: its scale, used where the model has two branches. Latents are (numel,) fp32;
    everything is kept on the host.
    """

    def __init__(
        self, model: LoadedModel, inputs: tuple[Any, ...], guidance: float | None, steps: int
    ) -> None:
        self.model, self.inputs, self.guidance, self.steps = model, inputs, guidance, steps
        self.wanted: dict[int, Tensor] = {}
        self.final = torch.zeros(0)
        self._predictions: dict[tuple[Branch, int], Anchor] = {}

    def record(self, steps: Collection[int]) -> Tensor:
        """The full run; keeps the latents before `steps` and the final one.

        ProfileError where the model's calls hold several clips, as with batched guidance.
        """
        watch = _Watch(self, Weights(), None, recording=True)
        latent = self.model.denoise(self.inputs, recorder=watch)
        self.final = _flat(latent)
        self.wanted = {step: seen for step, seen in watch.latents.items() if step in steps}
        sizes = {len(seen) for seen in self.wanted.values()} - {len(self.final)}
        if sizes:
            raise ProfileError(
                f"refit: a model call holds {sizes.pop()} numbers, the latent {len(self.final)}: "
                "guidance in one call with the prompt (--cfg-scale above 1) is not refitted"
            )
        return latent.cpu()

    def run(self, weights: Weights, until: int | None = None) -> Tensor:
        """The latent that the model would see at step `until`, or the final one."""
        try:
            return _flat(self.model.denoise(self.inputs, recorder=_Watch(self, weights, until)))
        except _Stop as stop:
            return stop.latent

    def forget(self) -> None:
        """Drop the predictions: other weights lead to other latents."""
        self._predictions.clear()

    def prediction(self, step: int) -> Tensor:
        """The guided prediction of a compute step, uncond + scale (cond - uncond), fp64."""
        cond, uncond = (self._predictions.get((branch, step)) for branch in ("cond", "uncond"))
        guided = _flat(cond.tensors).double()
        if uncond is not None:
            plain = _flat(uncond.tensors).double()
            guided = plain + self.guidance * (guided - plain)
        return guided

    def weighted(self, branch: Branch, terms: Forecast) -> Any:
        """The weighted sum of predictions at compute steps."""
        return forecast_prediction([(self._predictions[branch, anchor], w) for anchor, w in terms])

    def compute(self, step: int, branch: Branch, run: Callable[[], Any]) -> None:
        """Run the model at a compute step, unless it ran there before."""
        if (branch, step) not in self._predictions:
            output = run()
            copies = [t.detach().to("cpu", copy=True) for t in tensors_of(output)]
            if not all(copy.isfinite().all() for copy in copies):
                raise ProfileError(
                    f"prediction of step {step}, {branch}, is not finite: nothing is refitted; "
                    "look at the weights and their precision"
                )
            self._predictions[branch, step] = keep(output, copies, "stream", "device")


class _Stop(Exception):
    """Leaves the tree's loop; no error."""

    def __init__(self, latent: Tensor) -> None:
        super().__init__("the stretch ends here")
        self.latent = latent


class _Watch(FullRun):
    """In front of the model's call; attaches and takes the position like a cache."""

    def __init__(
        self, rollout: Rollout, weights: Weights, until: int | None, recording: bool = False
    ) -> None:
        super().__init__(rollout.steps, blocks=0)
        self.rollout, self.weights, self.until, self.recording = rollout, weights, until, recording
        self.latents: dict[int, Tensor] = {}

    def begin(self, step: int, branch: Branch = "cond") -> None:
        """Set the position of the next model call."""
        self.step, self.branch = step, branch

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[_Watch]:
        with in_front(model, self):
            yield self

    def call(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step, branch = self.step, self.branch
        if self.recording or step == self.until:
            latent = _flat(args[0] if args else next(iter(kwargs.values())))
            if step == self.until:
                raise _Stop(latent)
            self.latents[step] = latent
            return run(*args, **kwargs)
        terms = self.weights.forecasts.get(step)
        if terms is None:
            self.rollout.compute(step, branch, lambda: run(*args, **kwargs))
            terms = self.weights.corrected.get(step, ((step, 1.0),))
        return self.rollout.weighted(branch, terms)


def _flat(latent: Any) -> Tensor:
    """One fp32 vector on the host."""
    parts = [t.detach().to("cpu", torch.float32).flatten() for t in tensors_of(latent)]
    return torch.cat(parts).clone()

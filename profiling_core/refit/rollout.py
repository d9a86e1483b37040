"""Lockstep: the profile's prompts played with weights in the making, one stretch after the other.

Who fits the weights of a stretch needs the latents that all prompts reach with the weights before
it. The trees' loops run one prompt from start to end, so a `Clip` starts its loop again for every
stretch: what the model said before is answered from memory, only the solver works again, and the
loop is left where the stretch ends. The model runs once at every compute step.

    clip = Clip(model, inputs, guidance)
    clip.record(steps)                          the full run: the latents that are wanted
    latent = clip.play(weights, until=12)       as the model would see it at step 12
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from profiling_core.engine.anchors import Anchor, forecast_prediction, keep, tensors_of
from profiling_core.engine.seams import in_front
from profiling_core.errors import ProfileError
from profiling_core.plan.schema import Branch, Forecast


@dataclass
class Weights:
    """Of a plan in the making: forecasts of reuse steps, and what compute steps give the solver.

    A compute step that is not in `given` gives its new prediction.
    """

    forecasts: dict[int, Forecast] = field(default_factory=dict)
    given: dict[int, Forecast] = field(default_factory=dict)


class Clip:
    """One prompt and seed: the latents that its full run had, and what the model says since.

    model: a tree's, `denoise(inputs, recorder=...)`; guidance: its scale, used where the model has
    two branches. Latents are (numel,) fp32; everything is kept on the host.
    """

    def __init__(self, model: Any, inputs: tuple[Any, ...], guidance: float | None) -> None:
        self.model, self.inputs, self.guidance = model, inputs, guidance
        self.wanted: dict[int, Tensor] = {}
        self.final = torch.zeros(0)
        self._said: dict[tuple[Branch, int], Anchor] = {}

    def record(self, steps: Collection[int]) -> Tensor:
        """The full run, as the tree gives it; keeps the latents before `steps` and the final one.

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

    def play(self, weights: Weights, until: int | None = None) -> Tensor:
        """The latent that the model would see at step `until`, or the final one.

        The model runs at compute steps, once until `forget`.
        """
        try:
            return _flat(self.model.denoise(self.inputs, recorder=_Watch(self, weights, until)))
        except _Stop as stop:
            return stop.latent

    def forget(self) -> None:
        """Drop what the model said: other weights lead to other latents."""
        self._said.clear()

    def prediction(self, step: int) -> Tensor:
        """What the solver is given at a computed step: uncond + scale (cond - uncond), fp64."""
        cond, uncond = (self._said.get((branch, step)) for branch in ("cond", "uncond"))
        guided = _flat(cond.tensors).double()
        if uncond is not None:
            plain = _flat(uncond.tensors).double()
            guided = plain + self.guidance * (guided - plain)
        return guided

    def answer(self, branch: Branch, terms: Forecast) -> Any:
        """The weighted sum of what the model said at other steps."""
        return forecast_prediction([(self._said[branch, anchor], w) for anchor, w in terms])

    def ask(self, step: int, branch: Branch, run: Callable[[], Any]) -> None:
        """Run the model at a compute step, where it was not asked before."""
        if (branch, step) not in self._said:
            output = run()
            copies = [t.detach().to("cpu", copy=True) for t in tensors_of(output)]
            if not all(copy.isfinite().all() for copy in copies):
                raise ProfileError(
                    f"prediction of step {step}, {branch}, is not finite: nothing is refitted; "
                    "look at the weights and their precision"
                )
            self._said[branch, step] = keep(output, copies, "stream", "device")


class _Stop(Exception):
    """No error: leaves the tree's loop."""

    def __init__(self, latent: Tensor) -> None:
        super().__init__("the stretch ends here")
        self.latent = latent


class _Watch:
    """In front of the model's call, attached and told the position like a cache."""

    def __init__(
        self, clip: Clip, weights: Weights, until: int | None, recording: bool = False
    ) -> None:
        self.clip, self.weights, self.until, self.recording = clip, weights, until, recording
        self.latents: dict[int, Tensor] = {}

    def begin(self, step: int, branch: Branch = "cond") -> None:
        """Say which step and branch the next model call belongs to."""
        self.step, self.branch = step, branch

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[_Watch]:
        """In front of the model's call inside the with block."""
        with in_front(model, self):
            yield self

    def call(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer one call of the model."""
        step, branch = self.step, self.branch
        if self.recording or step == self.until:
            latent = _flat(args[0] if args else next(iter(kwargs.values())))
            if step == self.until:
                raise _Stop(latent)
            self.latents[step] = latent
            return run(*args, **kwargs)
        terms = self.weights.forecasts.get(step)
        if terms is None:
            self.clip.ask(step, branch, lambda: run(*args, **kwargs))
            terms = self.weights.given.get(step, ((step, 1.0),))
        return self.clip.answer(branch, terms)


def _flat(latent: Any) -> Tensor:
    """One fp32 vector on the host."""
    parts = [t.detach().to("cpu", torch.float32).flatten() for t in tensors_of(latent)]
    return torch.cat(parts).clone()

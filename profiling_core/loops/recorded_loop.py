"""LoopProfile: records a full run of a foreign denoising loop into a profile.

    profile = LoopProfile(recorder_of, models)
    with profile.running(scheduler):
        video = pipeline(...)
    profile.finish(prompt=..., seed=..., guidance=...)

The recorder is made when the loop sets its scheduler's timesteps. It gets its position from the
model's calls and the final latent from the scheduler's last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from profiling_core.engine.block_lists import unwrapped
from profiling_core.engine.call_tracker import CallTracker
from profiling_core.errors import ProfileError
from profiling_core.loops.cached_loop import MOST_CALLS, LoopModels
from profiling_core.loops.scheduler_grid import Grid, SteppedLevels, grid_of, when_set
from profiling_core.plan import CachePlan
from profiling_core.plan.schema import Branch
from profiling_core.plan.solvers import SOLVERS
from profiling_core.profile.profile import GRID, Profile
from profiling_core.recording.recorder import Recorder

_SIZES = ("num_frames", "height", "width")  # of the latent, where a model takes packed tokens


class LoopProfile:
    """One run of a loop, whose models take turns where there are two.

    recorder_of: the recorder for the grid of the run and the noise level at which they change.
    """

    def __init__(
        self, recorder_of: Callable[[Grid, float | None], Recorder], found: LoopModels
    ) -> None:
        self._recorder_of, self._found = recorder_of, found
        self._recorder: Recorder | None = None
        self._final: Tensor | None = None

    @contextmanager
    def running(self, *targets: Any, shift: float | None = None) -> Iterator[LoopProfile]:
        """The run inside the with block; targets and shift as for LoopCache."""
        steps = SteppedLevels(self._see_step)
        with ExitStack() as attached, ExitStack() as seams:

            def see(scheduler: Any, given: dict[str, Any]) -> None:
                attached.close()
                facts = given | ({} if shift is None else {"shift": shift})
                grid = grid_of(scheduler, facts)
                models, boundary = self._found.used(scheduler, grid)
                self._recorder = self._recorder_of(grid, boundary)
                # the search knows the solvers, and takes their steps to be without noise
                steps.start(scheduler, may_add_noise=grid.solver not in SOLVERS)
                for handle in _positions(self._recorder, models):
                    attached.callback(handle.remove)
                attached.enter_context(self._recorder.attached(*models))

            for target in targets:
                seams.enter_context(when_set(target, see))
                seams.enter_context(steps.of(target))
            yield self

    def finish(self, **facts: Any) -> Profile:
        """The run's profile, added to its file; facts as for Recorder.finish."""
        if self._recorder is None or self._final is None:
            raise ProfileError("the loop set no timesteps or took no step: nothing was recorded")
        return self._recorder.finish(self._final, **facts)

    def _see_step(self, given: Tensor, latent: Tensor, after: Tensor) -> None:
        self._final = after
        seen = getattr(self._recorder, "see_step", None)
        if seen is not None:
            seen(given, latent)


class GuidedRecorder(Recorder):
    """Records what the solver is given, and the first of several model calls per step.

    grid: of the run; what is recorded are the latents and predictions of its levels.
    """

    def __init__(self, *args: Any, grid: Grid, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._factor, self._scales = grid.factor, grid.scales

    def attach(self, *models: nn.Module) -> GuidedRecorder:
        super().attach(*models)
        config = getattr(unwrapped(models[0]), "config", None)
        self._channels = getattr(config, "in_channels", None)
        self._ignored = False
        return self

    def begin(self, step: int, branch: Branch = "cond") -> None:
        self._ignored = branch != self.branches[0]
        if self._ignored:
            self._measures = False
        else:
            super().begin(step, branch)

    def finish(self, latent: Tensor, **facts: Any) -> Profile:
        return super().finish(self._scaled(self._clip(latent), self.steps), **facts)

    def see_step(self, given: Tensor, latent: Tensor) -> None:
        """Record the solver's input and its latent, at the step of the last call."""
        step = len(self.recording.latents)
        self.recording.see_latent(step, [self._scaled(self._clip(latent), step)])
        prediction = self._factor * self._clip(given)
        self.recording.see_prediction(step, self.branches[0], prediction)

    def _before_call(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self._ignored:
            super()._before_call(model, args, kwargs)

    def _after_call(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if not self._ignored:
            super()._after_call(model, args, kwargs, output)

    def _see_latents(self, step: int, branch: Branch, latents: list[Tensor]) -> None:
        """Do nothing: the solver's latents are recorded instead."""

    def _see_output(self, step: int, branch: Branch, output: Any) -> None:
        """Do nothing: the solver's input is recorded instead."""

    def _shape(self, latent: Tensor, kwargs: dict[str, Any]) -> tuple[int, ...]:
        self._packed = self._frames_first = None
        if latent.ndim == 3:  # (B, F H W, C)
            self._packed = tuple(int(kwargs[name]) for name in _SIZES)
            return (latent.shape[-1], *self._packed)
        self._frames_first = latent.shape[1] != self._channels == latent.shape[2]
        return tuple(self._clip(latent).shape[1:])

    def _scaled(self, latent: Tensor, step: int) -> Tensor:
        return latent if self._scales is None else latent.float() / self._scales[step]

    def _clip(self, tensor: Tensor) -> Tensor:
        """(B, C, F, H, W) of latents in any layout."""
        if self._packed is not None:
            return tensor.transpose(1, 2).unflatten(2, self._packed)
        return tensor.transpose(1, 2) if self._frames_first else tensor


def _positions(recorder: Recorder, models: list[nn.Module]) -> list[RemovableHandle]:
    """Hooks that give the recorder step and branch, put on before its own."""
    every = CachePlan.build(
        name="full",
        **{name: recorder.sampling[name] for name in ("model", *GRID)},
        sites=[],
        provenance={"made_by": __name__, "source": "every step computes"},
    )
    tracker = CallTracker(every, lambda: None, strict=True, calls=MOST_CALLS)

    def begin(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step, branch = tracker.position(args, kwargs)
        recorder.begin(step, cast(Branch, branch))

    return [model.register_forward_pre_hook(begin, with_kwargs=True) for model in models]

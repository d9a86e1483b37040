"""LoopProfile: records a full run of a denoising loop that is not ours into a profile.

    profile = LoopProfile(recorder_of, models)
    with profile.running(scheduler):
        video = pipeline(...)
    profile.finish(prompt=..., seed=..., guidance=...)

The recorder is made when the loop sets its scheduler's timesteps, told its position from the
model's calls, and given the final latent by the scheduler's last step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, nn

from profiling_core.follow import Follower
from profiling_core.loop_cache import LoopModels
from profiling_core.loop_grid import Grid, grid_of, when_set
from profiling_core.plan import CachePlan
from profiling_core.profile import Profile, ProfileError
from profiling_core.profiler import Recorder

See = Callable[[Tensor, Tensor, Tensor], None]  # what the solver is given, the latent, the next


class LoopProfile:
    """One run of a loop with one model. recorder_of: the recorder for the grid of the run."""

    def __init__(self, recorder_of: Callable[[Grid], Recorder], found: LoopModels) -> None:
        if len(found.models) > 1:
            raise ProfileError(
                f"the loop changes between {len(found.models)} models: a profile is of one; record "
                "the runs of each model on its own levels"
            )
        self._recorder_of, self._found = recorder_of, found
        self._recorder: Recorder | None = None
        self._final: Tensor | None = None

    @contextmanager
    def running(self, *targets: Any, shift: float | None = None) -> Iterator[LoopProfile]:
        """The run inside the with block; targets and shift as for LoopCache."""
        with ExitStack() as attached, ExitStack() as seams:

            def see(scheduler: Any, told: dict[str, Any]) -> None:
                attached.close()
                given = told | ({} if shift is None else {"shift": shift})
                self._recorder = self._recorder_of(grid_of(scheduler, given))
                attached.enter_context(_positions(self._recorder, self._found.models[0]))
                attached.enter_context(self._recorder.attached(self._found.models[0]))

            for target in targets:
                seams.enter_context(when_set(target, see))
                seams.enter_context(_when_stepped(target, self._see_step))
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


@contextmanager
def _positions(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Tell the recorder step and branch before its own hooks run."""
    every = CachePlan.build(
        name="full",
        model=recorder.model,
        steps=recorder.steps,
        sigmas=recorder.sampling["sigmas"],
        solver=recorder.sampling["solver"],
        shift=recorder.sampling["shift"],
        sites=[],
        provenance={"made_by": "profiling_core.loop_profile", "source": "every step computes"},
    )
    follower = Follower(every, lambda: None, strict=True)

    def tell(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder.begin(*follower.position(args, kwargs))

    handle = model.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _when_stepped(target: Any, see: See) -> Iterator[None]:
    """`see(prediction, latent, next latent)` after every step of a scheduler, or of a class."""
    original, own = target.step, "step" in vars(target)
    signature = inspect.signature(original)

    @wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        see(given["model_output"], given["sample"], after)
        return result

    target.step = step
    try:
        yield
    finally:
        if own:
            target.step = original
        else:
            del target.step

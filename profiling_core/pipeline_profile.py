"""profile_pipeline: records full runs of a diffusers pipeline into a profile.

    profile = profile_pipeline(pipe, ["a cat", "a dog"], steps=50, path="my.profile")
    plan = PlanSearch(profile).plan(Budget(speedup=2.0))

What is recorded as the prediction is what the solver is given, the guided one, whatever way the
pipeline makes it (two calls, one doubled batch, no guidance at all), and as the latent what the
solver has, not what the model sees beside it (an image's latents, say). Blocks and attention are
those of the first call of every step. A plan that is searched on it serves all guidance branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from profiling_core.anchors import keep
from profiling_core.attention_tap import functions_of
from profiling_core.loop_cache import Tell
from profiling_core.loop_grid import Grid
from profiling_core.loop_profile import LoopProfile
from profiling_core.model_parts import unwrapped
from profiling_core.pipeline import give_calls_back, log, run_calls_through
from profiling_core.pipeline_models import fingerprint_of, loop_models
from profiling_core.pipeline_refusals import refuse_other_caches
from profiling_core.plan import Branch
from profiling_core.profile import Profile, ProfileError, Settings
from profiling_core.profiler import Recorder

_SIZES = ("num_frames", "height", "width")  # of the latent, where a model takes packed tokens


def profile_pipeline(
    pipe: Any,
    prompts: Sequence[str | dict[str, Any]],
    steps: int,
    *,
    path: str | Path | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    tell: Tell = log.info,
    **arguments: Any,
) -> Profile:
    """Run `pipe` once for every prompt and record it; several runs make a better profile.

    prompts: texts, or arguments of the call where a prompt is more than a text (embeddings, an
    image); run number n gets the seed seed + n. arguments: further arguments of every call (height,
    width, num_frames, guidance_scale). path: a profile file that the runs are written to, or added
    to where it exists. settings: of a new profile; without them attention is recorded where the
    model's code lets its queries and keys be seen.

    ProfileError for a pipeline whose scheduler or models cannot be recorded, for settings that ask
    for sensitivities (runs are not repeated here), and for a file of another model or grid.
    """
    if settings is not None and settings.sensitivity:
        raise ProfileError(
            f"sensitivity steps {settings.sensitivity}: runs are not repeated here, so that it "
            "cannot be measured; leave them out and the search takes its default law"
        )
    found = loop_models(pipe)
    refuse_other_caches(pipe, found.models)
    settings = settings or _usual_settings(unwrapped(found.models[0]))
    profile: Profile | None = None
    for number, prompt in enumerate(prompts):
        recorder_of = partial(_recorder, found.models[0], found.lists, path, settings)
        run = LoopProfile(recorder_of, found)
        given = prompt if isinstance(prompt, dict) else {"prompt": prompt}
        _call(pipe, run, {**given, **arguments}, steps, seed + number)
        label = given.get("prompt") or f"prompt {number + 1}"
        recorded = run.finish(prompt=str(label), seed=seed + number)
        profile = recorded if profile is None else profile.plus(recorded)
        tell(f"recorded run {number + 1} of {len(prompts)}: {label}")
    if profile is None:
        raise ProfileError("no prompts: give at least one")
    return profile if path is None else Profile.load(path)


def _call(pipe: Any, run: LoopProfile, given: dict[str, Any], steps: int, seed: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    usual = {"generator": generator, "output_type": "latent", "num_inference_steps": steps}

    def answer(call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        with run.running(pipe.scheduler):
            return call(*args, **kwargs)

    run_calls_through(pipe, answer)
    try:
        pipe(**usual | given)
    finally:
        give_calls_back(pipe, answer)


def _usual_settings(model: nn.Module) -> Settings:
    """Attention where it can be seen."""
    return Settings() if functions_of(model.modules()) else Settings(attention_every=0)


def _recorder(
    model: nn.Module,
    lists: dict[str, str] | None,
    path: str | Path | None,
    settings: Settings,
    grid: Grid,
) -> Recorder:
    return GuidedRecorder(
        path,
        None if path is not None and Path(path).exists() else settings,
        model=fingerprint_of(model),
        steps=grid.steps,
        sigmas=grid.sigmas,
        solver=grid.solver,
        shift=grid.shift,
        branches=("cond",),
        lists=lists,
        sign=-1.0 if grid.rising else 1.0,
    )


class GuidedRecorder(Recorder):
    """Records what the solver is given; of several model calls per step the first.

    sign: -1 for a scheduler whose sigmas rise (Mochi's), so that the recorded prediction is the one
    that falling levels go with.
    """

    def __init__(self, *args: Any, sign: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sign = sign

    def attach(self, model: nn.Module) -> GuidedRecorder:
        super().attach(model)
        config = getattr(unwrapped(model), "config", None)
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
        return super().finish(self._clip(latent), **facts)

    def see_step(self, given: Tensor, latent: Tensor) -> None:
        """What the solver is given and has, at the step of the last call."""
        step = len(self.recording.latents)
        self.recording.see_latent(step, [self._clip(latent)])
        prediction = self._sign * self._clip(given)
        self.recording.see_prediction(
            step, self.branches[0], keep(prediction, [prediction.clone()], "stream", "host")
        )

    def _before_call(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self._ignored:
            super()._before_call(model, args, kwargs)

    def _after_call(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if not self._ignored:
            super()._after_call(model, args, kwargs, output)

    def _see_latents(self, step: int, branch: Branch, latents: list[Tensor]) -> None:
        """The solver's are taken instead."""

    def _see_output(self, step: int, branch: Branch, output: Any) -> None:
        """What the solver is given is taken instead."""

    def _sizes(
        self, latents: list[Tensor], kwargs: dict[str, Any]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        first = latents[0]
        self._packed = self._frames_first = None
        if first.ndim == 3:  # (B, F H W, C)
            self._packed = tuple(int(kwargs[name]) for name in _SIZES)
            shape = (first.shape[-1], *self._packed)
        else:
            self._frames_first = first.shape[1] != self._channels == first.shape[2]
            shape = tuple(self._clip(first).shape[1:])
        pairs = zip(shape[1:], self._patch, strict=True)
        return shape, tuple(size // patch for size, patch in pairs)

    def _clip(self, tensor: Tensor) -> Tensor:
        """(B, C, F, H, W) of latents in any layout."""
        if self._packed is not None:
            return tensor.transpose(1, 2).unflatten(2, self._packed)
        return tensor.transpose(1, 2) if self._frames_first else tensor

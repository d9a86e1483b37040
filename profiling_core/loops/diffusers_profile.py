"""profile_pipeline: records full runs of a diffusers pipeline into a profile.

    profile = profile_pipeline(pipe, ["a cat", "a dog"], steps=50, path="my.profile")
    plan = PlanSearch(profile).plan(Budget(speedup=2.0))

The recorded prediction is the one that the solver gets: the guided one, however the pipeline makes
it (two calls, one doubled batch, no guidance). The recorded latent is the solver's, without what
the model sees beside it (an image's latents). Blocks and attention are those of the first call of
every step. A plan that is searched on it serves all guidance branches. Two transformers that take
turns (Wan2.2) make one profile, and its plans compute the second one's first step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from profiling_core.engine.block_lists import unwrapped
from profiling_core.errors import ProfileError
from profiling_core.loops.cached_loop import Log
from profiling_core.loops.diffusers_cache import (
    give_calls_back,
    logger,
    refuse_other_caches,
    run_calls_through,
)
from profiling_core.loops.diffusers_models import fingerprint_of, loop_models
from profiling_core.loops.recorded_loop import GuidedRecorder, LoopProfile
from profiling_core.loops.scheduler_grid import Grid
from profiling_core.profile.profile import Profile, Settings
from profiling_core.recording.attention_hooks import functions_of
from profiling_core.recording.recorder import Recorder


def profile_pipeline(
    pipe: Any,
    prompts: Sequence[str | dict[str, Any]],
    steps: int,
    *,
    path: str | Path | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    log: Log = logger.info,
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
    refuse_other_caches(found.models)
    if settings is None:  # attention is recorded where hooks can see it
        seen = functions_of(unwrapped(found.models[0]).modules())
        settings = Settings() if seen else Settings(attention_every=0)
    profile: Profile | None = None
    for number, prompt in enumerate(prompts):
        recorder_of = partial(_recorder, found.models[0], found.lists, path, settings)
        run = LoopProfile(recorder_of, found)
        given = prompt if isinstance(prompt, dict) else {"prompt": prompt}
        _call(pipe, run, {**given, **arguments}, steps, seed + number)
        label = given.get("prompt") or f"prompt {number + 1}"
        recorded = run.finish(prompt=str(label), seed=seed + number)
        profile = recorded if profile is None else profile.plus(recorded)
        log(f"recorded run {number + 1} of {len(prompts)}: {label}")
    if profile is None:
        raise ProfileError("no prompts: give at least one")
    return profile if path is None else Profile.load(path)


def _call(pipe: Any, run: LoopProfile, given: dict[str, Any], steps: int, seed: int) -> None:
    generator = torch.Generator("cpu").manual_seed(seed)
    defaults = {"generator": generator, "output_type": "latent", "num_inference_steps": steps}

    def answer(call: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        with run.running(pipe.scheduler):
            return call(*args, **kwargs)

    run_calls_through(pipe, answer)
    try:
        pipe(**defaults | given)
    finally:
        give_calls_back(pipe, answer)


def _recorder(
    model: nn.Module,
    lists: dict[str, str] | None,
    path: str | Path | None,
    settings: Settings,
    grid: Grid,
    boundary: float | None,
) -> Recorder:
    return GuidedRecorder(
        path,
        None if path is not None and Path(path).exists() else settings,
        model=fingerprint_of(model),
        **grid.sampling,
        branches=("cond",),
        lists=lists,
        boundary=boundary,
        grid=grid,
    )

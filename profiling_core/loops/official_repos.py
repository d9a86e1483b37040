"""The calls that patches put into the official repositories (patches/README.md).

    check_options(args)              # before a weight is loaded
    wan_run(pipeline, args)          # of Wan, behind the construction of each pipeline
    hunyuan_run(sampler)             # of HunyuanVideo, behind the construction of the sampler
    check_used(args)                 # at the end of the command

The object that runs the loop gets a call of its own, in place of `generate` or `predict`: it
attaches to the model that is there by then (parallel, sharded, offloaded), runs upstream's call and
detaches, exceptions included. Modules, classes and models stay as they are between calls.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch.distributed as dist

from profiling_core.engine.block_lists import hidden_width, unwrapped
from profiling_core.errors import PlanError, ProfileError
from profiling_core.loops.cached_loop import Log, LoopCache, LoopModels
from profiling_core.loops.diffusers_cache import refuse_other_caches
from profiling_core.loops.diffusers_models import checked_name, expert_shares, plan_for_solver
from profiling_core.loops.recorded_loop import GuidedRecorder, LoopProfile
from profiling_core.loops.scheduler_grid import Grid
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import known_model
from profiling_core.plan.presets import ORDER
from profiling_core.plan.schema import Branch, ModelFingerprint
from profiling_core.recording.recorder import Recorder
from profiling_core.runtime.options import check_profile_target

_EXPERTS = ("high_noise_model", "low_noise_model")  # of Wan2.2's A14B, in the order of use
_UNSERVED = ("s2v-14B", "animate-14B")  # tasks of Wan2.2
_used: list[str] = []  # the plans and profiles that runs went by since `check_options`
_failed: list[str] = []  # why others did not, once their clip was made


@dataclass(frozen=True)
class Loop:
    """How one upstream runs its loop. The functions take the object that runs it."""

    family: str
    lists: tuple[str, ...]
    branches: tuple[Branch, ...]
    call: str
    models: Callable[[Any], LoopModels]
    schedulers: Callable[[Any], list[type]]  # of which the loop makes its own
    shift: str | None  # the argument, where the scheduler does not get it
    ranks: Callable[[Any], int]  # that share the tokens
    facts: Callable[[dict[str, Any], Any], dict[str, Any]]  # of a run: its arguments and result
    recorder: type[Recorder] = Recorder

    def fingerprint(self, owner: Any) -> ModelFingerprint:
        model = unwrapped(self.models(owner).models[0])
        lists = {name: len(getattr(model, name)) for name in self.lists}
        width = hidden_width(model)
        if width is None:
            raise PlanError(f"{type(model).__name__} has no hidden width: is it upstream's model?")
        return known_model(self.family, lists, width)


def wan_run(pipeline: Any, args: argparse.Namespace) -> None:
    """Let a pipeline of upstream's `wan` run by the plan of generate.py's arguments from now on."""
    _run_by(pipeline, args, WAN, logging.info)


def hunyuan_run(sampler: Any) -> None:
    """Let a HunyuanVideoSampler run by the plan of its arguments from now on."""
    from loguru import logger  # upstream's own

    _run_by(sampler, sampler.args, HUNYUAN, logger.info)


def check_options(args: argparse.Namespace) -> None:
    """UserError (a ValueError) for a --delta_cache or --delta_profile that cannot work."""
    _used.clear()
    _failed.clear()
    _check_options(args)


def check_used(args: argparse.Namespace) -> None:
    """PlanError at the end of a command for options that no run went by."""
    if not _used:
        option = "delta_profile" if args.delta_cache is None else "delta_cache"
        reason = "what was made is of a full run: this command builds or calls its pipeline where "
        reason += "our lines are not; put wan_run or hunyuan_run behind its construction, as "
        reason += "patches/README.md shows"
        named = getattr(args, option)
        raise PlanError(f"--{option} {named}: no run went by it: {'; '.join(_failed) or reason}")


def _check_options(args: argparse.Namespace) -> None:
    check_profile_target(args)
    task = str(getattr(args, "task", ""))
    if task in _UNSERVED:
        raise PlanError(
            f"--task {task}: audio, poses or faces enter between its blocks and a delta would add "
            "them twice; run it without --delta_cache and --delta_profile"
        )
    reason = _against_recording(task, args)
    if args.delta_profile is not None and reason is not None:
        raise ProfileError(
            f"--delta_profile {args.delta_profile}: {reason}, which no profile describes; leave it "
            "out and run with --delta_cache and a preset or a plan"
        )
    if args.delta_cache is not None and args.delta_cache not in ORDER:
        CachePlan.load(args.delta_cache)


def _against_recording(task: str, args: argparse.Namespace) -> str | None:
    """What this loop does beside stepping all of its latents with one model."""
    if task.endswith("A14B"):
        return f"--task {task} guides each of its two models by a scale of its own"
    picture = task == "ti2v-5B" and args.image is not None
    if picture or (getattr(args, "i2v_mode", False) and args.i2v_condition_type == "token_replace"):
        return "after every step this loop sets the picture's frame anew"
    return None


def _run_by(owner: Any, args: argparse.Namespace, loop: Loop, log: Log) -> None:
    """Let `owner`'s loop run by the plan that the options name, or record it."""
    _check_options(args)  # these lines are also written by hand, where nothing checked before
    original, signature = getattr(owner, loop.call), inspect.signature(getattr(owner, loop.call))

    @wraps(original)
    def call(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named)
        bound.apply_defaults()
        shift = bound.arguments.get(loop.shift) if loop.shift else None
        made: list[Any] = []
        try:
            if args.delta_cache is not None:
                cache = _cache(owner, args.delta_cache, loop, log)
                with cache.running(*loop.schedulers(owner), shift=shift):
                    made.append(original(*given, **named))
                _used.append(args.delta_cache)
            elif args.delta_profile is not None:
                profile = _profile(owner, args.delta_profile, loop)
                with profile.running(*loop.schedulers(owner), shift=shift):
                    made.append(original(*given, **named))
                recorded = profile.finish(**loop.facts(bound.arguments, made[0])).recorded
                _used.append(args.delta_profile)
                log(f"recorded a run of {recorded.steps} steps into {args.delta_profile}")
            else:
                made.append(original(*given, **named))
        except (PlanError, ProfileError, OSError) as error:
            if not made:
                raise
            _failed.append(str(error))  # upstream saves the clip, then `check_used` says it
            log(f"error: {error}")
        return made[0]

    setattr(owner, loop.call, call)


def _cache(owner: Any, asked: str, loop: Loop, log: Log) -> LoopCache:
    refuse_other_caches(loop.models(owner).models)
    model = loop.fingerprint(owner)
    plan = checked_name(asked, model)

    def plan_for(grid: Grid) -> CachePlan:
        return plan_for_solver(plan, model, grid.solver)

    return LoopCache(plan_for, loop.models(owner), log)


def _profile(owner: Any, path: str, loop: Loop) -> LoopProfile:
    refuse_other_caches(loop.models(owner).models)
    ranks = loop.ranks(owner)
    writes = ranks > 1 or not dist.is_initialized() or dist.get_rank() == 0

    def recorder_of(grid: Grid, boundary: float | None) -> Recorder:
        if grid.rising:
            raise ProfileError(
                "the noise levels of this run rise from 0 to 1, which samples noise: record with "
                "--flow-reverse"
            )
        more: dict[str, Any] = {"grid": grid} if loop.recorder is GuidedRecorder else {}
        recorder = loop.recorder(
            path if writes else None,
            model=loop.fingerprint(owner),
            **grid.sampling,
            branches=loop.branches,
            boundary=boundary,
            **more,
        )
        if ranks > 1:
            recorder.share(ranks, dist.get_rank())
        return recorder

    return LoopProfile(recorder_of, loop.models(owner))


def _wan_models(pipeline: Any) -> LoopModels:
    """The model of a pipeline, or Wan2.2's two, which take turns at a boundary of timesteps."""
    if hasattr(pipeline, _EXPERTS[0]):
        boundary = pipeline.boundary * pipeline.num_train_timesteps
        experts = tuple(getattr(pipeline, name) for name in _EXPERTS)
        return LoopModels(experts, shares=partial(expert_shares, boundary=boundary))
    if not hasattr(pipeline, "model"):
        raise PlanError(
            f"{type(pipeline).__name__} has neither a model nor {' and '.join(_EXPERTS)}: run it "
            "without --delta_cache and --delta_profile"
        )
    return LoopModels((pipeline.model,))


def _schedulers_of_module(pipeline: Any) -> list[type]:
    """The scheduler classes that the pipeline's module knows."""
    found = vars(sys.modules[type(pipeline).__module__]).values()
    return [
        each
        for each in dict.fromkeys(value for value in found if isinstance(value, type))
        if each.__name__.endswith("Scheduler") and callable(getattr(each, "set_timesteps", None))
    ]


def _wan_facts(arguments: dict[str, Any], result: Any) -> dict[str, Any]:
    seed = arguments["seed"]
    return {
        "prompt": arguments["input_prompt"],
        "seed": seed if seed >= 0 else None,
        "guidance": float(arguments["guide_scale"]),
        "video": result,
    }


def _hunyuan_facts(arguments: dict[str, Any], result: Any) -> dict[str, Any]:
    return {
        "prompt": arguments["prompt"],
        "seed": result["seeds"][0],
        "video": result["samples"][0],
    }


WAN = Loop(
    family="wan2.1",
    lists=("blocks",),
    branches=("cond", "uncond"),
    call="generate",
    models=_wan_models,
    schedulers=_schedulers_of_module,
    shift="shift",
    ranks=lambda pipeline: getattr(pipeline, "sp_size", 1),
    facts=_wan_facts,
)
HUNYUAN = Loop(
    family="hunyuan-video",
    lists=("double_blocks", "single_blocks"),
    branches=("cond",),
    call="predict",
    models=lambda sampler: LoopModels((sampler.pipeline.transformer,)),
    schedulers=lambda sampler: [type(sampler.pipeline.scheduler)],
    shift=None,
    ranks=lambda sampler: (
        sampler.parallel_args["ulysses_degree"] * sampler.parallel_args["ring_degree"]
    ),
    facts=_hunyuan_facts,
    recorder=GuidedRecorder,  # a guidance scale above 1 puts both prompts into one call
)

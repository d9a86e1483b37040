"""Recorder: hooks on one full run of a model turn it into a profile.

    recorder = Recorder("my.profile", model=fingerprint, steps=50, sigmas=sigmas, ...)
    with recorder.attached(model):
        for step, t in enumerate(timesteps):
            recorder.begin(step, "cond")
            ...model(...)...
    profile = recorder.finish(latent, prompt=prompt, seed=seed)

It attaches and takes the position like a DeltaCache, and changes nothing: it has hooks on the model
and its blocks, and watches the attention function of their code (attention_hooks). It keeps on the
host every prediction and latent once, a sketch of every block's delta, and on attention steps one
number per token and block.

Where several processes share the clip, each records its own tokens, heads or guidance branch
(`share`), and `finish` adds all of them up; the first process writes. Latents and predictions are
whole on all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from profiling_core.engine.anchors import tensors_of
from profiling_core.engine.block_lists import block_list, hidden_width, unwrapped
from profiling_core.engine.full_run import FullRun
from profiling_core.errors import PlanError, ProfileError
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.schema import Branch, ModelFingerprint
from profiling_core.profile.profile import MOST_MAPS, Profile, Settings, Subject, add_runs
from profiling_core.recording.arrays import profile_of
from profiling_core.recording.attention_hooks import Call, functions_of, tapped
from profiling_core.recording.attention_share import attention_received
from profiling_core.recording.block_hooks import BlockTap, Timer
from profiling_core.recording.foreground import check_source
from profiling_core.recording.perturbed_run import PerturbedRun
from profiling_core.recording.run_data import Part, Recording

EXACT_TOKENS = 8192  # above it queries are sampled
SAMPLED_QUERIES = 1024  # per head


class Recorder(FullRun):
    """Records one run on a grid of noise levels, whose sizes it finds in the first model call.

    path: the profile that the run will be added to; it is checked here, and its settings apply.
    settings: of a new profile. lists: attribute paths of block lists, where they differ from the
    fingerprint's names. ProfileError when the existing profile does not fit. `sampling` holds the
    fields of the subject but the sizes.
    """

    _recording: Recording | None
    _position: tuple[int, Branch] | None
    _calls: int
    _tap: BlockTap  # with the recording, from the first call on
    _timer: Timer
    _since: float

    def __init__(
        self,
        path: str | Path | None = None,
        settings: Settings | None = None,
        *,
        model: ModelFingerprint,
        steps: int,
        sigmas: tuple[float, ...],
        solver: str,
        shift: float,
        branches: tuple[Branch, ...],
        lists: dict[str, str] | None = None,
        boundary: float | None = None,
    ) -> None:
        super().__init__(steps, sum(model.block_lists.values()))
        self.path = None if path is None else Path(path)
        self._known = Profile.load(self.path) if self.path and self.path.exists() else None
        self.settings = self._known.settings if self._known else settings or Settings()
        every = self.settings.attention_every
        if every:
            earlier = len(self._known.runs) if self._known else 0
            check_source(self.settings.mask, self.settings.mask_source, earlier)
        attention = tuple(range(0, steps, every)) if every else ()
        self.sampling: dict[str, Any] = {
            "model": model,
            "steps": steps,
            "sigmas": tuple(float(sigma) for sigma in sigmas),
            "solver": solver,
            "shift": float(shift),
            "branches": tuple(branches),
            "attention_steps": attention,
            "map_steps": _spread(attention, MOST_MAPS),
            "boundary": boundary,
        }
        self._check_known(self.sampling)
        for step in self.settings.sensitivity:
            if step >= steps:
                raise ProfileError(
                    f"sensitivity step {step}: this run has the steps 0..{steps - 1}"
                )
        self.model, self.branches = model, tuple(branches)
        self._lists, self._part = lists, Part()
        self._hooks, self._seam = ExitStack(), ExitStack()
        self._unwritten: Callable[[], Profile] | None = None
        self._clear()

    def share(self, shards: int, shard: int, half: int | None = None) -> None:
        """Record this process's part of the runs to come (`Part`); all processes share them."""
        self._part = Part(shards, shard, half)

    # -- attach and detach

    def attach(self, *models: nn.Module) -> Recorder:
        """Put the hooks on a model, or on several that take over from each other in a run.

        ProfileError when one is not the fingerprint's.
        """
        self.write()
        self._blocks, *self._later = [self._blocks_of(unwrapped(model)) for model in models]
        self._patch = _patch_size(unwrapped(models[0]))
        self._clear()
        self.stats = self.new_stats()
        for model in models:
            before = model.register_forward_pre_hook(self._before_call, with_kwargs=True)
            after = model.register_forward_hook(self._after_call, with_kwargs=True)
            self._hooks.callback(before.remove)
            self._hooks.callback(after.remove)
        return self

    def detach(self) -> None:
        """Take every hook off again; what was recorded stays until the next attach."""
        self._seam.close()
        self._hooks.close()

    @contextmanager
    def attached(self, *models: nn.Module) -> Iterator[Recorder]:
        """`attach` for a with block; detached at its end, exceptions included."""
        self.attach(*models)
        try:
            yield self
        finally:
            self.detach()

    # -- position

    def begin(self, step: int, branch: Branch = "cond") -> None:
        """Say which step and branch the next model call belongs to: every pair once, in order."""
        count, each = self._calls, self._branches_called
        expected = (count // len(each), each[count % len(each)])
        if (step, branch) != expected or step >= self.steps:
            raise ProfileError(
                f"step {step}, {branch}: a profile needs a full run of {self.steps} steps, each "
                f"once; expected step {expected[0]}, {expected[1]}"
            )
        if self._part.half is not None and len(self.branches) == 2:
            branch = self.branches[self._part.half]
        self._position = (step, branch)

    @property
    def _branches_called(self) -> tuple[Branch, ...]:
        """Those that the loop calls the model for at a step."""
        return self.branches if self._part.half is None else self.branches[:1]

    def _before_call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict) -> None:
        step, branch = self._now
        first = args[0] if args else next(iter(kwargs.values()))
        latents = tensors_of(first)
        if self._recording is None:
            self._since = time.perf_counter()
            self._start(latents[0].device, self._shape(latents[0], kwargs))
        self._see_latents(step, branch, latents)
        self._measures = step in self.recording.subject.attention_steps
        if self._measures or (self._calls == 0 and functions_of(self._blocks)):
            share = getattr(unwrapped(model), "share", None)
            self._seam.enter_context(tapped(self._blocks, self._see_attention, share))
        if self._calls == 0:
            self._seam.enter_context(self.recording.counted_linears(self._tap, self._blocks))
        self._tap.start_call()
        self._timer = Timer(latents[0].device)

    def _after_call(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self._timer.stop()
        self._seam.close()
        step, branch = self._now
        self._position = None
        self.recording.see_blocks(step, branch, self._tap)
        self._see_output(step, branch, output)
        if not self._measures:
            self.recording.block_seconds.append([timer.seconds() for timer in self._tap.timers])
            self.recording.model_seconds.append(self._timer.seconds())
        self._calls += 1
        self.count_call()
        self.recording.seconds = time.perf_counter() - self._since

    @property
    def recording(self) -> Recording:
        """What was seen since the first call; ProfileError before it."""
        if self._recording is None:
            raise ProfileError("the model was not called: nothing is recorded")
        return self._recording

    @property
    def _now(self) -> tuple[int, Branch]:
        """The position; ProfileError before `begin`."""
        if self._position is None:
            raise ProfileError(
                "the model was called without a position: call begin(step, branch) before every "
                "model call"
            )
        return self._position

    def _see_latents(self, step: int, branch: Branch, latents: list[Tensor]) -> None:
        if branch == self.branches[0] or self._part.half is not None:
            self.recording.see_latent(step, latents)

    def _see_output(self, step: int, branch: Branch, output: Any) -> None:
        if self._part.half is not None:  # both branches' output, kept at the first one's name
            branch = self.branches[0]
        self.recording.see_prediction(step, branch, output)

    def _shape(self, latent: Tensor, kwargs: dict[str, Any]) -> tuple[int, ...]:
        """The latent's (C, F, H, W)."""
        return tuple(latent.shape[-4:])

    def _start(self, device: torch.device, shape: tuple[int, ...]) -> None:
        """Complete the subject by the sizes of the first call."""
        frames, rows, columns = (s // p for s, p in zip(shape[1:], self._patch, strict=True))
        grid = (frames, rows, columns)  # of tokens
        self._check_known(self.sampling | {"latent": shape, "grid": grid})
        subject = Subject(**self.sampling, latent=shape, grid=grid)
        tokens = frames * rows * columns
        count, shard = max(1, self.settings.delta_tokens), self._part.rows(tokens)
        self._tap = BlockTap(self._blocks, tokens, count, shard)
        self._tap.left = self._block_left
        self._tap.open(*self._later)
        self._hooks.callback(self._tap.close)
        self._recording = Recording(subject, device, self._part)

    def _see_attention(self, call: Call) -> None:
        block = self._tap.inside
        if block is None:  # for example the text refiner
            return
        if self._calls == 0:
            self.recording.flops[block] += call.flops
        if not self._measures or block in self._seen:
            return
        self._seen.add(block)
        step, branch = self._now
        frames, rows, columns = self.recording.subject.grid
        tokens = frames * rows * columns
        if call.k.shape[1] < tokens:
            raise ProfileError(
                f"block {block} attends to {call.k.shape[1]} of {tokens} tokens: this ring "
                "attention shows no process a whole row; record with Ulysses or in one process"
            )
        received = attention_received(
            call.q, call.k, tokens, call.key_lens, self._queries(tokens), self._generator
        )
        self.recording.see_attention(step, branch, block, received)

    def _block_left(self, block: int) -> None:
        if self._measures and block not in self._seen:
            raise ProfileError(
                f"block {block} ran without a call of its attention function (compiled or fused "
                "attention): record without it, or prepare the profile with --attention-every 0"
            )
        self._seen.discard(block)

    def _queries(self, tokens: int) -> int | None:
        """Queries that are sampled per head; None: all."""
        count = self.settings.attention_queries
        if count is None:
            return None if tokens <= EXACT_TOKENS else SAMPLED_QUERIES
        return count if count < tokens else None

    def finish(
        self,
        latent: Tensor,
        *,
        prompt: str,
        seed: int | None = None,
        guidance: float | None = None,
        video: Tensor | None = None,
    ) -> Profile:
        """The run as a profile of its own, added to `path` where one was given.

        latent: the final one; video: (3, F, H, W), for motion masks. ProfileError for an unfinished
        run and when it does not fit the file, which then stays as it was.
        """
        self._complete(latent)
        return self._profile(prompt=prompt, seed=seed, guidance=guidance, video=video)

    def _complete(self, latent: Tensor) -> None:
        """Add up what the processes recorded; all of them have to come here."""
        expected = self.steps * len(self._branches_called)
        if self._calls != expected:
            raise ProfileError(
                f"the run made {self._calls} of {expected} model calls: only full runs are recorded"
            )
        self.recording.see_final(latent)
        self.recording.add_up()

    def _profile(self, *, video: Tensor | None = None, **facts: Any) -> Profile:
        """The complete run; written by the first process."""
        number = len(self._known.runs) if self._known else 0
        profile = profile_of(self.recording, self.settings, facts, video=video, number=number)
        if self.path is not None and self._writes:
            self._known = add_runs(self.path, profile)
        return profile

    @property
    def _writes(self) -> bool:
        return self._part.whole or dist.get_rank() == 0

    def finish_later(self, latent: Tensor, **facts: Any) -> None:
        """`finish` at the next `write`, so that the clip can be saved first.

        Where there are several processes, the first one alone has something to write then.
        """
        if self._part.whole:
            self._unwritten = partial(self.finish, latent, **facts)
            return
        self._complete(latent)
        if self._writes:
            self._unwritten = partial(self._profile, **facts)

    def write(self) -> Profile | None:
        """Finish the run that waits for it; None where none does."""
        waiting, self._unwritten = self._unwritten, None
        return None if waiting is None else waiting()

    def measure_sensitivity(self, latent: Tensor, sample: Callable[[PerturbedRun], Tensor]) -> None:
        """One perturbed run for every sensitivity step of the settings.

        latent: the recorded run's; sample(perturbed): the final latent of the same run, sampled
        once more with `perturbed` attached.
        """
        for step in self.settings.sensitivity:
            perturbed = PerturbedRun(self.recording, step)
            self.recording.sensitivity[step] = perturbed.effect(latent, sample(perturbed))

    def _clear(self) -> None:
        self._recording = None
        self._position = None
        self._calls, self._measures = 0, False
        self._seen: set[int] = set()  # blocks whose self-attention was seen in this call
        self._generator = torch.Generator().manual_seed(0)

    def _check_known(self, sampling: dict[str, Any]) -> None:
        """ProfileError when the existing profile's runs were of another model, grid or size."""
        if self._known and self._known.subject:
            self._known.check_subject(self._known.subject.model_copy(update=sampling))

    def _blocks_of(self, inner: nn.Module) -> list[nn.Module]:
        """The blocks of all lists; ProfileError for another model than the fingerprint's."""
        found: list[nn.Module] = []
        for name, expected in self.model.block_lists.items():
            blocks = block_list(inner, name, self._lists)
            count = "none" if blocks is None else len(blocks)
            if count != expected:
                raise ProfileError(f"{self.model.name} has {expected} {name}, this model {count}")
            found += blocks or ()
        width = hidden_width(inner)
        if width is not None and width != self.model.width:
            raise ProfileError(
                f"{self.model.name} has hidden width {self.model.width}, this model {width}"
            )
        return found


def recorder_of(
    path: str | Path | None, model: str, *, sigmas: tuple[float, ...], solver: str, shift: float
) -> Recorder | None:
    """The recorder of a run of one of `model_specs.MODELS`; None without a path."""
    if path is None:
        return None
    planned = MODELS[model]
    return Recorder(
        path,
        model=planned.fingerprint,
        steps=len(sigmas),
        sigmas=sigmas,
        solver=solver,
        shift=shift,
        branches=planned.family.branches,
    )


def _spread(steps: tuple[int, ...], most: int) -> tuple[int, ...]:
    """At most `most` of the steps, first and last among them."""
    if len(steps) <= most:
        return steps
    return tuple(steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most))


def _patch_size(model: nn.Module) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a token, from the model or its config."""
    config = getattr(model, "config", None)
    size = getattr(config, "patch_size", None) or getattr(model, "patch_size", None)
    if isinstance(size, int):  # diffusers' HunyuanVideo
        return (getattr(config, "patch_size_t", None) or 1, size, size)
    if size is None or len(size) != 3:
        raise PlanError(f"{type(model).__name__} has no patch_size of three numbers: {size}")
    frames, rows, columns = size
    return frames, rows, columns

"""Step and branch of the model calls of a foreign loop, without reading the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch

from profiling_core.plan import CachePlan

EXTRA = ("call 3", "call 4")  # branches of one step beside those of a plan
_STEP_COUNTS = ("sampling_steps", "num_inference_steps", "infer_steps")
_TIMESTEPS = ("t", "timestep", "timesteps")


class CallTracker:
    """Recovers the position of each model call.

    The step is the identity of the timestep tensor: loops make a new tensor object per step and
    hand the same one to both guidance calls, while its *values* may repeat (integer timesteps do).
    The branch is recognised by the tensors that the loop gives it at every step (its prompt), and
    by the order of the calls where none differs: guidance may begin late, end early or change its
    order. `calls` allows more calls a step than the plan has branches, as skip-layer guidance
    makes them: the EXTRA branches. Strong references to these tensors and to the last timestep are
    kept, so that no other can take their identity.

    A new video is recognised by wrapping `owner.call`: then every run starts clean, its step count
    is compared with the plan's, a call too many is an error, and everything is freed when it
    returns or raises. Without an owner it is recognised when the step count is reached, or when the
    timestep of a CPU tensor runs against the direction seen so far (device tensors are never read);
    with `strict` somebody else clears between runs, and a call too many is an error.
    `calls_made`: of every step so far.
    """

    def __init__(
        self,
        plan: CachePlan,
        clear: Callable[[], None],
        owner: Any = None,
        call: str | None = None,
        *,
        timestep: int | str | None = None,
        strict: bool = False,
        calls: int | None = None,
    ) -> None:
        if (owner is None) != (call is None):
            raise ValueError("follow needs both the owner of the loop and the name of its call")
        if isinstance(owner, type):
            raise ValueError(f"follow takes the object that runs the loop, not its class {owner}")
        self.plan, self._clear, self._timestep = plan, clear, timestep
        self._owner, self._call = owner, call
        self._strict = strict or owner is not None
        self.branches: tuple[str, ...] = (*plan.branches, *EXTRA)[: calls or len(plan.branches)]
        self.forget()
        if owner is not None and call is not None:
            self._wrap(owner, call)

    def forget(self) -> None:
        """The next call starts a new video."""
        self._last: torch.Tensor | None = None
        self._step, self._direction = -1, 0
        self._used: list[str] = []  # branches of this step
        self._kept: dict[str, dict[int, torch.Tensor]] = {}  # what all calls of a branch were given
        self._again: set[str] = set()  # branches that had more than one call
        self.calls_made: list[int] = []

    def position(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, str]:
        """Step and branch of this call of the model."""
        t = self.timestep_of(args, kwargs)
        if t is not self._last:
            self._next_step(t)
        elif len(self._used) == len(self.branches):
            raise ValueError(
                f"{len(self._used) + 1} model calls with one timestep, but plan "
                f"{self.plan.name!r} is followed in {len(self.branches)} of them: call begin(step, "
                "branch) in the loop instead"
            )
        rest = args[1:] if args else list(kwargs.values())[1:]
        found = _tensors([rest, kwargs if args else ()])
        given = {id(tensor): tensor for tensor in found if tensor is not t}
        branch = self._branch_of(given)
        self._used.append(branch)
        self.calls_made[-1] += 1
        kept = self._kept.get(branch)
        if kept is not None:
            self._again.add(branch)
            given = {key: tensor for key, tensor in kept.items() if key in given}
        self._kept[branch] = given
        return self._step, branch

    def _branch_of(self, given: dict[int, torch.Tensor]) -> str:
        free = [branch for branch in self.branches if branch not in self._used]
        for branch in free:
            if self._kept.get(branch) and self._kept[branch].keys() <= given.keys():
                return branch
        # not one whose tensors stayed the same so far, and are others now
        unknown = [b for b in free if not (b in self._again and self._kept[b])]
        return (unknown or free)[0]

    def restore(self) -> None:
        """Give the owner its own call back."""
        if self._owner is None or self._call is None:
            return
        if vars(self._owner).get(self._call) is self._run:
            if self._had_own:
                setattr(self._owner, self._call, self._original)
            else:
                delattr(self._owner, self._call)
        self._owner = None

    def _next_step(self, t: torch.Tensor) -> None:
        step = self._step + 1
        turned = not self._strict and self._turned(t)
        self._refuse_tensor_per_call(t)
        if step >= self.plan.steps and self._strict:
            raise ValueError(
                f"model call number {step + 1} with a new timestep, but plan {self.plan.name!r} "
                f"has {self.plan.steps} steps; a loop that makes a new timestep tensor for every "
                "call cannot be followed: call begin(step, branch) in it instead"
            )
        if step >= self.plan.steps or turned:
            self._clear()  # a new video; this calls forget
            step = 0
        self._last, self._step, self._used = t, step, []
        self.calls_made.append(0)

    def _refuse_tensor_per_call(self, t: torch.Tensor) -> None:
        """Two branches, and the second call brings another tensor of the same value (CPU only)."""
        if self._last is None or len(self._used) > 1 or len(self.branches) == 1:
            return
        if t.device.type == "cpu" and torch.equal(t, self._last):
            raise ValueError(
                f"two calls in a row with different timestep tensors of value {t.tolist()}: a loop "
                "that makes a new timestep tensor for every call cannot be followed; call "
                "begin(step, branch) in it instead"
            )

    def _turned(self, t: torch.Tensor) -> bool:
        if self._last is None or t.device.type != "cpu":
            return False
        change = float(t.flatten()[0]) - float(self._last.flatten()[0])
        if change == 0:
            return False
        direction = 1 if change > 0 else -1
        if self._direction == 0:
            self._direction = direction
        return direction != self._direction

    def timestep_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """The timestep tensor of this call of the model; ValueError where there is none."""
        if isinstance(self._timestep, int):
            t = args[self._timestep] if len(args) > self._timestep else None
        elif self._timestep is not None:
            t = kwargs.get(self._timestep)
        else:
            named = (kwargs[name] for name in _TIMESTEPS if name in kwargs)
            t = next(named, args[1] if len(args) > 1 else None)
        if not isinstance(t, torch.Tensor):
            raise ValueError(
                f"follow found no timestep tensor in the model call (found {type(t).__name__}); "
                "it looks for a keyword t, timestep or timesteps, then the second argument: "
                "name another with follow(timestep=...)"
            )
        return t

    def _wrap(self, owner: Any, call: str) -> None:
        original = getattr(owner, call)
        if inspect.isgeneratorfunction(original) or inspect.iscoroutinefunction(original):
            raise ValueError(
                f"{call} runs on after it returns (a generator or coroutine): follow without an "
                "owner, and clear the cache when the loop ends"
            )
        self._original, self._had_own = original, call in vars(owner)

        @wraps(original)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._clear()
            try:
                self._check_steps(original, args, kwargs)
                return original(*args, **kwargs)
            finally:
                self._clear()

        self._run = run
        setattr(owner, call, run)

    def _check_steps(self, original: Callable, args: tuple, kwargs: dict) -> None:
        try:
            bound = inspect.signature(original).bind(*args, **kwargs)
        except TypeError:  # the call itself raises it
            return
        bound.apply_defaults()
        for name in _STEP_COUNTS:
            count = bound.arguments.get(name)
            if isinstance(count, int) and count != self.plan.steps:
                raise ValueError(
                    f"{name} is {count}, plan {self.plan.name!r} is made for {self.plan.steps} "
                    "steps: use as many, or take plan.regrid.regrid(plan, sigmas, ...)"
                )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and dicts; nothing else is looked into."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)

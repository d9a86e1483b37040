"""The user's model in one of the two trees, asked for as the tree's own command line would.

profiling_core can be installed alone, so nothing here imports a tree before it was found: next to
the package (a checkout), in the current folder, or the current folder itself. The tree's parser
gives the defaults and its checks the errors; this module only says which option is which.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from profiling_core.errors import CompareError, InputError
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import held_anchors
from profiling_core.runtime.terminal import MakeBar, printable, write_to

if TYPE_CHECKING:
    from profiling_core.engine.run_stats import RunStats
    from profiling_core.parallel.ranks import Ranks

LIBRARY_LOG = logging.getLogger("profiling_core")  # its level is that of --quiet, --verbose
PACKAGE = Path(__file__).resolve().parents[2]  # the folder that holds profiling_core
OUR_NAMES = {"--model-base": "--ckpt-dir", "--ckpt_dir": "--ckpt-dir", "--task": "--model"}


@dataclass(frozen=True)
class ModelRequest:
    """A model and the clips that it shall make; None: the tree's own default."""

    model: str | None = None
    ckpt_dir: str | None = None
    dit_weight: str | None = None
    size: str | None = None  # width*height
    frame_num: int | None = None
    steps: int | None = None
    solver: str | None = None
    shift: float | None = None
    guidance: float | None = None
    tree_options: tuple[str, ...] = ()  # further options of the tree's command line

    @classmethod
    def of(cls, given: Any, model: str | None, tree_options: Sequence[str] = ()) -> ModelRequest:
        """From an object whose fields are named like these, as parsed arguments or a job."""
        names = [one.name for one in fields(cls) if one.name not in ("model", "tree_options")]
        chosen = {name: getattr(given, name) for name in names}
        return cls(model=model, tree_options=tuple(tree_options), **chosen)


@dataclass(frozen=True)
class Pictures:
    """The files of the pictures that a clip begins and ends with; None: it has no such picture."""

    image: Path | None = None
    last_image: Path | None = None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.image, self.last_image) if path is not None]

    @property
    def names(self) -> str:
        return ", ".join(path.name for path in self.paths)

    @cached_property
    def sha256(self) -> str | None:
        """Of what the files hold, whatever their names; None without a picture."""
        content = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in self.paths)
        return hashlib.sha256(content).hexdigest() if content else None


NO_PICTURES = Pictures()


@dataclass(frozen=True)
class Sampling:
    """What fixes the noise levels of a run."""

    steps: int
    solver: str
    shift: float


@dataclass(frozen=True)
class Part:
    """A part of a checkpoint: its files, whether they are there or not, and how they are checked.

    The check reads names, shapes and types, no weights; InputError for the first that does not fit.
    """

    files: tuple[Path, ...]
    check: Callable[[], object]


class TreeModel(ABC):
    """A model that was asked for and checked; `load` reads its weights."""

    name: ClassVar[str]  # of the tree
    folder: ClassVar[str]
    marks: ClassVar[tuple[str, ...]]  # files that this tree has and the official repository lacks
    solvers: ClassVar[tuple[str, ...]]  # the default first
    miniature: ClassVar[str]  # the bundled model
    # of the tree's options: they shape no clip, or are the comparison's own
    not_settings: ClassVar[frozenset[str]] = frozenset({"delta_cache", "delta_profile", "prompt"})
    noise_device: str | None = None  # where noise is drawn; None: on the model's device
    # draw the steps of a run, or what makes the bar; None: where somebody looks
    progress: bool | MakeBar | None = None
    pipeline: Any = None
    config: Any

    def __init__(self, request: ModelRequest, prompt: str, *, incomplete: bool = False) -> None:
        """CompareError for what cannot work; `prompt` is one of those to come, checked for all.

        incomplete: files of the checkpoint may be missing, `check_files` finds out.
        """
        self.plans: list[CachePlan] = []  # those checked for this model
        import_tree(self)
        self._incomplete = incomplete
        script = self._checked_script()
        with self.as_user_error():
            parser = script.build_parser()
            given = parser.parse_args(list(request.tree_options))
            argv = [*request.tree_options, *self._argv(request, given), f"--prompt={prompt}"]
            self.args = parser.parse_args(argv)
            if (self.args.delta_cache or self.args.delta_profile) is not None:
                raise CompareError("--tree-options: plans are named in --plans, not there")
            self._check(script, request)

    def _checked_script(self) -> Any:
        """The module of the tree's command line; CompareError when a package is not installed."""
        try:
            _log_warnings_once()
            return self._script()
        except ModuleNotFoundError as error:
            raise CompareError(
                f"{self.folder} needs the package {error.name}: pip install -r requirements.txt"
            ) from None

    @property
    def settings(self) -> dict[str, Any]:
        """All that shapes a clip or its time, by the tree's own names."""
        kept = {k: v for k, v in vars(self.args).items() if k not in self.not_settings}
        return {k: str(v) if isinstance(v, Path) else v for k, v in kept.items()}

    @property
    def plan_model(self) -> str:
        return self.config.plan_model

    @classmethod
    @abstractmethod
    def models(cls) -> tuple[str, ...]:
        """The names of those that make clips."""

    @property
    def sizes(self) -> tuple[str, ...]:
        """width*height of the clips that this model is made for, the default first."""
        _, height, width = self.clip_shape
        return (f"{width}*{height}",)

    @property
    def pictures(self) -> tuple[str, ...]:
        """The fields of `Pictures` that every clip of this model needs."""
        return ()

    def read_pictures(self, given: Pictures) -> list[Any]:
        """What the files hold; CompareError for one that is missing, unreadable or not taken."""
        takes = " and ".join(self.pictures) or "no picture"
        for name in (one.name for one in fields(given)):
            path = getattr(given, name)
            if path is not None and name not in self.pictures:
                raise CompareError(
                    f"{name} {path}: {self.plan_model} takes {takes}: leave it out, or take a "
                    "model that does"
                )
            if path is None and name in self.pictures:
                raise CompareError(
                    f"{name} is missing: {self.plan_model} takes {takes} beside the prompt, name "
                    "the file"
                )
        return []

    @property
    def steps(self) -> int:
        return self.sampling.steps

    @property
    def last_run(self) -> RunStats:
        return self.pipeline.last_run

    @property
    def largest_plan(self) -> CachePlan | None:
        """The checked plan with the most anchors, whose bytes count when weights are loaded."""
        return max(self.plans, key=lambda plan: held_anchors(plan).deltas, default=None)

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip as it is kept, fp32."""
        frames, height, width = self.clip_shape
        return 3 * frames * height * width * 4

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @contextmanager
    def as_user_error(self) -> Iterator[None]:
        """The tree's errors for what a user can put right, in one line and our options' names."""
        try:
            yield
        except InputError as error:
            text = " ".join(str(error).split())
            for theirs, ours in OUR_NAMES.items():
                text = text.replace(f"{theirs} ", f"{ours} ")
            raise CompareError(text) from error

    @contextmanager
    def loaded(self, ranks: Ranks | None = None) -> Iterator[None]:
        """Inside, the weights are there, and a failed allocation is a user's error as well.

        A pipeline that the model has already is kept.
        """
        from profiling_core.runtime.memory import out_of_memory_as_input_error

        way_out = "take a smaller clip or a smaller model"
        memory = out_of_memory_as_input_error(self.device, self.describe(), way_out)
        with self.as_user_error(), memory:
            if self.pipeline is None:
                self.load(ranks)
            yield

    def plan(self, value: str | None) -> CachePlan | None:
        """The plan that `--delta_cache value` takes."""
        from profiling_core.runtime.options import resolve_plan  # here: it reads safetensors

        return resolve_plan(value, self.plan_model)

    def denoise(
        self,
        inputs: tuple[Any, ...],
        plan: CachePlan | None = None,
        *,
        steps: int | None = None,
        solver: str | None = None,
        shift: float | None = None,
        recorder: Any = None,
    ) -> Any:
        """A latent; `last_run` says what it took. recorder: gets the position of every call."""
        asked: dict[str, Any] = {"steps": steps, "solver": solver, "shift": shift}
        run = replace(self.sampling, **{k: v for k, v in asked.items() if v is not None})
        if run.solver not in self.solvers:
            known = ", ".join(self.solvers)
            raise CompareError(f"{self.folder} has no solver {run.solver}, it has {known}")
        fitted = None if plan is None else self._on_grid(plan, run)
        progress = draws_progress() if self.progress is None else self.progress
        options = {"plan": fitted, "recorder": recorder, "progress": progress}
        return self._denoise(inputs, run, options)

    @abstractmethod
    def _script(self) -> ModuleType:
        """The module of the tree's command line."""

    @abstractmethod
    def _argv(self, request: ModelRequest, given: Any) -> list[str]:
        """The tree's options for what was asked; `given`: its parsed further options."""

    @abstractmethod
    def _check(self, script: Any, request: ModelRequest) -> None:
        """The tree's own checks of `self.args`, and `self.config`."""

    @abstractmethod
    def check_files(self) -> None:
        """CompareError for the first file that a complete checkpoint would have."""

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """The parts of the checkpoint by name, whatever of them is there."""

    @abstractmethod
    def needed_bytes(self) -> dict[str, dict[str, int]]:
        """What the device holds by part, at each moment of a run with the largest checked plan."""

    @abstractmethod
    def memory_checks(self) -> dict[str, Callable[[], object]]:
        """InputError where memory does not suffice: as asked for, then by options for less."""

    @abstractmethod
    def attention_kernel(self) -> str:
        """What attention of the official models' width runs on in bf16, and what failed."""

    @property
    @abstractmethod
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height, width; pictures may ask for another aspect of the same area."""

    @property
    @abstractmethod
    def fps(self) -> int: ...

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """Steps, solver and shift of this model's runs."""

    @property
    @abstractmethod
    def guidance(self) -> float: ...

    @abstractmethod
    def sigmas(self, run: Sampling) -> tuple[float, ...]:
        """The noise levels of a run, as plans and profiles name them."""

    @abstractmethod
    def describe(self) -> str:
        """Model, size, steps and so on in one line."""

    def check_plan(self, plan: CachePlan) -> CachePlan:
        """The plan on this run's noise levels; PlanError when it is another model's."""
        with self.as_user_error():
            self.plans.append(self._checked_plan(plan))
        return self.plans[-1]

    @abstractmethod
    def _checked_plan(self, plan: CachePlan) -> CachePlan:
        """`check_plan` by the tree's own function."""

    @abstractmethod
    def _on_grid(self, plan: CachePlan, run: Sampling) -> CachePlan:
        """The plan on the noise levels of a run; PlanError when it cannot be put on them."""

    @property
    @abstractmethod
    def checkpoint_dir(self) -> Path:
        """The folder of the weights."""

    @property
    @abstractmethod
    def checkpoint(self) -> list[Path]:
        """The files that the weights are read from."""

    @abstractmethod
    def load(self, ranks: Ranks | None = None, *, fp32: bool = False) -> None:
        """Read the weights; ranks: the processes that share a clip, all of them load."""

    @abstractmethod
    def inputs(self, prompt: str, seed: int, pictures: Pictures = NO_PICTURES) -> tuple[Any, ...]:
        """The encoded prompt and the noise, drawn as the tree's command line draws it.

        Where there are pictures, what they are encoded to comes last.
        """

    @abstractmethod
    def _denoise(self, inputs: tuple[Any, ...], run: Sampling, options: dict[str, Any]) -> Any:
        """The pipeline's loop; options: plan, recorder and progress, by its names."""

    @abstractmethod
    def decode(self, latent: Any) -> Any:
        """Its clip (3, F, H, W), fp32 in [-1, 1] on the CPU; None on ranks after the first."""

    @abstractmethod
    def save(self, video: Any, path: Path) -> None:
        """Write the clip as the tree's command line does."""


def find_tree(tree: type[TreeModel] | TreeModel) -> Path:
    """The tree's folder; CompareError says where it was looked for."""
    here = Path.cwd()
    places = (PACKAGE / tree.folder, here / tree.folder, here)
    for place in places:
        if all((place / mark).is_file() for mark in tree.marks):
            return place
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise CompareError(
        f"the tree {tree.folder} (with {', '.join(tree.marks)}) is in none of {looked}: run this "
        "from a checkout of ProfilingDiT"
    )


def import_tree(tree: type[TreeModel] | TreeModel) -> None:
    """Make the tree importable, before anything else of its name."""
    place = str(find_tree(tree))
    if place not in sys.path:
        sys.path.insert(0, place)


def parse_size(size: str) -> tuple[int, int]:
    """'832*480' or '832x480' to (832, 480): width, height, on both trees."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})[x*]([1-9][0-9]{0,5})", size)
    if found is None:
        raise CompareError(f"--size {size}: expected width*height in pixels, as 832*480")
    return int(found[1]), int(found[2])


def draws_progress() -> bool:
    """Whether a run draws its steps: where somebody looks, unless errors alone are wanted."""
    return sys.stderr.isatty() and LIBRARY_LOG.isEnabledFor(logging.WARNING)


def _log_warnings_once() -> None:
    """The trees' log: warnings alone, each once, since every clip would repeat them."""
    from loguru import logger

    def log_once(line: str) -> None:
        if line not in (said := _said(sys.stderr)):
            said.add(line)
            write_to(sys.stderr, f"{printable(line.rstrip())}\n")

    logger.remove()
    logger.add(log_once, level=_log_level(), format="{level}: {message}")


@lru_cache(1)
def _said(stream: Any) -> set[str]:
    """What was logged to a stream, over all models of this process."""
    return set()


def _log_level() -> str:
    """Warnings by default, all with --verbose, errors alone with --quiet."""
    ours = LIBRARY_LOG.getEffectiveLevel()
    return "DEBUG" if ours <= logging.DEBUG else "WARNING" if ours <= logging.WARNING else "ERROR"

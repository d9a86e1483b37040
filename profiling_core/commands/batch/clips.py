"""Clips of a batch: what identifies one, and how a process makes it with a model kept loaded."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from operator import le
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiling_core.commands.batch.jobs import Job
from profiling_core.plan import CachePlan
from profiling_core.plan.cost import held_anchors
from profiling_core.runtime.options import resolve_plan
from profiling_core.runtime.terminal import MakeBar
from profiling_core.trees.registry import tree_class
from profiling_core.trees.tree_model import ModelRequest, TreeModel

if TYPE_CHECKING:
    from profiling_core.parallel.ranks import Ranks

VERSION = 1  # of what a clip's key is made from
PATHS = frozenset({"ckpt_dir", "model_base", "dit_weight"})  # the fingerprint says more
FULL = "full"


@dataclass(frozen=True)
class Clip:
    """A job that was checked. key: of everything that shapes the clip, weights included.

    pair: the same without the plan; model: what has to be loaded for it. The plan and whole paths
    are in it, so that a worker in another folder makes the same clip.
    """

    job: Job
    key: str
    pair: str
    model: str
    plan_label: str
    plan: CachePlan | None = None

    @property
    def stem(self) -> str:
        """The name of its files."""
        if self.job.name is not None:
            return self.job.name
        words = re.sub(r"[^A-Za-z0-9]+", "-", self.job.prompt)[:48].strip("-").lower()
        return f"{words or 'clip'}-{self.key[:12]}"

    @property
    def is_full(self) -> bool:
        return self.job.plan is None


@dataclass(frozen=True)
class Made:
    """What a worker says of a clip that it made."""

    seconds: float
    denoise_seconds: float
    decode_seconds: float
    block_runs: int
    block_runs_full: int
    model_calls: int
    bytes_held: int
    describe: str


class Checker:
    """Checks jobs and finds their keys, without reading weights; alike ones are looked at once."""

    def __init__(self) -> None:
        self._fingerprints: dict[tuple[str, ...], str] = {}
        self._models = cache(self._model)
        self._plans = cache(self._plan)

    def clip(self, job: Job) -> Clip:
        """PlanError for what cannot work: sizes, a plan that is not there or another model's."""
        model, facts, weights = self._models(job.tree, job.request)
        plan = self._plans(job.tree, job.request, job.plan)
        text, label = (None, FULL) if plan is None else (plan.dumps(), plan.name)
        model.read_pictures(job.pictures)
        facts = {**facts, "prompt": job.prompt, "seed": job.seed}
        if job.pictures.paths:
            facts["pictures"] = job.pictures.sha256
        pair = _sha256(facts)
        places = {"ckpt_dir": str(model.checkpoint_dir.absolute())}
        if job.dit_weight is not None:
            places["dit_weight"] = str(Path(job.dit_weight).absolute())
        job = job.model_copy(update=places)
        loaded = _sha256([job.tree, job.task, job.ckpt_dir, job.dit_weight, weights])
        return Clip(job, _sha256([pair, text]), pair, loaded, label, plan)

    def _model(self, tree: str, request: ModelRequest) -> tuple[TreeModel, dict[str, Any], str]:
        """The model, what shapes its clips, and the fingerprint of its weights."""
        model = tree_class(tree)(request, "a clip")
        settings = {k: v for k, v in model.settings.items() if k not in PATHS}
        weights = self._fingerprint(model.checkpoint)
        facts = {"version": VERSION, "tree": tree, "settings": settings, "weights": weights}
        return model, facts, weights

    def _plan(self, tree: str, request: ModelRequest, value: str | None) -> CachePlan | None:
        """A plan that fits the model."""
        if value is None:
            return None
        model = self._models(tree, request)[0]
        plan = resolve_plan(value, model.plan_model)
        model.check_plan(plan)
        return plan

    def _fingerprint(self, files: list[Path]) -> str:
        from profiling_core.parallel.launch import fingerprint

        names = tuple(map(str, files))
        if names not in self._fingerprints:
            self._fingerprints[names] = fingerprint(*files)
        return self._fingerprints[names]


class TreeMaker:
    """Makes clips with the models of the trees, the last one kept loaded; one per process."""

    def __init__(self) -> None:
        self._loaded: tuple[str, tuple[int, int], Any] | None = None
        self.ranks: Ranks | None = None

    def make(
        self,
        clip: Clip,
        write: Callable[[TreeModel, Any], None],
        *,
        begin: Callable[[str], None] = lambda part: None,
        bar: MakeBar | None = None,
    ) -> Made | None:
        """Make it and hand it to `write`; None on ranks after the first of a shared clip.

        begin: called with "loading", "encoding" and "decoding" before each; bar: shows the steps.
        """
        job = clip.job
        model = tree_class(job.tree)(job.request, job.prompt)
        start = time.perf_counter()
        model.plans += [] if clip.plan is None else [clip.plan]
        model.progress = bar
        size = self._take_over(clip, model)
        begin("loading")
        with model.loaded(self.ranks):
            self._loaded = clip.model, size, model.pipeline
            begin("encoding")
            inputs = model.inputs(job.prompt, job.seed, job.pictures)
            latent = model.denoise(inputs, clip.plan)
            run = model.last_run
            begin("decoding")
            decoding = time.perf_counter()
            video = model.decode(latent)
            end = time.perf_counter()
            if video is None:
                return None
            write(model, video)
        return Made(
            end - start,
            run.denoise_seconds,
            end - decoding,
            run.block_runs,
            run.block_runs_full,
            run.model_calls,
            run.peak_bytes,
            model.describe(),
        )

    def _take_over(self, clip: Clip, model: TreeModel) -> tuple[int, int]:
        """The pipeline of the clip before where its weights are the same and it had room for this.

        Memory is checked, and what leaves the GPU is decided, for a clip's size when weights are
        loaded: a larger clip, or a plan with more anchors, loads them anew. Returns the size that
        the pipeline is for: bytes of the clip, anchors of its plan.
        """
        plan = model.largest_plan
        size = model.clip_bytes, 0 if plan is None else held_anchors(plan).deltas
        if self._loaded is not None:
            weights, room, pipeline = self._loaded
            if weights == clip.model and all(map(le, size, room)):
                model.pipeline = pipeline
                return room
        self._loaded = None  # the old weights make room first
        return size


def row_of(clip: Clip, made: Made, **facts: Any) -> dict[str, Any]:
    """What is written beside a clip."""
    job = clip.job
    return {
        "key": clip.key,
        "name": clip.stem,
        "prompt": job.prompt,
        "pictures": job.pictures.names,
        "tree": job.tree,
        "seed": job.seed,
        "plan": clip.plan_label,
        **{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(made).items()},
        **facts,
    }


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()

"""Profile: the measurements of full runs of one model on one grid of noise levels.

A profile is one safetensors file: arrays, and in its header the key "profile" with JSON. It starts
as settings alone (`profiling-dit profile`) or with the first run; every further run of
the same model, grid and clip size adds a row to every array. The products, symmetric and many, are
packed in the file (packing.py).

Axes of the arrays: R runs, C branches, S steps, A attention steps, B blocks (the block lists of the
fingerprint one after the other), G = (f, h, w) tokens of the clip, V = C S + S + 1 vectors.

attention_share  (R, C, A, B)     R_attn, equation 6; NaN where the mask is empty
attention_chance (R, C, A, B)     what R_attn would be if high tokens lay anywhere: their share of
                                  the frames that hold foreground
attention_maps   (R, M, B, *g)    attention that tokens receive over its mean, first branch, M of
                                  the A steps, pooled to at most MAP_GRID (fp16)
mask             (R, *G)          share of the attention steps at which a token is foreground (fp16)
l1, l1_relative, cosine  (R, C, S-1)  consecutive predictions: mean |p_s - p_s-1|, that over
                                  mean |p_s-1|, and the cosine of the two
magnitude        (R, C, S-1)      MagCache's ratio: mean over tokens of |r_s| / |r_s-1|, where r is
                                  what all blocks together add to a token
drift, delta_cosine  (R, C, S-1, B)   |d_s - d_s-1| / |d_s-1| of a block's delta d, and the cosine
gram             (R, V, V)        mean products of: predictions of the first branch, then of the
                                  second, the latents before every step, the final latent
delta_gram.LIST  (C, B_l S, B_l S)    mean products of the list's block deltas, over tokens and
                                  runs; block b at step s has the index b S + s
block_seconds    (R, B)           mean seconds of a block's run, without attention steps
block_flops      (B,)             FLOPs of a block's run
sensitivity      (R, S)           error of the final latent over the error injected before step s;
                                  NaN where it was not measured
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    model_serializer,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from profiling_core.errors import ProfileError
from profiling_core.files import stand_in, write_whole
from profiling_core.plan.schema import Branch, Checked, ModelFingerprint, Sigma, first_mistake
from profiling_core.profile.packing import packed, unpacked

FORMAT: Literal[2] = 2
HEADER = "profile"
MAP_GRID = (9, 16, 16)  # most tokens of an attention map along frames, rows and columns
MOST_MAPS = 6
FLOAT64 = ("gram", "block_flops", "delta_gram")
FLOAT16 = ("attention_maps", "mask")
GAPS = ("attention_share", "attention_chance", "sensitivity", "block_seconds")  # NaN: not measured

GRID = ("steps", "sigmas", "solver", "shift")

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(Checked):
    """What is recorded and how; the same for all runs of a profile."""

    mask: Literal["pca", "sam2", "motion", "file"] = "pca"
    mask_source: str | None = None  # sam2: folder of the weights; file: the masks
    attention_every: Annotated[int, Field(ge=0)] = 5  # steps; 0 records no attention
    attention_queries: Annotated[int, Field(ge=2)] | None = None  # per head; None: by size
    high_share: Annotated[float, Field(gt=0, lt=1)] | None = 0.2  # of the tokens
    high_threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # x mean
    delta_tokens: Positive = 64  # tokens at which block deltas are compared
    sensitivity: tuple[Positive, ...] = ()  # steps


class Subject(Checked):
    """Model and sampling of all runs of a profile."""

    model: ModelFingerprint
    steps: Annotated[int, Field(ge=2)]
    sigmas: tuple[Sigma, ...]
    solver: str
    shift: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    branches: tuple[Branch, ...]
    latent: tuple[Positive, ...]  # (C, F, H, W)
    grid: tuple[Positive, Positive, Positive]  # tokens along frames, rows and columns
    attention_steps: tuple[Annotated[int, Field(ge=0)], ...]
    map_steps: tuple[Annotated[int, Field(ge=0)], ...]
    boundary: Sigma | None = None  # the noise level below which another model takes over

    @property
    def change(self) -> int | None:
        """The second model's first step; None where one model takes all steps."""
        if self.boundary is None:
            return None
        first = sum(sigma >= self.boundary for sigma in self.sigmas)
        return first if 0 < first < self.steps else None

    @model_serializer(mode="wrap")
    def _without_none(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the boundary of one model: plans name profiles by the hash of this text."""
        document = plain(self)
        return {k: v for k, v in document.items() if k != "boundary" or v is not None}

    @field_serializer("model")
    def _as_in_format_1(self, model: ModelFingerprint) -> dict[str, Any]:
        """With a key that is always empty: plans name profiles by the hash of this text."""
        return {**model.model_dump(mode="json"), "block_cost": {}}

    @property
    def plan_fields(self) -> dict[str, Any]:
        """Model and sampling as arguments of `CachePlan.build`."""
        return {name: getattr(self, name) for name in ("model", *GRID)}


class Run(Checked):
    prompt: str
    seed: int | None
    guidance: float | None
    device: str
    dtype: str
    torch: str
    seconds: Seconds  # of the denoising loop while recording
    model_seconds: Seconds | None  # of a model call without attention, on average
    attention_rows: int | None = None  # sampled (head, query) rows of a block; None: all
    attention_error: float | None = None  # then: relative standard error of a token's attention
    foreground: float | None = None  # share of the tokens
    made_by: str


class _Header(Checked):
    format: Literal[2]
    settings: Settings
    subject: Subject | None
    runs: tuple[Run, ...]
    sha256: str | None = None  # of the rest and of the arrays; older files have none

    def digest(self, arrays: Mapping[str, np.ndarray]) -> str:
        """The hash of this header and the arrays as they are written."""
        digest = hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode())
        for name, array in sorted(arrays.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Profile:
    """Runs of one model on one grid; arrays as in the module's docstring.

    Without runs it holds the settings alone: `subject` is None and `arrays` empty.
    """

    settings: Settings = field(default_factory=Settings)
    subject: Subject | None = None
    runs: tuple[Run, ...] = ()
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def blocks(self) -> list[tuple[str, int]]:
        """Block list and number of every block, in the order of axis B."""
        lists = self.recorded.model.block_lists
        return [(name, block) for name, count in lists.items() for block in range(count)]

    @property
    def recorded(self) -> Subject:
        """What the runs share; ProfileError without a run."""
        if self.subject is None:
            raise ProfileError(
                "the profile holds settings and no run yet: record one with --delta_profile"
            )
        return self.subject

    @property
    def has_attention(self) -> bool:
        return "attention_share" in self.arrays

    @property
    def origin(self) -> str:
        """The profile in a plan's provenance."""
        return f"a profile of {len(self.runs)} runs"

    def sha256(self) -> str:
        """Hash of settings, runs and arrays; a plan's provenance holds it."""
        return self._header().digest(packed(self.arrays))

    def plus(self, other: Profile) -> Profile:
        """Both profiles' runs in one; ProfileError names the first thing that differs."""
        if other.subject is None:
            return self
        if self.subject is None:
            self._check_same("settings", self.settings, other.settings)
            return other
        self.check_subject(other.subject)
        self._check_same("settings", self.settings, other.settings)
        ours, theirs = len(self.runs), len(other.runs)
        arrays = {}
        for name, array in self.arrays.items():
            added = other.arrays[name]
            if name.startswith("delta_gram."):
                arrays[name] = (ours * array + theirs * added) / (ours + theirs)
            else:
                arrays[name] = np.concatenate([array, added]) if _per_run(name) else array
        return replace(self, runs=self.runs + other.runs, arrays=arrays)

    def of_runs(self, runs: Sequence[int]) -> Profile:
        """The runs with these numbers; products of block deltas stay the mean of all."""
        own = {
            name: array[list(runs)] if _per_run(name) else array
            for name, array in self.arrays.items()
        }
        return replace(self, runs=tuple(self.runs[run] for run in runs), arrays=own)

    def check_subject(self, other: Subject) -> None:
        """ProfileError when runs of `other` cannot be added to this profile."""
        if self.subject is None:
            return
        same = ("model", "steps", "solver", "shift", "branches", "latent", "grid", "boundary")
        for name in same:
            self._check_same(name, getattr(self.subject, name), getattr(other, name))
        if not np.allclose(self.subject.sigmas, other.sigmas, rtol=0, atol=1e-5):
            at = int(np.argmax(np.abs(np.subtract(self.subject.sigmas, other.sigmas))))
            self._check_same(f"sigma of step {at}", self.subject.sigmas[at], other.sigmas[at])

    def _check_same(self, what: str, ours: Any, theirs: Any) -> None:
        if ours != theirs:
            raise ProfileError(
                f"the profile has {what} {_short(ours)}, this run {_short(theirs)}: "
                "record into another file"
            )

    def last_run_line(self) -> str:
        """The newest run's results in one line for a log."""
        run, parts = self.runs[-1], [f"recorded {self.recorded.steps} steps"]
        if self.has_attention:
            share = float(np.nanmean(self.arrays["attention_share"][-1]))
            parts += [
                f"{run.foreground:.0%} of the tokens are foreground by {self.settings.mask}",
                f"{share:.0%} of them get high attention in the average block",
            ]
        change = self.arrays["l1_relative"][-1]
        parts.append(f"predictions change by {change.min():.1%} to {change.max():.1%} a step")
        return ", ".join(parts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read and check a profile; ProfileError when it is missing, damaged or no profile."""
        path = Path(path)
        if not path.is_file():
            what = "not a regular file" if path.exists() else "no such file"
            raise ProfileError(f"profile {path}: {what}")
        try:
            with safe_open(path, framework="numpy") as file:
                text = (file.metadata() or {}).get(HEADER)
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            raise ProfileError(
                f"profile {path}: not a whole safetensors file ({error}): record it again"
            ) from None
        if text is None:
            raise ProfileError(f"profile {path}: a safetensors file, but not of a profile")
        arrays.pop("empty", None)
        try:
            header = _Header.model_validate_json(text)
            found = None if header.sha256 is None else header.digest(arrays)
            arrays = unpacked(arrays)
        except ValidationError as error:
            raise ProfileError(f"profile {path}: {first_mistake(error)}") from None
        except (KeyError, ValueError) as error:
            raise ProfileError(f"profile {path}: {error}: record it again") from None
        profile = cls(header.settings, header.subject, header.runs, arrays)
        profile._check_arrays(path)
        if found != header.sha256:
            raise ProfileError(
                f"profile {path}: its numbers are not those that were written (checksum "
                f"{str(found)[:12]}, expected {str(header.sha256)[:12]}): record it again"
            )
        return profile

    def save(self, path: str | os.PathLike[str]) -> None:
        arrays = {n: np.ascontiguousarray(a) for n, a in packed(self.arrays).items()}
        header = self._header()
        header = header.model_copy(update={"sha256": header.digest(arrays)})
        content = save(arrays or {"empty": np.zeros(1)}, {HEADER: header.model_dump_json()})
        write_whole(Path(path), content)

    def _header(self) -> _Header:
        return _Header(format=FORMAT, settings=self.settings, subject=self.subject, runs=self.runs)

    def _check_arrays(self, path: Path) -> None:
        if self.subject is None:
            return
        for name, shape in self._shapes().items():
            found = self.arrays.get(name)
            if found is None or found.shape != shape:
                has = "missing" if found is None else f"of shape {found.shape}"
                raise ProfileError(f"profile {path}: array {name} is {has}, expected {shape}")
        for name, array in self.arrays.items():
            bad = np.isinf(array) if name in GAPS else ~np.isfinite(array)
            if bad.any():
                place = tuple(map(int, np.argwhere(bad)[0]))
                raise ProfileError(
                    f"profile {path}: array {name} holds {array[place]} at {place}, expected "
                    "finite numbers: record it again"
                )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays that every profile with runs holds."""
        subject = self.recorded
        runs, branches, steps = len(self.runs), len(subject.branches), subject.steps
        blocks, pairs = len(self.blocks), (len(subject.branches), subject.steps - 1)
        vectors = branches * steps + steps + 1
        shapes: dict[str, tuple[int, ...]]
        shapes = dict.fromkeys(("l1", "l1_relative", "cosine", "magnitude"), (runs, *pairs))
        shapes |= dict.fromkeys(("drift", "delta_cosine"), (runs, *pairs, blocks))
        shapes |= {
            "gram": (runs, vectors, vectors),
            "block_seconds": (runs, blocks),
            "block_flops": (blocks,),
            "sensitivity": (runs, steps),
        }
        for name, count in subject.model.block_lists.items():
            shapes[f"delta_gram.{name}"] = (branches, count * steps, count * steps)
        if subject.attention_steps:
            measured = (runs, branches, len(subject.attention_steps), blocks)
            shapes |= dict.fromkeys(("attention_share", "attention_chance"), measured)
            shapes["mask"] = (runs, *subject.grid)
            pooled = tuple(min(n, most) for n, most in zip(subject.grid, MAP_GRID, strict=True))
            shapes["attention_maps"] = (runs, len(subject.map_steps), blocks, *pooled)
        return shapes


def add_runs(path: str | os.PathLike[str], recorded: Profile) -> Profile:
    """Add the runs of `recorded` to the file, or make it and its folder; returns the whole profile.

    Writers wait for each other, so that no run is lost. ProfileError, with the file unchanged, when
    the runs do not fit or cannot be written; they are then kept elsewhere, and it says where.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            whole = Profile.load(path).plus(recorded) if path.exists() else recorded
            whole.save(path)
    except (ProfileError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ProfileError(f"profile {path}: {reason}; {_rescued(recorded, path)}") from error
    return whole


def _rescued(recorded: Profile, path: Path) -> str:
    """Keep a run that its file did not take among the temporary files; says where."""
    place = Path(tempfile.gettempdir()) / f"{path.name[:100]}-{time.time_ns()}"
    try:
        recorded.save(place)
    except OSError:
        return "this run's recording could not be kept elsewhere either"
    return f"this run's recording is kept alone in {place}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time in this folder, on file systems that can lock."""
    try:
        import fcntl
    except ImportError:  # not on this system, where the rename alone protects the file
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _per_run(name: str) -> bool:
    """Whether the array has one row per run."""
    return name != "block_flops" and not name.startswith("delta_gram.")


def _short(value: Any) -> str:
    text = value.name if isinstance(value, ModelFingerprint) else str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def holds_profile(path: str | Path) -> bool:
    """A safetensors file begins with the length of its header in 8 bytes, the upper ones zero; a
    plan is text and has no zero byte.
    """
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return b"\0" in file.read(8)


def load_profile(path: str | Path) -> Profile:
    """Profile.load with an error of its own for text files such as plans."""
    if os.path.isfile(path) and not holds_profile(path):
        what = "is no safetensors file, a plan perhaps; expected what --delta_profile recorded"
        raise ProfileError(f"profile {path} {stand_in(Path(path)) or what}")
    return Profile.load(path)

"""CachePlan: what is computed and what is reused, for every step, branch and site. No torch.

A plan is data: JSON on disk, frozen models in memory. Loading checks everything that can be known
without the model; the model itself is checked by `check_model` and again when a cache is attached.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from profiling_core.errors import PlanError
from profiling_core.plan.checks import check_combination, check_expected, check_grid, check_sites
from profiling_core.plan.cost import Expected, expected_cost, summary_lines
from profiling_core.plan.regrid import carry_over
from profiling_core.plan.schema import Checked, first_mistake

FORMAT = 1
BRANCHES = ("cond", "uncond")
LARGEST_FILE = 16 * 2**20  # bytes; a plan of 1,000 steps is below one megabyte
MOST_STEPS = 10_000

Branch = Literal["cond", "uncond"]
Storage = Literal["stream", "bfloat16"]
StoragePlace = Literal["device", "host"]
Step = Annotated[int, Field(ge=0, lt=MOST_STEPS)]
Sigma = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Steps = tuple[Step, ...]
Forecast = tuple[tuple[int, float], ...]  # (anchor step, weight), newest anchor first


class ModelFingerprint(Checked):
    """The model a plan is for; compared with the real one at attach."""

    family: str  # "wan2.1", "hunyuan-video"
    name: str  # "wan2.1-t2v-14B"
    block_lists: Annotated[dict[str, Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1)]
    width: Annotated[int, Field(ge=1)]

    @model_validator(mode="before")
    @classmethod
    def _without_block_cost(cls, given: Any) -> Any:
        """Files written before version 0.2 hold this key; it was always empty."""
        if not isinstance(given, dict) or "block_cost" not in given:
            return given
        if given["block_cost"] != {}:
            raise ValueError(
                f"block_cost {json.dumps(given['block_cost'])[:60]}: every block counts the same; "
                "leave the key out"
            )
        return {key: value for key, value in given.items() if key != "block_cost"}


class Site(Checked):
    """What prediction and intervals share: compute steps per branch, and how the others are met."""

    compute_steps: dict[Branch, Steps]
    weights: dict[Branch, dict[str, tuple[Finite, ...]]] | None = None

    @model_validator(mode="after")
    def _weights_belong_to_reuse_steps(self) -> Site:
        if (self.weights is not None) != (self.skip == "weights"):
            raise ValueError("'weights' go with skip 'weights', and only with it")
        for branch, per_step in (self.weights or {}).items():
            if branch not in self.compute_steps:
                raise ValueError(f"weights for branch {branch!r} without its compute_steps")
            for step, weights in per_step.items():
                if not re.fullmatch(r"0|[1-9][0-9]{0,4}", step):
                    raise ValueError(f"weights.{branch}: {step!r} is not a step number")
                if not 1 <= len(weights) <= 3:
                    raise ValueError(f"weights.{branch}.{step}: give 1 to 3, newest anchor first")
        return self


class PredictionSite(Site):
    """The model's whole prediction: on a reuse step the model is not run at all."""

    kind: Literal["prediction"]
    skip: Literal["hold", "linear", "weights", "corrected", "jump"]
    # what Euler is given at compute steps: weights of the new prediction, then of anchors before it
    given: dict[Branch, dict[str, tuple[Finite, ...]]] | None = None


class IntervalSite(Site):
    """Runs of consecutive blocks of one list, reused together; [first, last] are inclusive."""

    kind: Literal["intervals"]
    block_list: str
    intervals: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...]
    skip: Literal["hold", "linear", "weights"]

    @model_validator(mode="after")
    def _intervals_are_sorted(self) -> IntervalSite:
        if not self.intervals:
            raise ValueError("no intervals: leave the site out instead")
        for first, last in self.intervals:
            if last < first:
                raise ValueError(f"interval [{first}, {last}] ends before it starts")
        for (_, end), (start, _) in pairwise(self.intervals):
            if start <= end:
                raise ValueError(f"intervals must be sorted and apart: {start} follows {end}")
        return self

    @property
    def blocks(self) -> int:
        """Number of blocks in all intervals together."""
        return sum(last - first + 1 for first, last in self.intervals)


class Provenance(Checked):
    """How the plan was made."""

    made_by: str
    source: str
    profile_sha256: str | None = None
    settings: dict[str, str | int | Finite | bool | None] = Field({})


class CachePlan(Checked):
    """Sites, compute steps and forecast weights for one model and one grid of noise levels."""

    format: Literal[1]
    name: str
    model: ModelFingerprint
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    sigmas: tuple[Sigma, ...]
    solver: str
    shift: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    storage: Storage = "stream"
    storage_place: StoragePlace = "device"
    sites: tuple[Annotated[PredictionSite | IntervalSite, Field(discriminator="kind")], ...]
    provenance: Provenance
    expected: Expected | None = None
    notes: Annotated[tuple[str, ...], Field(exclude=True)] = ()  # what a carry-over has to say

    @model_validator(mode="after")
    def _consistent(self) -> CachePlan:
        check_grid(self)
        check_sites(self)
        check_combination(self)
        check_expected(self)
        return self

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """The guidance branches this plan knows, in the order of the calls."""
        named = self.sites[0].compute_steps if self.sites else BRANCHES
        return tuple(branch for branch in BRANCHES if branch in named)

    @property
    def prediction(self) -> PredictionSite | None:
        return next((site for site in self.sites if site.kind == "prediction"), None)

    @property
    def interval_sites(self) -> tuple[IntervalSite, ...]:
        return tuple(site for site in self.sites if site.kind == "intervals")

    @property
    def jumps(self) -> bool:
        """Does the solver itself step over the skipped noise levels?"""
        return self.prediction is not None and self.prediction.skip == "jump"

    @property
    def solver_steps(self) -> tuple[int, ...]:
        """The steps that the solver visits: all, or the computed ones of a plan that jumps."""
        if self.prediction is not None and self.jumps:
            return self.prediction.compute_steps[self.branches[0]]
        return tuple(range(self.steps))

    @property
    def label(self) -> str:
        """Its name and a hash of all that it says."""
        return f"{self.name} (sha256 {hashlib.sha256(self.dumps().encode()).hexdigest()[:12]})"

    def computes(self, site: Site, branch: str) -> frozenset[int]:
        """Steps at which `site` really runs: its own, where the prediction is computed."""
        own = frozenset(site.compute_steps[branch])
        prediction = self.prediction
        if prediction is None or site is prediction:
            return own
        return own & frozenset(prediction.compute_steps[branch])

    def forecasts(self, site: Site, branch: str) -> dict[int, Forecast]:
        """For every reuse step of `site`: the anchors that are summed and their weights."""
        if site.skip == "jump":
            return {}
        computed = self.computes(site, branch)
        visited = self.computes(self.prediction, branch) if self.prediction else None
        anchors: list[int] = []
        found: dict[int, Forecast] = {}
        for step in range(self.steps):
            if step in computed:
                anchors.append(step)
            elif site is self.prediction or visited is None or step in visited:
                found[step] = self._forecast(site, branch, step, anchors)
        return found

    def _forecast(self, site: Site, branch: str, step: int, anchors: list[int]) -> Forecast:
        if site.skip == "weights":
            weights = site.weights[branch][str(step)]
            return tuple(zip(reversed(anchors[-len(weights) :]), weights, strict=True))
        return self.line(step, anchors[-1:] if site.skip == "hold" else anchors)

    def line(self, step: int, anchors: Sequence[int]) -> Forecast:
        """The line in sigma through the last two anchors, at `step`; one alone is held."""
        if len(anchors) == 1:
            return ((anchors[-1], 1.0),)
        older, newest = anchors[-2:]
        slope = (self.sigmas[step] - self.sigmas[newest]) / (
            self.sigmas[newest] - self.sigmas[older]
        )
        return ((newest, 1.0 + slope), (older, -slope))

    def corrections(self, branch: str) -> dict[int, Forecast]:
        """Where skip is "corrected": what the solver is given at a compute step n after a skip.

        A site with `given` says it itself; otherwise:
        The forecasts f_s of the skipped steps were drawn from the anchors before; now that v_n is
        known, the line from v_j to v_n says better what they stood for. The difference, c = sum of
        (sigma_s+1 - sigma_s) (line_s - f_s), is put into the prediction, v_n + c / (sigma_n+1 -
        sigma_n), so that Euler's own step adds it to the latent: a trapezium where there was an
        extrapolation. The step itself comes first, then its anchors with their weights.
        """
        site = self.prediction
        if site is not None and site.given is not None:
            return self._given(site, branch)
        if site is None or site.skip != "corrected":
            return {}
        levels, computed = (*self.sigmas, 0.0), site.compute_steps[branch]
        forecasts, found = self.forecasts(site, branch), {}
        for j, n in pairwise(computed):
            if n == j + 1:
                continue
            weights = {n: 0.0, j: 0.0}
            for s in range(j + 1, n):
                step = levels[s + 1] - levels[s]
                there = (levels[s] - levels[j]) / (levels[n] - levels[j])
                weights[n] += step * there
                weights[j] += step * (1.0 - there)
                for anchor, weight in forecasts[s]:
                    weights[anchor] = weights.get(anchor, 0.0) - step * weight
            own = levels[n + 1] - levels[n]
            found[n] = tuple((k, (k == n) + change / own) for k, change in weights.items())
        return found

    def _given(self, site: PredictionSite, branch: str) -> dict[int, Forecast]:
        """The site's own weights with the steps that they belong to."""
        computed, found = site.compute_steps[branch], {}
        for step, weights in site.given[branch].items():
            last = computed.index(int(step)) + 1
            anchors = reversed(computed[last - len(weights) : last])
            found[int(step)] = tuple(zip(anchors, weights, strict=True))
        return found

    def check_model(self, block_lists: dict[str, int], width: int | None = None) -> None:
        """Refuse a model whose block counts or hidden width differ from the plan's."""
        for name, planned in self.model.block_lists.items():
            found = block_lists.get(name)
            if found != planned:
                has = "none" if found is None else found
                raise PlanError(
                    f"plan {self.name!r} for {self.model.name} has {planned} {name}, this model "
                    f"{has}: take a plan that was made for this model"
                )
        if width is not None and width != self.model.width:
            raise PlanError(
                f"plan {self.name!r} for {self.model.name} has hidden width {self.model.width}, "
                f"this model {width}: take a plan that was made for this model"
            )

    def at(self, sigmas: tuple[float, ...], *, solver: str, shift: float) -> CachePlan:
        """This plan on another grid of noise levels; `carry_over` says what is kept."""
        return carry_over(self, tuple(float(s) for s in sigmas), solver=solver, shift=shift)

    def summary_lines(self, **sizes: int) -> list[str]:
        """What the plan computes, costs and holds; see `cost.summary_lines` for the sizes."""
        return summary_lines(self, **sizes)

    @classmethod
    def build(cls, **fields: Any) -> CachePlan:
        """A checked plan from Python values, its expected cost filled in."""
        error = fields.pop("predicted_error", None)
        plan = cls.from_dict({"format": FORMAT, **_plain(fields)})
        expected = expected_cost(plan, predicted_error=error)
        return plan.model_copy(update={"expected": expected})

    @classmethod
    def from_dict(cls, document: Any, source: str = "plan") -> CachePlan:
        """A checked plan from decoded JSON; PlanError names the place of the first mistake."""
        if not isinstance(document, dict):
            raise PlanError(f"{source}: expected a JSON object, found {type(document).__name__}")
        if document.get("format") != FORMAT or isinstance(document.get("format"), bool):
            raise PlanError(
                f"{source}: plan format {document.get('format')!r} is not known here; "
                f"this version reads format {FORMAT}"
            )
        if "notes" in document:
            raise PlanError(f"{source}: notes: unknown key")
        try:
            return cls.model_validate_json(json.dumps(document))
        except ValidationError as error:
            raise PlanError(f"{source}: {first_mistake(error)}") from None

    @classmethod
    def loads(cls, text: str | bytes, source: str = "plan") -> CachePlan:
        """A checked plan from JSON text."""
        if isinstance(text, bytes) and 0 in text[:8] and text[8:9] == b"{":  # safetensors
            raise PlanError(
                f"{source}: this is no plan but a profile; make a plan from it with "
                "`profiling-dit plan --profile FILE -o plan.json`"
            )
        try:
            document = json.loads(
                text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant
            )
        except RecursionError:
            raise PlanError(f"{source}: not a plan: nested too deeply") from None
        except ValueError as error:  # JSONDecodeError, UnicodeDecodeError and ours are ValueErrors
            raise PlanError(f"{source}: not JSON: {error}") from None
        return cls.from_dict(document, source)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CachePlan:
        """Read and check a plan file; PlanError when it is missing, unreadable or wrong."""
        path = Path(path)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise PlanError(f"plan file {path}: not a regular file")
            if status.st_size > LARGEST_FILE:
                raise PlanError(f"plan file {path}: {status.st_size} bytes is too large for a plan")
            text = path.read_bytes()
        except OSError as error:
            raise PlanError(f"plan file {path}: {error.strerror or error}") from None
        return cls.loads(text, f"plan file {path}")

    def dumps(self) -> str:
        """JSON text: one key a line, number lists on one line, so that two plans diff well."""
        document = self.model_dump(mode="json", exclude_none=True)
        document["sites"] = [{"kind": site.pop("kind"), **site} for site in document["sites"]]
        return _short_lists(json.dumps(document, indent=1, ensure_ascii=False)) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan atomically: a temporary file in the same folder, then a rename."""
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.dumps())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _plain(value: Any) -> Any:
    """Python values as JSON would hold them (models, tuples and integer keys resolved)."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _short_lists(text: str) -> str:
    """Lists of numbers, and lists of such lists, on one line each.

    The patterns need a line break, which JSON strings never hold: texts stay as they are.
    """
    number = r"[\d.,eE+\s-]"
    for pattern in (rf"\[\n{number}*\]", rf"\[\n(?:\s*\[{number}*\],?)+\s*\]"):
        text = re.sub(pattern, lambda m: "[" + re.sub(r"\s+", " ", m[0][1:-1]).strip() + "]", text)
    return text


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that a plan may hold")

"""What a plan file holds: strict frozen models, checked key by key. No torch.

`PlanDocument` is the whole file; `plan.CachePlan` adds the checks between its parts.
"""

from __future__ import annotations

import json
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from profiling_core.errors import PlanError

FORMAT = 1
MOST_STEPS = 10_000

Branch = Literal["cond", "uncond"]
BRANCHES: tuple[Branch, ...] = ("cond", "uncond")
Storage = Literal["stream", "bfloat16"]
StoragePlace = Literal["device", "host"]
Step = Annotated[int, Field(ge=0, lt=MOST_STEPS)]
Sigma = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Steps = tuple[Step, ...]
Forecast = tuple[tuple[int, float], ...]  # (anchor step, weight), newest anchor first


class Checked(BaseModel):
    """Unknown keys are refused, values are not coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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


class _SiteSteps(Checked):
    """What prediction and intervals share: compute steps per branch, and how the others are met."""

    compute_steps: dict[Branch, Steps]

    @field_validator("skip", mode="before", check_fields=False)
    @classmethod
    def _no_forecast_weights(cls, skip: Any) -> Any:
        """Files written before version 0.2 may hold this mode."""
        if skip == "weights":
            raise ValueError("'weights' was removed in version 0.2: search a new plan")
        return skip


class PredictionSite(_SiteSteps):
    """The model's whole prediction: on a reuse step the model is not run at all."""

    kind: Literal["prediction"]
    skip: Literal["hold", "linear", "corrected", "jump"]
    # of a jump, by compute steps: what the solver adds to its latents, search.fitted_jump
    solver_weights: dict[str, tuple[Finite, Finite, Finite]] | None = None


class IntervalSite(_SiteSteps):
    """Runs of consecutive blocks of one list, reused together; [first, last] are inclusive."""

    kind: Literal["intervals"]
    block_list: str
    intervals: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...]
    skip: Literal["hold", "linear"]

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


Site = PredictionSite | IntervalSite


class Provenance(Checked):
    """How the plan was made."""

    made_by: str
    source: str
    profile_sha256: str | None = None
    settings: dict[str, str | int | Finite | bool | None] = Field({})


class Expected(Checked):
    """The cost that a plan file states; recomputed and compared on load."""

    block_runs: int
    block_runs_full: int
    speedup_flops: float
    anchors: str
    predicted_error: Annotated[float, Field(allow_inf_nan=False)] | None = None


class PlanDocument(Checked):
    """Sites and compute steps for one model and one grid of noise levels."""

    format: Literal[1]
    name: str
    model: ModelFingerprint
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    sigmas: tuple[Sigma, ...]
    end: Sigma | None = None  # level that the last step leads to; None: the clean latent
    solver: str
    shift: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    storage: Storage = "stream"
    storage_place: StoragePlace = "device"
    sites: tuple[Annotated[Site, Field(discriminator="kind")], ...]
    provenance: Provenance
    expected: Expected | None = None
    notes: Annotated[
        tuple[str, ...], Field(exclude=True)
    ] = ()  # for the log: what regridding changed

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
    def solver_weights(self) -> tuple[tuple[float, float, float], ...]:
        """What a fitted jump adds to the solver's latents, by `solver_steps`; () for others."""
        site = self.prediction
        if site is None or site.solver_weights is None:
            return ()
        return tuple(site.solver_weights[str(step)] for step in self.solver_steps)

    @property
    def predicted_error(self) -> float | None:
        """Relative error of the final latent as the search predicted it; None where unknown."""
        return self.expected.predicted_error if self.expected else None

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


def first_mistake(error: ValidationError) -> str:
    """Place and reason of the first mistake, in one line."""
    mistakes = error.errors(include_url=False, include_input=True)
    first = mistakes[0]
    place = ""
    for part in first["loc"]:
        if part in ("prediction", "intervals") and place.endswith("]") and len(place) < 12:
            continue  # the discriminator's tag is no key of the file
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif first["type"] == "missing":
        message = "missing"
    elif first["type"] not in ("value_error",):
        message += f", found {str(first['input'])[:60]!r}"
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"

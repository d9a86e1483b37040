"""Files of other engines, as schemas of ours: the steps at which the model runs, for each engine.

Written from what each reads: SGLang's DPCache at commit b9810f5f, cache-dit 1.5.3, LightX2V at
f8aee98b, diffusers 0.42.1 (MagCacheConfig). Each fills the other steps as it does anyway.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isclose
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from profiling_core.errors import PlanError
from profiling_core.plan import schedule
from profiling_core.plan.schema import Checked, Finite, Steps, first_mistake

Count = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Format = TypeVar("Format", bound=Checked)


class SglangRequest(Checked):
    """What SGLang compares with a request before it takes a schedule: all of it must be equal."""

    pipeline: str
    checkpoint: str
    num_inference_steps: Annotated[int, Field(ge=2)]
    height: Count
    width: Count
    guidance_scale: Finite
    do_classifier_free_guidance: bool
    quality: str
    attention_backend: str | None
    dtype: Literal["bfloat16"]
    scheduler: str
    scheduler_config_sha256: str
    timesteps: tuple[Finite, ...]
    sigmas: tuple[Finite, ...]  # the level of each step, and where the last step ends

    @model_validator(mode="after")
    def _lengths(self) -> SglangRequest:
        steps = self.num_inference_steps
        for name, wanted in (("timesteps", steps), ("sigmas", steps + 1)):
            if len(getattr(self, name)) != wanted:
                raise ValueError(f"{len(getattr(self, name))} {name}, expected {wanted}")
        return self


class SglangPredictor(Checked):
    """A line by step number through the outputs of the blocks at the last two full steps."""

    name: Literal["final-feature-linear-extrapolation"] = "final-feature-linear-extrapolation"
    order: Literal[1] = 1
    arithmetic: Literal["feature-dtype-elementwise-v1"] = "feature-dtype-elementwise-v1"


class SglangCalibration(Checked):
    """Where a schedule comes from; further keys are free."""

    model_config = ConfigDict(extra="allow")

    manifest_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    num_samples: Annotated[int, Field(ge=0)]


class SglangSchedule(Checked):
    """A schedule of SGLang's DPCache."""

    schema_id: Literal["sglang-dpcache-schedule-v2"] = Field(alias="schema")
    schedule_method: str = ""
    predictor: SglangPredictor
    objective: Literal["pact-mean-abs-final-feature-predicted-steps-only-v1"]
    source_commit: Annotated[str, Field(min_length=1)]
    request: SglangRequest
    mandatory_full_steps: Annotated[Steps, Field(min_length=2)]
    force_last_full: bool
    max_gap: Count | None
    num_full_steps: int
    full_steps: Steps
    calibrated_cost: Finite
    calibration: SglangCalibration

    @model_validator(mode="after")
    def _steps(self) -> SglangSchedule:
        schedule.explicit(self.request.num_inference_steps, self.full_steps)
        first = self.mandatory_full_steps
        if first != tuple(range(len(first))) or self.full_steps[: len(first)] != first:
            raise ValueError(
                f"mandatory_full_steps {list(first)}: expected 0, 1 and so on, and full_steps that "
                f"begin with them, found {list(self.full_steps)[:60]}"
            )
        if self.num_full_steps != len(self.full_steps):
            raise ValueError(
                f"num_full_steps is {self.num_full_steps}, full_steps has {len(self.full_steps)}"
            )
        return self


class CacheDitConfig(Checked):
    """The mask of a config of cache-dit; the other keys say how it fills the steps between."""

    model_config = ConfigDict(extra="ignore")

    steps_computation_mask: tuple[int, ...]


class CacheDitFile(Checked):
    """A file for cache-dit's `load_configs`, as JSON."""

    model_config = ConfigDict(extra="ignore")

    cache_config: CacheDitConfig


class LightX2VLists(Checked):
    """The lists of LightX2V's schedulers: does a step compute? The second one is uncond's."""

    caching_records: tuple[bool, ...]
    caching_records_2: Annotated[tuple[bool, ...], Field(min_length=1)] | None = None


class MagCacheFile(Checked):
    """The fields of diffusers' MagCacheConfig; the paper's K is `max_skip_steps`."""

    mag_ratios: dict[Literal["cond", "uncond", "both"], tuple[Ratio, ...]]
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_skip_steps: Annotated[int, Field(ge=0)]
    retention_ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    num_inference_steps: int | None = None
    calibrate: Literal[False] = False


def checked(schema: type[Format], document: Any) -> Format:
    """The document by its schema; PlanError names the place of the first mistake."""
    try:
        return schema.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise PlanError(first_mistake(error)) from None


def check_levels(request: SglangRequest, sigmas: Sequence[float]) -> None:
    """PlanError unless SGLang's request has these noise levels."""
    if request.num_inference_steps != len(sigmas):
        raise PlanError(
            f"num_inference_steps is {request.num_inference_steps}, the run has {len(sigmas)}"
        )
    for step, (theirs, ours) in enumerate(zip(request.sigmas, sigmas, strict=False)):
        if not isclose(theirs, ours, rel_tol=1e-3):
            raise PlanError(
                f"sigmas[{step}] is {theirs:.4f}, of the run {ours:.4f}: another shift or solver"
            )

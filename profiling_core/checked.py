"""What the parts of a plan are made of: strict frozen models, and the error of a bad plan."""

from pydantic import BaseModel, ConfigDict


class PlanError(ValueError):
    """A plan that cannot be used, with the place and the way out."""


class Checked(BaseModel):
    """Unknown keys are refused, values are not coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

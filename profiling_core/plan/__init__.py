"""What is decided: plans as data, their checks, costs and presets. No torch."""

from profiling_core.errors import PlanError
from profiling_core.plan.plan import CachePlan

__all__ = ["CachePlan", "PlanError"]

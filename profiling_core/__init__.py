"""Plan and run feature caching for video diffusion transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiling_core.engine.delta_cache import DeltaCache
    from profiling_core.loops.diffusers_cache import cache_pipeline
    from profiling_core.loops.diffusers_profile import profile_pipeline
    from profiling_core.loops.official_repos import hunyuan_run, wan_run
    from profiling_core.plan import CachePlan
    from profiling_core.search.search import Budget, PlanSearch

    __version__: str

__all__ = [
    "Budget",
    "CachePlan",
    "DeltaCache",
    "PlanSearch",
    "__version__",
    "cache_pipeline",
    "hunyuan_run",
    "profile_pipeline",
    "wan_run",
]

MODULES = {
    "Budget": "search.search",
    "CachePlan": "plan",
    "DeltaCache": "engine.delta_cache",
    "PlanSearch": "search.search",
    "cache_pipeline": "loops.diffusers_cache",
    "hunyuan_run": "loops.official_repos",
    "profile_pipeline": "loops.diffusers_profile",
    "wan_run": "loops.official_repos",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for: plans need no torch, the version nothing."""
    if name == "__version__":
        from profiling_core.files import installed_version

        return installed_version()
    if name in MODULES:
        return getattr(import_module(f"profiling_core.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

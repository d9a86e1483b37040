"""Plan and run feature caching for video diffusion transformers."""

from typing import Any

__all__ = ["cache_pipeline", "profile_pipeline"]


def __getattr__(name: str) -> Any:
    """The calls for diffusers pipelines; fetched when asked for, since plans need no torch."""
    if name == "cache_pipeline":
        from profiling_core.loops.diffusers_cache import cache_pipeline

        return cache_pipeline
    if name == "profile_pipeline":
        from profiling_core.loops.diffusers_profile import profile_pipeline

        return profile_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

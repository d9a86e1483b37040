"""The name under which patched checkouts of the official repositories import their calls."""

from profiling_core.loops.official_repos import hunyuan_run, wan_run

__all__ = ["hunyuan_run", "wan_run"]

"""The name under which patched checkouts of the official repositories import their calls."""

from profiling_core.loops.official_repos import check_options, check_used, hunyuan_run, wan_run

__all__ = ["check_options", "check_used", "hunyuan_run", "wan_run"]

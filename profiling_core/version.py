"""The version of the package."""

from importlib import metadata


def installed_version() -> str:
    """The version of the installed distribution; a checkout on the path alone has none."""
    try:
        return metadata.version("profiling-dit")
    except metadata.PackageNotFoundError:
        return "0+unknown"

"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Returns the version of the installed distribution, or a marker where it is not installed."""
    try:
        return version("convserve")
    except PackageNotFoundError:
        return "0+source"

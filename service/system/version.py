"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    try:
        return version("convserve")
    except PackageNotFoundError:
        return "0+source"  # runs from a checkout without an installed package

"""Finds out whether `contract` is ours, as `convserve.neighbours` does, which is not imported here.

Imports nothing but the standard library, so that it can speak before somebody else's package does.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

EXIT_FOREIGN_PACKAGE: Final = 3
_HOME: Final = Path(__file__).resolve().parents[2]


def complaint() -> str | None:
    """Returns what is wrong with `contract`, which is looked up and not imported, or None."""
    spec = find_spec("contract")
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found is not None and found.parent == _HOME / "contract":
        return None
    return (
        f"convserve-train is {_HOME / 'training'}, but Python finds another package 'contract': "
        f"{found or 'none at all'}; PYTHONPATH, the working directory and other installed "
        "distributions may bring one"
    )

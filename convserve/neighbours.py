"""Finds out whether `service` and `contract` are ours: their names are anybody's (decisions/0027).

Imports nothing but the standard library, so that it can speak before somebody else's package does.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

EXIT_FOREIGN_PACKAGE: Final = 3
_HOME: Final = Path(__file__).resolve().parents[1]


def complaint(*names: str) -> str | None:
    """Returns what is wrong with the first package that is not beside this one, or None.

    Args:
        names: of top-level packages; they are looked up, not imported.
    """
    for name in names:
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or found.parent != _HOME / name:
            return (
                f"convserve is {_HOME / 'convserve'}, but Python finds another package "
                f"{name!r}: {found or 'none at all'}; PYTHONPATH, the working directory and other "
                "installed distributions may bring one"
            )
    return None

"""Checks that `service` and `contract` are ours: other distributions may use these names, too.

See docs/decisions/0027. Imports only the standard library, so that it can report a foreign package
before that package is imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

EXIT_FOREIGN_PACKAGE: Final = 3
_HOME: Final = Path(__file__).resolve().parents[1]


def complaint(*names: str) -> str | None:
    """Returns an error message for the first package that is not next to this one, or None.

    The packages are looked up, not imported.
    """
    for name in names:
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or found.parent != _HOME / name:
            return (
                f"convserve is in {_HOME / 'convserve'}, but Python finds another package "
                f"{name!r}: {found or 'none at all'}. Check PYTHONPATH, the working directory and the "
                "installed distributions."
            )
    return None

"""Checks that `contract` is the package that belongs to this installation.

Imports only the standard library, so that it runs before another package named `contract` can fail.
`convserve.neighbours` does the same for the service; training does not import it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

EXIT_FOREIGN_PACKAGE: Final = 3
_HOME: Final = Path(__file__).resolve().parents[2]


def foreign_contract() -> str | None:
    """Returns an error message if Python would import another `contract`, or None."""
    spec = find_spec("contract")  # looks it up without importing it
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found is not None and found.parent == _HOME / "contract":
        return None
    return (
        f"convserve-train runs from {_HOME / 'training'}, but Python finds another package 'contract': "
        f"{found or 'none at all'}; check PYTHONPATH, the working directory and the other installed "
        "distributions"
    )

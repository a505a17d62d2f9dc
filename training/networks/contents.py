"""Says what a file is that has the name of a network or of weights and the content of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_STARTS: Final = (
    (
        (b"version https://git-lfs",),
        "a pointer of Git LFS, not the file itself; run git lfs pull where it was cloned",
    ),
    (
        (b"<!doctype html", b"<html"),
        "a web page; download the file that it is about",
    ),
)


def describe_other_content(path: Path) -> str | None:
    """Returns what a file is that a failed download or clone leaves; None for all others."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lower()
    except OSError:  # whoever reads the file says so
        return None
    if not start:
        return "empty"
    return next((text for starts, text in _STARTS if start.startswith(starts)), None)

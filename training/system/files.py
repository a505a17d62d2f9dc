"""Atomic file writes: after a crash a file is complete or absent, never half written."""

from __future__ import annotations

import os
from pathlib import Path

from contract.repository.writing import flush_folder


def write_whole(path: Path, data: bytes) -> None:
    """Writes a hidden file, flushes it to disk and renames it. Creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

    temporary.replace(path)
    flush_folder(path.parent)

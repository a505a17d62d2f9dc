"""Files that are replaced completely or not at all, by one writer at a time."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process holds the folder's lock, and holds it.

    Raises:
        OSError: the folder is missing or cannot be opened.
    """
    # The lock is on the folder, so it leaves no file behind.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace_file(path: Path, text: bytes) -> None:
    """Writes a file atomically; one that exists keeps its permissions and, for root, its owner.

    Raises:
        OSError: it cannot be written; the old content stays.
    """
    before = path.stat() if path.exists() else None
    mode = before.st_mode & 0o777 if before else 0o644
    with _temporary(path, text, mode) as temporary:
        if before is not None:
            with suppress(PermissionError):  # a file of root's could be unreadable to the service
                os.chown(temporary, before.st_uid, before.st_gid)
        temporary.replace(path)
    flush_folder(path.parent)


def create_file(path: Path, text: bytes) -> bool:
    """Writes a new file atomically; returns False if there is a file of this name.

    Raises:
        OSError: it cannot be written.
    """
    # A hard link would need no lock, but many network file systems have none.
    with locked(path.parent), _temporary(path, text, 0o644) as temporary:
        if path.exists():
            return False
        temporary.replace(path)
        flush_folder(path.parent)
    return True


def flush_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(path: Path, text: bytes, mode: int) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name.strip('.')}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        yield Path(name)
    finally:
        with suppress(OSError):
            Path(name).unlink()

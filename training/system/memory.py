"""The size of the memory, and a setting of malloc for training."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Final

# mallopt(3) of glibc: parameters of <malloc.h>.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_NEVER: Final = 2**31 - 1  # the largest int, in bytes

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_UNKNOWN_BYTES: Final = 4 * 2**30  # assumed where the system does not say


def memory_bytes(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """Returns the memory of the machine, or the container's limit if that is lower."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not POSIX
        machine = _UNKNOWN_BYTES

    try:
        return min(machine, int(cgroup_limit.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no container, or "max"
        return machine


def reuse_freed_memory() -> bool:
    """Makes glibc keep large freed blocks instead of returning them to the system.

    A network's feature maps are large blocks, and otherwise each step waits for new, zeroed pages. The
    forward pass of EfficientNet-Lite0's lower half took 14.0 ms per 224 px picture before and 7.9 ms
    after (batches of 32, 2 cores, single runs). A whole training step hardly changed.

    Returns:
        False without glibc, where nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False

    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))

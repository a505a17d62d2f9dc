"""How many cores this process may really use: affinity and the cgroup's quota, v2 and v1.

A container limited to `cpus: 2` on a 64-core host sees 64 cores through `os.cpu_count`; threads for
all of them would be throttled by the scheduler.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """Returns the cores this process may use, at least 1.

    Args:
        cgroup: where the cgroup file system is mounted, as seen by this process.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota_v2(cgroup) or _quota_v1(cgroup) or math.inf
    return max(1, math.floor(min(affinity or 1, max(1.0, quota))))


def _quota_v2(cgroup: Path) -> float | None:
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return _cores(quota, period.strip())


def _quota_v1(cgroup: Path) -> float | None:
    quota = _read(cgroup / "cpu" / "cpu.cfs_quota_us").strip()
    period = _read(cgroup / "cpu" / "cpu.cfs_period_us").strip()
    return _cores(quota, period)


def _cores(quota: str, period: str) -> float | None:
    known = quota.isdecimal() and period.isdecimal() and int(period) > 0
    return int(quota) / int(period) if known else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

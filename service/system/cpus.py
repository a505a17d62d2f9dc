"""Counts the CPU cores that this process can use: affinity and the cgroup quota, v1 and v2.

`os.cpu_count` is wrong in a container. With `cpus: 2` on a 64-core host it returns 64, and the kernel
would throttle 64 threads.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota_v2(cgroup) or _quota_v1(cgroup) or math.inf
    # Rounds down: a thread for a fraction of a core would be throttled.
    return max(1, math.floor(min(affinity or 1, max(1.0, quota))))


def _quota_v2(cgroup: Path) -> float | None:
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return _cores(quota, period.strip())


def _quota_v1(cgroup: Path) -> float | None:
    quota = _read(cgroup / "cpu" / "cpu.cfs_quota_us").strip()
    period = _read(cgroup / "cpu" / "cpu.cfs_period_us").strip()
    return _cores(quota, period)


def _cores(quota: str, period: str) -> float | None:
    # A quota can be "max" (v2) or -1 (v1): no limit.
    known = quota.isdecimal() and period.isdecimal() and int(period) > 0
    return int(quota) / int(period) if known else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

"""Memory and CPU time of the service, of its worker processes and of its container.

Everything is read from /proc and the cgroup, v1 or v2, whenever metrics are collected.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _MemoryFiles:
    """Where a version of cgroups says how much memory a container may use and uses."""

    limit: str
    used: str
    statistics: str
    file_pages: tuple[str, ...]  # lines of the statistics


_VERSIONS = (
    _MemoryFiles("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    _MemoryFiles(
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
)


class UsageCollector(Collector):
    """Memory and its limit, and the workers' part of memory and CPU time."""

    def __init__(
        self, worker_pids: Callable[[], Iterable[int]], proc: Path = _PROC, cgroup: Path = _CGROUP
    ) -> None:
        """`worker_pids` returns the ids of the present worker processes."""
        self._worker_pids = worker_pids
        self._proc = proc
        self._cgroup = cgroup

    def collect(self) -> Iterable[Metric]:
        pids = list(self._worker_pids())
        workers_bytes = sum(resident_bytes(pid, self._proc) for pid in pids)

        used_bytes: float = resident_bytes(os.getpid(), self._proc) + workers_bytes
        limit_bytes = machine_bytes(self._proc)
        container = container_memory(self._cgroup)
        if container is not None and container[1] < limit_bytes:  # v1 has 2^63 for no limit
            used_bytes, limit_bytes = container

        yield GaugeMetricFamily(
            "convserve_memory_used_bytes",
            "Memory that counts towards the limit: of the container without file pages, or without "
            "a container's limit, resident memory of the service and its workers.",
            used_bytes,
        )
        yield GaugeMetricFamily(
            "convserve_memory_limit_bytes",
            "The container's memory limit, or without one, the machine's memory.",
            limit_bytes,
        )
        yield GaugeMetricFamily(
            "convserve_workers_resident_memory_bytes",
            "Resident memory of the worker processes together.",
            workers_bytes,
        )
        ended = os.times()
        yield CounterMetricFamily(
            "convserve_workers_cpu_seconds",
            "CPU seconds of the worker processes, also of those that have ended.",
            ended.children_user
            + ended.children_system
            + sum(cpu_seconds(pid, self._proc) for pid in pids),
        )


def resident_bytes(pid: int, proc: Path = _PROC) -> int:
    """Returns the resident memory of a process; 0 on systems without /proc."""
    return _resident_pages(pid, proc)[0] * os.sysconf("SC_PAGE_SIZE")


def private_bytes(pid: int, proc: Path = _PROC) -> int:
    """Returns the resident memory of a process without pages of files; 0 on systems without /proc."""
    resident, of_files = _resident_pages(pid, proc)
    return (resident - of_files) * os.sysconf("SC_PAGE_SIZE")


def _resident_pages(pid: int, proc: Path) -> tuple[int, int]:
    # All of them, and those that belong to files or shared memory.
    try:
        fields = (proc / str(pid) / "statm").read_text(encoding="ascii").split()
        return int(fields[1]), int(fields[2])
    except (OSError, ValueError, IndexError):
        return 0, 0


def cpu_seconds(pid: int, proc: Path = _PROC) -> float:
    """Returns the processor time that a process has had; 0 on systems without /proc."""
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        # After the name in parentheses, which may itself contain some, from the third field on.
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def container_memory(cgroup: Path = _CGROUP) -> tuple[int, int] | None:
    """Returns the bytes in use and the limit of the container; None without a limit.

    File pages do not count as used: the kernel drops them before it ends a process.
    """
    for files in _VERSIONS:
        limit, used = _read(cgroup / files.limit).strip(), _read(cgroup / files.used).strip()
        if not limit.isdecimal() or not used.isdecimal():  # v2 has "max" for no limit
            continue
        statistics = (line.split() for line in _read(cgroup / files.statistics).splitlines())
        droppable = sum(int(value) for name, value in statistics if name in files.file_pages)
        return max(0, int(used) - droppable), int(limit)
    return None


def machine_bytes(proc: Path = _PROC) -> float:
    """Returns the memory of the machine; inf on systems without /proc."""
    return _machine_fact("MemTotal:", proc)


def available_bytes(proc: Path = _PROC, cgroup: Path = _CGROUP) -> float:
    """Returns the memory that processes can still take here, in the container and on the machine."""
    machine = _machine_fact("MemAvailable:", proc)
    container = container_memory(cgroup)
    return machine if container is None else min(machine, max(0, container[1] - container[0]))


def _machine_fact(name: str, proc: Path) -> float:
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith(name):
            return 1024.0 * int(line.split()[1])
    return math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

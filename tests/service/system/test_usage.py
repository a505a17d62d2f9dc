from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from service.system.usage import (
    UsageCollector,
    available_bytes,
    container_memory,
    machine_bytes,
    private_bytes,
    resident_bytes,
)

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")

# Files of a cgroup, and the memory that they show: bytes in use, limit.
CGROUPS: dict[str, tuple[dict[str, str], tuple[int, int] | None]] = {
    "v2": (
        {
            "memory.max": "1000\n",
            "memory.current": "800\n",
            "memory.stat": "anon 500\ninactive_file 200\nactive_file 50\nfile 260\n",
        },
        (550, 1000),
    ),
    "v1": (
        {
            "memory/memory.limit_in_bytes": "1000\n",
            "memory/memory.usage_in_bytes": "800\n",
            "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 50",
        },
        (550, 1000),
    ),
    "v2_without_limit": ({"memory.max": "max\n", "memory.current": "800\n"}, None),
    "v2_root": ({"memory.stat": "inactive_file 200\n"}, None),
    "no_statistics": ({"memory.max": "1000\n", "memory.current": "800\n"}, (800, 1000)),
    "more_pages_than_bytes": (
        {"memory.max": "9", "memory.current": "3", "memory.stat": "active_file 4"},
        (0, 9),
    ),
    "no_cgroup": ({}, None),
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="ascii")
    return folder


def collected(collector: UsageCollector) -> dict[str, float]:
    return {
        sample.name: sample.value for metric in collector.collect() for sample in metric.samples
    }


@pytest.mark.parametrize(("files", "memory"), CGROUPS.values(), ids=CGROUPS.keys())
def test_container_memory_is_read_from_either_version(tmp_path, files, memory):
    assert container_memory(write(tmp_path, files)) == memory


def test_resident_bytes_reads_the_memory_of_the_process(tmp_path):
    files = {"7/statm": "100 7 3 1 0 9 0\n", "8/statm": "x", "9/statm": ""}
    write(tmp_path, files)

    found = [resident_bytes(pid, tmp_path) for pid in (7, 8, 9, 10)]

    assert found == [7 * PAGE_BYTES, 0, 0, 0]
    if Path("/proc/self/statm").exists():
        assert resident_bytes(os.getpid()) > 1_000_000


@pytest.mark.parametrize(
    ("files", "expected"),
    [({"meminfo": "MemTotal:   4 kB\nMemFree: 1 kB\n"}, 4096), ({}, math.inf)],
    ids=["linux", "elsewhere"],
)
def test_machine_bytes_is_all_memory(tmp_path, files, expected):
    assert machine_bytes(write(tmp_path, files)) == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1000", (800, 1000)), (str(2**63 - 4096), (9 * PAGE_BYTES, 2**40)), ("", None)],
    ids=["limited", "unlimited", "no_container"],
)
def test_usage_is_the_containers_only_if_that_is_limited(tmp_path, limit, expected):
    proc = write(
        tmp_path / "proc",
        {
            "meminfo": f"MemTotal: {2**30} kB\n",
            f"{os.getpid()}/statm": "9 7 0\n",
            "50/statm": "9 2 0\n",
        },
    )
    cgroup = {"memory.max": limit, "memory.current": "800"} if limit else {}

    found = collected(UsageCollector(lambda: [50], proc, write(tmp_path / "cgroup", cgroup)))

    memory = found["convserve_memory_used_bytes"], found["convserve_memory_limit_bytes"]
    assert memory == (expected or (9 * PAGE_BYTES, 2**40))
    assert found["convserve_workers_resident_memory_bytes"] == 2 * PAGE_BYTES


def test_usage_of_workers_adds_living_and_ended_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "times", lambda: os.times_result((50.0, 60.0, 0.5, 0.25, 99.0)))
    write(tmp_path, {"7/stat": f"7 (a) b) S {'0 ' * 10}{3 * TICKS} {TICKS} 9", "8/stat": "8 (x) S"})

    found = collected(UsageCollector(lambda: [7, 8, 9], tmp_path, tmp_path))

    assert found["convserve_workers_cpu_seconds_total"] == 3 + 1 + 0.75


def test_private_bytes_leave_out_pages_of_files(tmp_path):
    write(tmp_path, {"7/statm": "900 50 20 5 0 123 0\n"})

    assert private_bytes(7, tmp_path) == 30 * PAGE_BYTES
    assert resident_bytes(7, tmp_path) == 50 * PAGE_BYTES


def test_private_bytes_of_this_process_are_part_of_the_resident_ones():
    assert 0 < private_bytes(os.getpid()) <= resident_bytes(os.getpid())


def test_private_bytes_without_proc_are_zero(tmp_path):
    assert private_bytes(os.getpid(), tmp_path) == 0


@pytest.mark.parametrize(
    ("available_kb", "cgroup", "expected"),
    [
        (4, {}, 4096),
        (4, {"memory.max": "1000", "memory.current": "800"}, 200),
        (4, {"memory.max": "1000", "memory.current": "1100"}, 0),
        (4, {"memory.max": "9000", "memory.current": "800"}, 4096),
        (None, {"memory.max": "1000", "memory.current": "800"}, 200),
        (None, {}, math.inf),
    ],
    ids=["machine", "container", "full_container", "small_machine", "no_meminfo", "unknown"],
)
def test_available_bytes_are_those_of_the_container_or_the_machine(
    tmp_path, available_kb, cgroup, expected
):
    lines = {} if available_kb is None else {"meminfo": f"MemAvailable: {available_kb} kB\n"}
    write(tmp_path / "proc", lines)
    write(tmp_path / "cgroup", cgroup)

    assert available_bytes(tmp_path / "proc", tmp_path / "cgroup") == expected

"""What the numbers were measured on: cores, instructions, memory, kernel, Python."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Final

_INSTRUCTIONS: Final = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8")


def describe() -> dict[str, Any]:
    """Returns the machine in words and numbers, without its name."""
    info = Path("/proc/cpuinfo").read_text()
    fields = {}
    for line in info.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cache": fields.get("cache size", ""),
        "memory_mb": memory_kb // 1024,
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }

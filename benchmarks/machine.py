"""Describes the machine of a measurement: cores, instructions, memory, kernel, Python."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Final

# The instruction sets that decide how fast onnxruntime's int8 and fp32 kernels are.
_INSTRUCTIONS: Final = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8")


def describe() -> dict[str, Any]:
    # Records are published, so the host's name stays out.
    info = Path("/proc/cpuinfo").read_text()
    fields = {}
    for line in info.splitlines():
        name, _, value = line.partition(":")
        # The cores' entries follow each other; the last one stays.
        fields[name.strip()] = value.strip()

    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    flags = set(fields.get("flags", "").split())

    return {
        "cpu": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),  # those this process may use, not those there are
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "cache": fields.get("cache size", ""),
        "memory_mb": memory_kb // 1024,
        "kernel": platform.release().split("-")[0],  # without the distribution's suffix
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }

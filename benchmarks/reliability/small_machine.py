"""Runs the service's image with little memory and one core, and sends it mixed pictures.

    docker build --target service -t convserve .
    python benchmarks/reliability/small_machine.py convserve --photos FOLDER --memory-mb 512 256

Starts a container for each size and kind of lane. Measures the time from the start of the process to the
first 200 of `/readyz` (median of 5 starts, one container each). Then 8 clients post 1,000 photographs of
all sizes, other formats and broken files. Prints the answers, the highest memory use of the container,
whether the kernel killed a process, and the CPU time. Exits with 1 if a container of 512 MB or more lost a
process, or answered anything but 200, 4xx or 503.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Self

# Run as a script, this file has its own folder on the path, not the repository.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.photos import default_folder
from benchmarks.processes import free_port
from benchmarks.reliability.mixed import Clients, get_status, mixed_pictures

_PROMISED_MB = 512
_MB = 1 << 20
_READY_LIMIT_S = 60.0


def docker(*arguments: str) -> str:
    command = ["docker", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


class Container:
    """A running service with limits on memory and CPU."""

    def __init__(self, image: str, memory_mb: int, cpus: float, workers: int) -> None:
        self.port = free_port()
        self._name = docker(
            *("run", "--detach", "--memory", f"{memory_mb}m", "--memory-swap", f"{memory_mb}m"),
            *("--cpus", str(cpus), "--read-only", "--tmpfs", "/tmp:size=16m"),  # noqa: S108
            *("--publish", f"127.0.0.1:{self.port}:8000", image),
            *("serve", "--provider", "cpu", "--workers", str(workers)),
        ).strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        docker("rm", "--force", self._name)

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(docker("inspect", self._name))[0]["State"]
        return state

    def wait_ready(self) -> float | None:
        """Returns the seconds from the start of the process to the first 200, None if it ended."""
        end_s = time.monotonic() + _READY_LIMIT_S
        while time.monotonic() < end_s:
            if get_status(self.port, "/readyz") == 200:
                ready_s = time.time()
                return ready_s - datetime.fromisoformat(self.state["StartedAt"]).timestamp()
            time.sleep(0.01)
            if not self.state["Running"]:
                break
        return None

    def figures(self) -> dict[str, float]:
        """Returns peak_mb, anonymous_mb, cpu_s and kills from the container's cgroup, v1 or v2."""
        return {
            # With the page cache, which the kernel gives back when memory is short.
            "peak_mb": self._number("memory.peak", "memory/memory.max_usage_in_bytes") / _MB,
            "anonymous_mb": self._number(
                "memory.stat", "memory/memory.stat", keys=("anon", "total_rss")
            )
            / _MB,
            "cpu_s": self._number("cpu.stat", keys=("usage_usec",)) / 1e6
            or self._number("cpuacct/cpuacct.usage") / 1e9,
            "kills": self._number("memory.events", "memory/memory.oom_control", keys=("oom_kill",)),
        }

    def _number(self, *files: str, keys: tuple[str, ...] = ()) -> float:
        # The number in the first of these files that exists, or behind the first of the keys.
        paths = " ".join(f"/sys/fs/cgroup/{file}" for file in files)
        text = docker("exec", self._name, "sh", "-c", f"cat {paths} 2>/dev/null || true")
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            if name in (keys or ("",)):
                return float(value)
        return 0.0


def measure(asked: argparse.Namespace, memory_mb: int, workers: int, pictures: list[bytes]) -> bool:
    """Prints a row of the table; returns whether the container kept what is promised."""
    starts_s = []
    for _ in range(asked.starts):
        with Container(asked.image, memory_mb, asked.cpus, workers) as container:
            starts_s.append(container.wait_ready() or math.inf)

    with Container(asked.image, memory_mb, asked.cpus, workers) as container:
        lanes = f"`--workers {workers}`" if workers else "threads"
        if container.wait_ready() is None:
            print(f"| {memory_mb} | {lanes} | does not start | | | | | |", flush=True)
            return False
        before = container.figures()
        clients = Clients(container.port, pictures, asked.clients, repeat=False)
        clients.wait()
        state = container.state
        killed = bool(state["OOMKilled"]) or not state["Running"]
        after = container.figures() if state["Running"] else dict.fromkeys(before, math.nan)

    answers = ", ".join(f"{n} x {status}" for status, n in sorted(clients.statuses.items()))
    kills = "the service" if killed else f"{after['kills']:.0f}"
    print(
        f"| {memory_mb} | {lanes} | {statistics.median(starts_s):.2f} ({min(starts_s):.2f} to"
        f" {max(starts_s):.2f}) | {answers} | {before['anonymous_mb']:.0f} |"
        f" {after['peak_mb']:.0f} | {kills} |"
        f" {(after['cpu_s'] - before['cpu_s']) * 1e3 / len(pictures):.2f} |",
        flush=True,
    )
    expected = all(status in (200, 503) or 400 <= status < 500 for status in clients.statuses)
    return expected and not killed and not after["kills"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", help="image of the service")
    parser.add_argument("--photos", type=Path, default=default_folder())
    parser.add_argument("--memory-mb", type=int, nargs="+", default=[_PROMISED_MB])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cpus", type=float, default=1.0)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--starts", type=int, default=5)
    asked = parser.parse_args()

    pictures = mixed_pictures(asked.photos, asked.requests)
    print(
        "| MB | lanes | start to ready, s | answers | MB at start | peak MB | kills | CPU ms a request |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    kept = [
        measure(asked, memory_mb, workers, pictures) or memory_mb < _PROMISED_MB
        for memory_mb in asked.memory_mb
        for workers in asked.workers
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())

"""CPU time, context switches and system calls of single threads, from /proc and from strace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_ATTACH_S: Final = 0.5

LOOP, LANES, LOG, OTHERS = "event loop", "lanes", "log writer", "others"
ROLES: Final = (LOOP, LANES, LOG, OTHERS)


@dataclass(frozen=True, slots=True)
class ThreadUse:
    """What a thread has used since it started, or in a span of time."""

    cpu_s: float = 0.0
    voluntary: int = 0  # context switches: it waited for something
    involuntary: int = 0  # the kernel gave its core to another thread

    def __add__(self, other: ThreadUse) -> ThreadUse:
        return ThreadUse(
            self.cpu_s + other.cpu_s,
            self.voluntary + other.voluntary,
            self.involuntary + other.involuntary,
        )

    def __sub__(self, other: ThreadUse) -> ThreadUse:
        return self + ThreadUse(-other.cpu_s, -other.voluntary, -other.involuntary)


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of a server."""

    pid: int
    tid: int
    name: str

    def role(self, root: int) -> str:
        """Returns what the thread does in the server whose first process is `root`."""
        # A child process is a lane with all of its threads.
        if self.pid != root or self.name.startswith("lane"):
            return LANES
        if self.tid == root:  # its name is the program's
            return LOOP
        # logging's listener is "Thread-1 (_monitor)", of which the kernel keeps 15 bytes.
        return LOG if "(_mon" in self.name else OTHERS


def parse_cpu_s(stat: str) -> float:
    """Returns user and system time from /proc/<pid>/task/<tid>/stat; a tick is usually 10 ms."""
    # The name in parentheses may itself hold spaces and parentheses.
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def parse_switches(status: str) -> tuple[int, int]:
    """Returns the voluntary and involuntary context switches from /proc/<pid>/task/<tid>/status."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["voluntary_ctxt_switches"]), int(fields["nonvoluntary_ctxt_switches"])


def parse_calls(summary: str) -> dict[str, int]:
    """Returns the number of calls by name from the table that `strace -c` writes."""
    calls = {}
    for line in summary.splitlines():
        fields = line.split()
        # Share, seconds, microseconds a call, calls, errors (often empty), name.
        if len(fields) >= 5 and fields[0][0].isdigit() and fields[-1] != "total":
            calls[fields[-1]] = int(fields[3])
    return calls


def read_threads(pids: Iterable[int]) -> dict[Thread, ThreadUse]:
    found = {}
    for pid in pids:
        with suppress(OSError):  # it has ended meanwhile
            for task in (_PROC / str(pid) / "task").iterdir():
                with suppress(OSError):
                    thread = Thread(pid, int(task.name), (task / "comm").read_text().strip())
                    switches = parse_switches((task / "status").read_text())
                    found[thread] = ThreadUse(_cpu_s(task), *switches)
    return found


def _cpu_s(task: Path) -> float:
    # Nanoseconds where the kernel counts them: the log writer needs less than a tick in a second.
    with suppress(OSError):
        nanoseconds = int((task / "schedstat").read_text().split()[0])
        if nanoseconds:
            return nanoseconds / 1e9
    return parse_cpu_s((task / "stat").read_text())


def by_role(
    before: Mapping[Thread, ThreadUse], after: Mapping[Thread, ThreadUse], root: int
) -> dict[str, ThreadUse]:
    """Sums what the threads of each role used between two readings."""
    used = dict.fromkeys(ROLES, ThreadUse())
    for thread, use in after.items():
        used[thread.role(root)] += use - before.get(thread, ThreadUse())
    return used


def has_strace() -> bool:
    return shutil.which("strace") is not None


@contextmanager
def counted_calls(tid: int, file: Path) -> Iterator[None]:
    """Lets strace count the system calls of one thread; `file` has its table afterwards."""
    command = ["strace", "-c", "-o", str(file), "-p", str(tid)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as strace:  # noqa: S603 - our own
        time.sleep(_ATTACH_S)
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)  # it detaches and writes its table

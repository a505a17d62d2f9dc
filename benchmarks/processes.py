"""Starts a server, accounts for all its processes and ends every one of them.

Servers start helpers, which start more, and some outlive their parents. This process adopts these
orphans, so that it finds everything a server left behind among its own descendants. Only one server
runs at a time, and no load generator runs when CPU time is read.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER: Final = 36  # from <linux/prctl.h>
_QUIET_CORES: Final = 0.05
STOP_S: Final = 10.0  # from SIGTERM to SIGKILL


@dataclass(frozen=True, slots=True)
class Stat:
    """A process, from /proc/<pid>/stat."""

    pid: int
    parent: int
    cpu_ticks: int  # user and system time, its own and that of children it has waited for


def parse_stat(text: str) -> Stat:
    # The second field is the command in parentheses, which may itself hold spaces and parentheses.
    pid = int(text[: text.index(" ")])
    fields = text[text.rindex(")") + 2 :].split()
    return Stat(pid, int(fields[1]), sum(int(ticks) for ticks in fields[11:15]))


def read_stats() -> list[Stat]:
    stats = []
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                stats.append(parse_stat((entry / "stat").read_text(errors="replace")))
    return stats


def descendants(stats: Iterable[Stat], root: int, without: frozenset[int]) -> list[Stat]:
    """Returns the processes below `root`, leaving out those in `without` and what is below them."""
    children: dict[int, list[Stat]] = {}
    for stat in stats:
        children.setdefault(stat.parent, []).append(stat)
    found: list[Stat] = []
    waiting = [root]
    while waiting:
        below = [one for one in children.get(waiting.pop(), ()) if one.pid not in without]
        found += below
        waiting += [stat.pid for stat in below]
    return found


def cpu_s(tree: Iterable[Stat]) -> float:
    return sum(stat.cpu_ticks for stat in tree) / _TICKS_PER_S


def adopt_orphans() -> None:
    """Makes this process the parent of every descendant whose own parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keeps this thread on one core, and with it the processes that it starts, such as senders."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Returns a free TCP port with two more above it, for servers that listen on several."""
    while True:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + 1))
                three.bind(("127.0.0.1", port + 2))
                return port


class ServerTree:
    """A running server: the process that was started and everything below it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        # What runs already, such as a resource tracker of this process, is not the server's.
        self._others = frozenset(stat.pid for stat in _below_me(frozenset()))
        self._log = log
        self.started_s = time.monotonic()

        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - commands of our own table
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def tree(self) -> list[Stat]:
        return _below_me(self._others)

    def cpu_s(self) -> float:
        return cpu_s(self.tree())

    def memory_bytes(self) -> int:
        """Returns the tree's proportional set size: shared pages count once."""
        total = 0
        for stat in self.tree():
            with suppress(OSError):
                rollup = (_PROC / str(stat.pid) / "smaps_rollup").read_text()
                line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
                total += 1024 * int(line.split()[1])
        return total

    def wait_until_quiet(self, limit_s: float = 5.0) -> None:
        """Waits until the tree uses next to no CPU, but not longer than the limit."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            before = self.cpu_s()
            time.sleep(0.4)
            if self.cpu_s() - before <= 0.4 * _QUIET_CORES:
                return

    def log_tail(self, n_bytes: int = 2000) -> str:
        return self._log.read_bytes()[-n_bytes:].decode(errors="replace")

    def stop(self) -> None:
        """Ends every process of the tree: with SIGTERM, then with SIGKILL."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)

        end_s, killed_s = time.monotonic() + STOP_S, math.inf
        while self._alive():
            # Orphaned helpers get no grace period: some spin and take the cores from all others.
            if not self.running or time.monotonic() > end_s:
                for stat in self.tree():
                    with suppress(ProcessLookupError):
                        os.kill(stat.pid, signal.SIGKILL)
                killed_s = min(killed_s, time.monotonic())

            time.sleep(0.05)
            if time.monotonic() > killed_s + STOP_S:
                raise TimeoutError(f"processes of a server survive SIGKILL for {STOP_S:g} s")

    def _alive(self) -> bool:
        # A process that has ended stays in /proc until its parent has waited for it.
        self._process.poll()
        for stat in self.tree():
            with suppress(ChildProcessError):  # not our child; its parent waits for it
                os.waitpid(stat.pid, os.WNOHANG)
        return bool(self.tree())


def _below_me(without: frozenset[int]) -> list[Stat]:
    return descendants(read_stats(), os.getpid(), without)

"""How much processor time a child that works in the background takes from the service.

A process with a higher niceness still delays others: Linux lets it run to the end of its slice, 3 ms or so,
before a thread that has become runnable. One that is scheduled as idle gives way at once, but on a machine
whose processors are always busy it gets almost nothing. So a child is tried as idle first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Final

from service.system.usage import cpu_seconds

_NICENESS: Final = 10  # at 19, a busy service would let a child have almost no time
_TRIAL_S: Final = 5.0
_LEAST_SHARE: Final = 0.25  # of a processor; a child that loads a version wants one


class Yields(Enum):
    """When a child leaves the processor to whatever else wants it."""

    NEVER = auto()
    WHILE_IMPORTING = auto()  # it asks for this itself, see `service.workers.__main__`
    ALWAYS = auto()
    NICER = auto()  # not at once, but it gets less


def run_when_idle(pid: int) -> bool:
    """Lets a process run only while nothing else wants the processor.

    It cannot be undone without privileges. Returns False where the system has no such policy, or does not
    allow it.
    """
    try:
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):  # not Linux, or a sandbox
        return False
    return True


def run_nicer(pid: int) -> None:
    """Raises the niceness of a process above that of this one."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS  # 19 at most
    with suppress(OSError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, pid, niceness)


class ProcessorShare:
    """Watches how much processor time a process gets, from now on."""

    def __init__(self, pid: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._pid = pid
        self._clock = clock
        self._since_s = clock()

    def is_starving(self) -> bool:
        """Returns whether the process had time enough to show that it gets too little."""
        elapsed_s = self._clock() - self._since_s
        return elapsed_s >= _TRIAL_S and cpu_seconds(self._pid) < _LEAST_SHARE * elapsed_s

"""Starts a server so that it can be profiled.

    python -P launch.py [--core N] [--idle-ms T] MODULE [ARGUMENT ...]

The kernel learns the names of Python's threads, which Python before 3.14 keeps to itself. Imports
nothing of this project, because it also starts other checkouts of it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

_MAX_NAME: Final = 15  # bytes; the kernel cuts longer ones


def name_threads() -> None:
    run = threading.Thread.run

    def named(self: threading.Thread) -> None:
        comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        comm.write_bytes(self.name.encode()[:_MAX_NAME])
        run(self)

    threading.Thread.run = named  # type: ignore[method-assign]


def idle_lanes(seconds: float) -> None:
    """Makes convserve's thread lanes wait instead of work, so that only the front needs a core.

    The way to the lane and back is the real one. The first picture is really run, and its outcome
    answers all others.
    """
    lane_module: Any = importlib.import_module("service.batching.thread_lane")
    work_on = lane_module.work_on
    outcomes: list[Any] = []

    def wait(job: Any, clock: Any) -> None:
        if not outcomes:
            work_on(job, clock)
            outcomes.append(job.outcomes[0][1])
            return
        job.started_s = clock()
        time.sleep(seconds)
        job.outcomes.extend((item, outcomes[0]) for item in job.items)
        job.runs.append((len(job.items), seconds))
        job.work_s = seconds

    lane_module.work_on = wait


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--core", type=int, help="run on this core only")
    parser.add_argument("--idle-ms", type=float, help="lanes wait this long for each batch")
    parser.add_argument("module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()

    # Before any thread starts: threads inherit it.
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    name_threads()
    if options.idle_ms is not None:
        idle_lanes(options.idle_ms / 1e3)

    sys.argv = [options.module, *options.arguments]
    runpy.run_module(options.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

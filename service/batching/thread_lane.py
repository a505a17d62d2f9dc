"""A lane that is a thread of this process.

A batch is answered by one message to the event loop. On the thread nothing of the loop is touched;
it only looks whether an entry's waiter is still there.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from service.batching.lane import BatchJob, Lane, LaneCallbacks, QueueEntry, deliver
from service.batching.work import work_on
from service.errors import EngineFailure


class ThreadLane:
    """Works on one batch at a time, on a thread of its own; a `Lane`."""

    depth = 2
    """It goes on with the next batch at once, without waiting for its turn on the event loop."""

    ready = True

    def __init__(self, callbacks: LaneCallbacks, clock: Callable[[], float]) -> None:
        """Starts the thread, from the running event loop."""
        self.jobs: deque[BatchJob[QueueEntry]] = deque()
        self.dead = False
        self.busy = False
        self._callbacks = callbacks
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[BatchJob[QueueEntry] | None] = SimpleQueue()
        # A daemon, so that a run that never returns does not keep the process from exiting.
        self._thread = threading.Thread(target=self._serve, name="lane", daemon=True)
        self._thread.start()

    def work(self, job: BatchJob[QueueEntry]) -> None:
        self.jobs.append(job)
        self._inbox.put(job)

    def interrupt(self) -> None:
        if self.jobs:
            job, now_s = self.jobs[0], self._clock()
            for entry in job.items:
                entry.fail_late(now_s, EngineFailure("the run of this picture took too long"))
            job.run.interrupt()

    def take_back(self) -> list[BatchJob[QueueEntry]]:
        ahead = [job for job in self.jobs if job.claim()]
        self.jobs.clear()
        return ahead

    def pass_on(self) -> BatchJob[QueueEntry] | None:
        if len(self.jobs) < 2 or not self.jobs[-1].claim():
            return None
        return self.jobs.pop()

    def close(self) -> None:
        self._inbox.put(None)

    def _serve(self) -> None:
        while (job := self._inbox.get()) is not None:
            if not self.dead and job.claim():
                self._work(job)

    def _work(self, job: BatchJob[QueueEntry]) -> None:
        self.busy = True
        try:
            work_on(job, self._clock)
        except BaseException as error:  # noqa: BLE001 - must not reach the event loop as itself
            job.died = error
            self.dead = True
        self.busy = False
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._done, job)

    def _done(self, job: BatchJob[QueueEntry]) -> None:
        if self.jobs and self.jobs[0] is job:
            self.jobs.popleft()
        deliver(job)
        self._callbacks.on_done(self, job)


class ThreadLaneFactory:
    """Makes lanes that are threads; a `LaneFactory`."""

    restarts = False

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def open(self, callbacks: LaneCallbacks) -> Lane:
        return ThreadLane(callbacks, self._clock)

    async def closed(self) -> None:
        """Returns at once: a thread ends by itself, and does not keep the process."""

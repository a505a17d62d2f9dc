"""A lane that is a thread of this process.

The thread never touches the event loop, except for one message to it per batch. It only reads whether
an entry is still pending.
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
    """Runs one batch at a time on a thread of its own; a `Lane`."""

    # One running, one queued: the thread goes on at once, without a round trip to the event loop.
    depth = 2
    ready = True

    def __init__(self, callbacks: LaneCallbacks, clock: Callable[[], float]) -> None:
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
                entry.fail_late(now_s, EngineFailure("the model took too long for this picture"))
            job.run.interrupt()

    def take_unstarted(self) -> list[BatchJob[QueueEntry]]:
        unstarted = [job for job in self.jobs if job.claim()]
        self.jobs.clear()
        return unstarted

    def steal_next(self) -> BatchJob[QueueEntry] | None:
        # It stays in the inbox: the thread cannot claim it any more and skips it.
        if len(self.jobs) < 2 or not self.jobs[-1].claim():
            return None
        return self.jobs.pop()

    def close(self) -> None:
        self._inbox.put(None)

    # On the thread

    def _serve(self) -> None:
        while (job := self._inbox.get()) is not None:
            if self.dead or not job.claim():
                continue

            self.busy = True
            try:
                work_on(job, self._clock)
            except BaseException as error:  # noqa: BLE001 - SystemExit must not reach the event loop
                job.died = error
                self.dead = True
            self.busy = False

            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing awaits the answer
                self._loop.call_soon_threadsafe(self._done, job)

    # On the event loop

    def _done(self, job: BatchJob[QueueEntry]) -> None:
        if self.jobs and self.jobs[0] is job:  # not if the lane has been given up meanwhile
            self.jobs.popleft()
        deliver(job)
        self._callbacks.on_done(self, job)


class ThreadLaneFactory:
    """Creates lanes that are threads; a `LaneFactory`."""

    restarts = False
    pids = ()

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def open(self, callbacks: LaneCallbacks) -> Lane:
        return ThreadLane(callbacks, self._clock)

    async def wait_closed(self) -> None:
        return  # a daemon thread needs no waiting for

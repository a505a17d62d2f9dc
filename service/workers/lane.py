"""A lane that is a child process: one batch at a time over a socket, and a watch over its health.

A child that exits is noticed by the end of its connection, a stopped one by its process state, one that
hangs because an answer is overdue, one that has grown too large by its resident memory. Whatever
happens, what it had in hand is answered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from service.batching.lane import (
    BatchJob,
    LaneCallbacks,
    Outcome,
    QueueEntry,
    RestartReason,
    RowResult,
    deliver,
)
from service.batching.work import Preparation
from service.errors import WorkerLost
from service.workers import wire
from service.workers.launch import LaunchedWorker, ProcessHandle, WorkerLauncher
from service.workers.wire import FrameKind, WireError

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
"""Seconds between looks at the child's process."""

_EXIT_S: Final = 2.0  # how long a child whose connection was closed may take to exit
_PAUSE_S: Final = 0.02  # between looks at what ends within milliseconds


class ProcessLane(asyncio.Protocol):
    """Works on one batch at a time, in a process of its own; a `Lane`."""

    depth = 1
    busy = False
    """Never inside the runtime of this process."""

    def __init__(
        self,
        child: WorkerLauncher | LaunchedWorker,
        places: dict[tuple[str, int], int],
        callbacks: LaneCallbacks,
        *,
        max_memory_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes a child over, or starts one; on the running event loop.

        Args:
            child: one that is ready, or what starts one.
            places: of the versions in the child's plan.
            callbacks: see `LaneCallbacks`.
            max_memory_bytes: a child that has grown beyond this is worn; None for never.
            clock: monotonic seconds.
        """
        self.jobs: deque[BatchJob[QueueEntry]] = deque()
        self.ready = False
        self.dead = False
        self._places = places
        self._callbacks = callbacks
        self._max_memory_bytes = max_memory_bytes
        self._clock = clock
        self._child = child
        self._process: ProcessHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._reader = wire.FrameReader()
        self._was_stopped = False
        self._lost = False
        self._closed = False
        self._worn: RestartReason | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Task[None] = asyncio.create_task(self._live(child), name="worker")

    # Its life

    async def _live(self, child: WorkerLauncher | LaunchedWorker) -> None:
        """Starts the child and returns when its process has ended."""
        launched = child if isinstance(child, LaunchedWorker) else await self._launch(child)
        if launched is None:
            return
        self._process = launched.process
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: self, sock=launched.sock)
        except BaseException:
            launched.abort()
            raise
        if not self.dead and not self._closed:
            log.info("worker ready", extra={"pid": launched.process.pid})
            self._timer = loop.call_later(LOOK_S, self._look)
            self.ready = True
            self._callbacks.on_ready(self)
        await self._gone
        await self._see_off(launched.process)

    async def _launch(self, launcher: WorkerLauncher) -> LaunchedWorker | None:
        try:
            return await launcher.launch()
        except Exception as error:  # noqa: BLE001 - no failed start must end the lane's keeping
            log.error("a worker did not start", extra={"reason": str(error)})
            self._callbacks.on_lost(self, RestartReason.NOT_STARTED)
            return None

    async def _see_off(self, process: ProcessHandle) -> None:
        """Waits until the process has exited; kills it if that takes long."""
        status = None
        for _ in range(2):
            for _ in range(round(_EXIT_S / _PAUSE_S)):
                if (status := process.poll()) is not None:
                    break
                await asyncio.sleep(_PAUSE_S)
            else:
                process.kill()
                continue
            break
        ended: dict[str, int | str] = {} if status is None else {"exit_status": status}
        if status is not None and status < 0:
            ended = {"signal": signal.Signals(-status).name}
        log.info("worker ended", extra={"pid": process.pid, **ended})

    # As a lane

    def work(self, job: BatchJob[QueueEntry]) -> None:
        self.jobs.append(job)
        now_s = self._clock()
        pictures = [
            wire.WirePicture(cast(Preparation, entry.item).file.data, entry.deadline_s - now_s)
            for entry in job.items
        ]
        work = wire.WireBatch(self._places[job.version.key], job.run.wide, pictures)
        if self._transport is not None:
            self._transport.writelines(wire.pack_work(work))

    def interrupt(self) -> None:
        if self.jobs:
            self._end(RestartReason.OVERDUE)

    def take_back(self) -> list[BatchJob[QueueEntry]]:
        self.jobs.clear()  # it has been sent
        return []

    def pass_on(self) -> None:
        return None

    def close(self) -> None:
        self._closed = True
        self.ready = False
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            if self.jobs and self._process is not None:
                self._process.kill()
            self._transport.close()
            return
        self.ended.cancel()
        if self._process is None and isinstance(self._child, LaunchedWorker):
            self._child.abort()  # `ended` has not begun

    # What it says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: the transports of uvloop are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self._closed:
            self._end(RestartReason.EXITED)
        if not self._gone.done():
            self._gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._handle(frame)
        except WireError as error:
            log.error("a worker broke the protocol", extra={"reason": str(error)})
            self._end(RestartReason.EXITED)

    def _handle(self, frame: wire.Frame) -> None:
        if frame.kind is FrameKind.DONE and self.jobs:
            self._finish(wire.unpack_done(frame.payload))
        elif frame.kind is FrameKind.RETIRE:
            self._worn = RestartReason.TERMINATED
            self._callbacks.on_worn(self, self._worn)
        else:
            raise WireError(f"{frame.kind.name} at a time when a worker does not send it")

    def _finish(self, done: wire.WireBatchDone) -> None:
        job = self.jobs.popleft()
        if len(done.outcomes) != len(job.items):
            self.jobs.appendleft(job)
            raise WireError(f"{len(done.outcomes)} outcomes of {len(job.items)} pictures")
        job.runs, job.work_s = done.runs, done.work_s
        for entry, outcome in zip(job.items, done.outcomes, strict=True):
            if outcome is not None:
                job.outcomes.append((entry, _received(entry, outcome, job.since_s)))
        deliver(job)
        self._callbacks.on_done(self, job)

    # Its health

    def _look(self) -> None:
        """Looks for what the child cannot say itself."""
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        process = self._process
        if process is None:
            return

        # At two looks: after Ctrl-Z and fg the front may be the first to run again.
        stopped = is_stopped(process.pid)
        if stopped and self._was_stopped:
            self._end(RestartReason.STOPPED)
            return
        self._was_stopped = stopped

        limit = self._max_memory_bytes
        if limit and resident_bytes(process.pid) > limit:
            self._callbacks.on_worn(self, RestartReason.MEMORY)
        elif self._worn is not None:
            self._callbacks.on_worn(self, self._worn)

    def _end(self, reason: RestartReason) -> None:
        """Ends the process and answers what it has in hand."""
        if self._lost:  # not `dead`: whoever stops all lanes sets that before it interrupts them
            return
        self._lost = self.dead = True
        self.ready = False
        if self._process is not None:
            self._process.kill()
        now_s, n_lost = self._clock(), 0
        how = {RestartReason.STOPPED: "stopped", RestartReason.OVERDUE: "hung"}.get(reason, "ended")
        lost = f"the worker process {how} before this picture was answered; try again"
        for job in self.jobs:
            for entry in job.items:
                n_lost += entry.wanted
                entry.fail_late(now_s, WorkerLost(lost))
        log.warning(
            "worker lost",
            extra={
                "pid": self._process.pid if self._process else 0,
                "reason": str(reason),
                "pictures_lost": n_lost,
            },
        )
        self._callbacks.on_lost(self, reason)


def _received(entry: QueueEntry, outcome: wire.WireRow | Exception, began_s: float) -> Outcome:
    if isinstance(outcome, Exception):
        return outcome
    recipe = cast(Preparation, entry.item)
    recipe.decode_s, recipe.preprocess_s = outcome.decode_s, outcome.preprocess_s
    row = outcome.row
    queue_s = began_s - entry.submitted_s + row.queue_s
    return RowResult(row.probabilities, queue_s, row.run_s, row.batch_size)


def is_stopped(pid: int, proc: Path = Path("/proc")) -> bool:
    """Says whether a process was stopped by a signal; False where the system does not tell."""
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] == ["T"]


def resident_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Returns the memory of a process in bytes; 0 where the system does not say."""
    try:
        statm = (proc / str(pid) / "statm").read_text(encoding="ascii")
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0

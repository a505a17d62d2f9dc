"""A lane that is a child process: one batch at a time over a socket, and health checks.

A child that exits is noticed by the end of its connection, a stopped one by its process state, one that
hangs by an overdue answer, one that is too large by its resident memory. In every case its pictures are
answered.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from service.batching.lane import (
    CHECK_INTERVAL_S,
    BatchJob,
    LaneCallbacks,
    Outcome,
    QueueEntry,
    RestartReason,
    deliver,
)
from service.batching.work import Preparation
from service.errors import WorkerLost
from service.system.usage import resident_bytes
from service.workers import wire
from service.workers.launch import LaunchedWorker, ProcessHandle, WorkerLauncher
from service.workers.wire import FrameKind, WireError

log = logging.getLogger(__name__)

_EXIT_S: Final = 2.0  # a child may take this long to exit after its connection was closed
_POLL_S: Final = 0.02  # a child usually exits within milliseconds


class ProcessLane(asyncio.Protocol):
    """Runs one batch at a time in a process of its own; a `Lane`."""

    depth = 1
    busy = False  # never inside the runtime of this process

    def __init__(
        self,
        child: WorkerLauncher | LaunchedWorker,
        version_index: dict[tuple[str, int], int],
        callbacks: LaneCallbacks,
        *,
        max_memory_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes a child over, or starts one, on the running event loop.

        Args:
            child: a child that is ready, or a launcher to start one.
            version_index: by version key, its position in the child's START message.
            callbacks: for the lane's events.
            max_memory_bytes: a child larger than this asks to be replaced; None for no limit.
            clock: monotonic seconds.
        """
        self.jobs: deque[BatchJob[QueueEntry]] = deque()
        self.ready = False
        self.dead = False
        self._version_index = version_index
        self._callbacks = callbacks
        self._max_memory_bytes = max_memory_bytes
        self._clock = clock
        self._child = child
        self._process: ProcessHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._reader = wire.FrameReader()
        self._was_stopped = False  # at the last check
        self._terminated = False  # it got SIGTERM and asks to be replaced
        self._lost = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._disconnected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Task[None] = asyncio.create_task(self._run(child), name="worker")

    # The process

    async def _run(self, child: WorkerLauncher | LaunchedWorker) -> None:
        """Starts the child and returns when its process has ended."""
        if isinstance(child, LaunchedWorker):
            launched = child
        else:
            try:
                launched = await child.launch()
            except Exception as error:  # noqa: BLE001 - whatever the reason, the lane is lost
                log.error("a worker did not start", extra={"reason": str(error)})
                self._callbacks.on_lost(self, RestartReason.NOT_STARTED)
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
            self._timer = loop.call_later(CHECK_INTERVAL_S, self._check)
            self.ready = True
            self._callbacks.on_ready(self)

        await self._disconnected
        await self._wait_for_exit(launched.process)

    async def _wait_for_exit(self, process: ProcessHandle) -> None:
        status = None
        for kill in (True, False):
            for _ in range(round(_EXIT_S / _POLL_S)):
                if (status := process.poll()) is not None:
                    break
                await asyncio.sleep(_POLL_S)
            if status is not None:
                break
            if kill:
                process.kill()

        ended: dict[str, int | str] = {} if status is None else {"exit_status": status}
        if status is not None and status < 0:
            ended = {"signal": signal.Signals(-status).name}
        log.info("worker ended", extra={"pid": process.pid, **ended})

    # As a lane

    @property
    def pid(self) -> int | None:
        """The child's id; None before it has started and after it has ended."""
        return None if self._process is None or self.ended.done() else self._process.pid

    def work(self, job: BatchJob[QueueEntry]) -> None:
        self.jobs.append(job)
        now_s = self._clock()
        pictures = [
            wire.WirePicture(
                cast(Preparation, entry.item).file.data, entry.deadline_s - now_s, entry.wanted
            )
            for entry in job.items
        ]
        work = wire.WireBatch(self._version_index[job.version.key], job.run.all_cores, pictures)
        if self._transport is not None:
            self._transport.writelines(wire.pack_work(work))

    def interrupt(self) -> None:
        if self.jobs:
            self._lose(RestartReason.OVERDUE)  # a child cannot be interrupted, only killed

    def take_unstarted(self) -> list[BatchJob[QueueEntry]]:
        self.jobs.clear()  # a batch that has been sent counts as started
        return []

    def steal_next(self) -> None:
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
            self._child.abort()  # the task `ended` has not run yet

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self._closed:
            self._lose(RestartReason.EXITED)
        if not self._disconnected.done():
            self._disconnected.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._handle(frame)
        except WireError as error:
            log.error("a worker broke the protocol", extra={"reason": str(error)})
            self._lose(RestartReason.EXITED)

    def _handle(self, frame: wire.Frame) -> None:
        if frame.kind is FrameKind.DONE and self.jobs:
            self._finish(wire.unpack_done(frame.payload))
        elif frame.kind is FrameKind.RETIRE:
            self._terminated = True
            self._callbacks.on_retiring(self, RestartReason.TERMINATED)
        else:
            raise WireError(f"unexpected {frame.kind.name} frame from a worker")

    def _finish(self, done: wire.WireBatchDone) -> None:
        job = self.jobs.popleft()
        if len(done.outcomes) != len(job.items):
            self.jobs.appendleft(job)  # its pictures are failed with the lane
            raise WireError(f"{len(done.outcomes)} outcomes for {len(job.items)} pictures")

        job.runs, job.work_s = done.runs, done.work_s
        for entry, outcome in zip(job.items, done.outcomes, strict=True):
            if outcome is not None:
                job.outcomes.append((entry, _received(entry, outcome, job.started_s)))
        deliver(job)
        self._callbacks.on_done(self, job)

    # Its health

    def _check(self) -> None:
        """Checks what the child cannot report itself."""
        self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check)
        process = self._process
        if process is None:
            return

        # Stopped at two checks: after Ctrl-Z and fg the front may be the first to run again.
        stopped = is_stopped(process.pid)
        if stopped and self._was_stopped:
            self._lose(RestartReason.STOPPED)
            return
        self._was_stopped = stopped

        # Said again at every check, because the request is ignored while others are being replaced.
        limit = self._max_memory_bytes
        if limit and resident_bytes(process.pid) > limit:
            self._callbacks.on_retiring(self, RestartReason.MEMORY)
        elif self._terminated:
            self._callbacks.on_retiring(self, RestartReason.TERMINATED)

    def _lose(self, reason: RestartReason) -> None:
        """Kills the process and fails the pictures it had."""
        if self._lost:  # not `dead`: `Lanes.stop` sets that before it interrupts the lane
            return
        self._lost = self.dead = True
        self.ready = False
        if self._process is not None:
            self._process.kill()

        now_s, n_lost = self._clock(), 0
        lost = "the model stopped before it answered this picture; try again"
        for job in self.jobs:
            for entry in job.items:
                n_lost += entry.pending
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


def _received(entry: QueueEntry, outcome: wire.WireRow | Exception, sent_s: float) -> Outcome:
    if isinstance(outcome, Exception):
        return outcome

    recipe = cast(Preparation, entry.item)
    recipe.decode_s, recipe.preprocess_s = outcome.decode_s, outcome.preprocess_s
    row = outcome.row
    # The child's clock starts when a batch arrives; the wait before that was here.
    queue_s = sent_s - entry.submitted_s + row.queue_s
    return replace(row, queue_s=queue_s)


def is_stopped(pid: int, proc: Path = Path("/proc")) -> bool:
    """Says whether a signal has stopped a process; False on systems without /proc."""
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    # After the name in parentheses, which may itself contain some.
    return stat.rpartition(")")[2].split()[:1] == ["T"]

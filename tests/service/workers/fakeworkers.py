"""Fake worker processes: the test drives the other end of each socket pair."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import cast

from service.batching.lane import RowResult
from service.workers import wire
from service.workers.launch import LaunchedWorker
from service.workers.wire import FrameKind, FrameReader, WireBatch, WireBatchDone, WireRow


class FakeProcess:
    """A process that exists only as a PID.

    Attributes:
        status: its exit status, None while it runs.
        exits: whether it exits when its connection ends, or only when it is killed.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.exits = True
        self.end: Callable[[], None] = lambda: None

    def poll(self) -> int | None:
        return self.status

    def wait(self) -> int:
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        if self.status is None:
            self.exit(-9)

    def exit(self, status: int) -> None:
        """Ends it and closes its connection, as the system does with a real process."""
        self.status = status
        self.end()


class FakeWorker(asyncio.Protocol):
    """A fake worker, driven by the test.

    Attributes:
        unanswered: the batches that it has received but not answered.
        received: the pictures of every batch that it has received.
    """

    def __init__(self, process: FakeProcess) -> None:
        self.process = process
        self.unanswered: list[WireBatch] = []
        self.received: list[list[bytes]] = []
        self.closed = False
        self._reader = FrameReader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.process.end = self._transport.abort

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.closed = True
        if self.process.status is None and self.process.exits:
            self.process.status = 0

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            assert frame.kind is FrameKind.WORK
            self.unanswered.append(wire.unpack_work(frame.payload))
            self.received.append([one.image for one in self.unanswered[-1].pictures])

    def send(self, pieces: Iterable[bytes]) -> None:
        self._transport.write(b"".join(pieces))

    def answer(self, *errors: Exception | None) -> None:
        """Answers the oldest batch: each picture with its length, or with the error at its index."""
        work = self.unanswered.pop(0)
        pictures = work.pictures
        given = [*errors, *[None] * (len(pictures) - len(errors))]
        outcomes: list[WireRow | Exception | None] = [
            error or row_of(len(one.image), len(pictures))
            for one, error in zip(pictures, given, strict=True)
        ]
        self.send(wire.pack_done(WireBatchDone(outcomes, [(len(pictures), 0.5)], 0.75)))


def row_of(value: float, batch_size: int = 1) -> WireRow:
    """An answer whose first probability is `value`, which need not be a probability."""
    return WireRow(RowResult([(0, value)], 0.125, 0.5, batch_size), 0.25, 0.375)


class FakeLauncher:
    """Starts fake workers.

    Attributes:
        workers: every worker started, in order.
        failures: errors of the next starts, one each.
        gate: starts wait until it is set.
    """

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def launch(self) -> LaunchedWorker:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return await self.make()

    async def make(self) -> LaunchedWorker:
        """Returns a worker that is ready."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)

        worker = FakeWorker(FakeProcess(1000 + len(self.workers)))
        self.workers.append(worker)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: worker, sock=theirs)
        except asyncio.CancelledError:
            ours.close()
            theirs.close()
            raise
        return LaunchedWorker(worker.process, ours, [])

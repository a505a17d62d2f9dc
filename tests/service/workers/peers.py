"""Workers in this process: the other ends of socket pairs, with every step in the test's hands."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import numpy as np

from service.serving.answering import Answered
from service.workers import wire
from service.workers.launch import Launched
from service.workers.wire import Ask, Frame, FrameReader, Kind, Pong


class FakeProcess:
    """A process that exists as a number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.end: Any = lambda: None

    def poll(self) -> int | None:
        return self.status

    def wait(self) -> int:
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        if self.status is None:
            self.exit(-9)

    def exit(self, status: int) -> None:
        """Ends it: the connection closes, as the system closes that of a real one."""
        self.status = status
        self.end()


class Peer(asyncio.Protocol):
    """A worker that does what the test says; pings are answered until `mute`."""

    def __init__(self, process: FakeProcess) -> None:
        self.process = process
        self.asks: dict[int, Ask] = {}
        self.order: list[bytes] = []
        self.cancelled: list[int] = []
        self.pong = Pong(alive=True, resident_bytes=1000)
        self.mute = False
        self.closed = False
        self._reader = FrameReader(wire.MAX_CONTROL_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.process.end = self._transport.abort

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.closed = True
        if self.process.status is None:
            self.process.status = 0

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        if frame.kind is Kind.ASK:
            self.asks[frame.id] = wire.unpack_ask(frame.payload)
            self.order.append(self.asks[frame.id].image)
        elif frame.kind is Kind.CANCEL:
            self.cancelled.append(frame.id)
        elif frame.kind is Kind.PING and not self.mute:
            self.send(wire.pack_pong(frame.id, self.pong))

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    def answer(self, image: bytes) -> None:
        """Answers a picture that it has with its length as the probability."""
        number = next(number for number, ask in self.asks.items() if ask.image == image)
        del self.asks[number]
        row = np.array([len(image), 0], np.float32)
        self.send(wire.pack_answer(number, Answered(row, 0.25, 0.25, 0.0, 0.5, 1)))

    def refuse(self, image: bytes, error: Exception) -> None:
        """Answers a picture that it has with an error."""
        number = next(number for number, ask in self.asks.items() if ask.image == image)
        del self.asks[number]
        self.send(wire.pack_refusal(number, error))


class FakeLauncher:
    """Makes peers at once, or as the test says.

    Attributes:
        peers: every one that was started, in order.
        failures: raised by the next starts, one each.
        gate: starts wait until it is set.
    """

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.failures: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def launch(self) -> Launched:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return await self.make()

    async def make(self) -> Launched:
        """Returns a worker that is ready."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        peer = Peer(FakeProcess(1000 + len(self.peers)))
        self.peers.append(peer)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: peer, sock=theirs)
        except asyncio.CancelledError:
            ours.close()
            theirs.close()
            raise
        return Launched(peer.process, ours, [])

"""What a connection's peer may do to the flow of bytes: wait its turn, but not refuse its answers."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl

_MIN_TAKEN_BYTES_PER_S: Final = 1_000


class BoundedFlowControl(FlowControl):
    """Flow control that can hold reading, and cuts off a peer that does not take its answers.

    The peer must take 1 KB/s, looked at every `timeout_s`, from the moment the transport has more to
    write than it wants, or wants to close.
    """

    def __init__(self, transport: asyncio.Transport, timeout_s: float) -> None:
        super().__init__(transport)
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._held = False

    def hold(self) -> None:
        """Pauses reading, for `release` alone to resume."""
        self.pause_reading()
        self._held = True

    def release(self) -> None:
        """Resumes reading where it was held."""
        if self._held:
            self._held = False
            self.resume_reading()

    def resume_reading(self) -> None:
        """Resumes unless it is held: a request asks for this whenever it waits for its body."""
        if not self._held:
            super().resume_reading()

    def pause_writing(self) -> None:
        """Starts the clock."""
        super().pause_writing()
        self._start_timer()

    def resume_writing(self) -> None:
        """Stops the clock, unless it watches over the connection's end."""
        super().resume_writing()
        if not self._transport.is_closing():
            self.stop()

    def close(self) -> None:
        """Closes once the answers are out, for which the peer does not have forever."""
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._start_timer()

    def stop(self) -> None:
        """Stops the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(
            self._timeout_s, self._timed_out, self._transport.get_write_buffer_size()
        )

    def _timed_out(self, before: int) -> None:
        # A large answer on a slow line is no fault as long as it moves.
        taken = before - self._transport.get_write_buffer_size()
        if taken < _MIN_TAKEN_BYTES_PER_S * self._timeout_s:
            self._transport.abort()
        else:
            self._start_timer()


class CoalescingTransport:
    """A transport that sends the head of an answer together with the body that follows at once.

    uvicorn writes them one after the other: two system calls, and two packets for the client to
    wake up for. A head that no body follows in the same turn of the event loop goes out alone.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Writes, or keeps the head of a final answer for the rest of the turn."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """Closes once everything is out."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

"""Flow control of one connection: pauses reading, and bounds how slowly a peer may read."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl

_MIN_READ_BYTES_PER_S: Final = 1_000


class BoundedFlowControl(FlowControl):
    """uvicorn's flow control, which also aborts connections whose peer does not read.

    The peer must read 1 kB/s, checked every `timeout_s`. The check runs while the transport's write
    buffer is over its limit, and while a closing transport still has data to send.
    """

    def __init__(self, transport: asyncio.Transport, timeout_s: float) -> None:
        super().__init__(transport)
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._held = False

    def hold(self) -> None:
        """Pauses reading until `release`; `resume_reading` alone does not resume it."""
        self.pause_reading()
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self.resume_reading()

    def resume_reading(self) -> None:
        # uvicorn calls this whenever the application waits for a body.
        if not self._held:
            super().resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._transport.is_closing():  # a closing transport is watched to its end
            self.stop()

    def close(self) -> None:
        """Closes the transport after it has sent its buffer, if the peer reads fast enough."""
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._start_timer()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(
            self._timeout_s, self._timed_out, self._transport.get_write_buffer_size()
        )

    def _timed_out(self, before: int) -> None:
        # A large response on a slow line may take its time as long as it makes progress.
        read = before - self._transport.get_write_buffer_size()
        if read < _MIN_READ_BYTES_PER_S * self._timeout_s:
            self._transport.abort()
        else:
            self._start_timer()


class CoalescingTransport:
    """A transport that writes a response's head together with the first part of its body.

    uvicorn writes them one after the other, which costs two system calls and two packets. A head
    without a body in the same turn of the event loop is written alone at the end of that turn.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            # A final response. 1xx responses such as 100 Continue are written at once.
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

"""Flow control of one connection: pauses reading, and bounds how slowly a peer may read."""

from __future__ import annotations

import asyncio
from typing import Final

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

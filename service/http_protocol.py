"""uvicorn's HTTP/1.1 protocol with what it leaves to a proxy: bounds on the request head.

uvicorn's parser has no limit on the size of a request head and none on the time a connection may
take to send one (measured; docs/decisions/0009). Here a head has a limit in bytes, fields and time,
and what the parser refuses is answered in the service's own error shape. The fields behind a
chunked body (trailers) count against the same limit and are dropped: uvicorn would add them to the
head.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.problems import MEDIA_TYPE, PROBLEMS

MAX_HEAD_BYTES: Final = 32_768
MAX_HEADERS: Final = 100
_LINGER_S: Final = 2.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses a request head that is too large, too slow or malformed, and closes the connection."""

    def __init__(self, *args: Any, header_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timeout_s = header_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._field_bytes = 0  # received since the last byte of a body or the end of a head
        self._in_head = True
        self._begun = False  # the head's first byte is there
        self._deaf = False  # what still arrives is dropped, accepted requests are answered
        self._refusal = ("malformed_request", "the request is not valid HTTP/1.1")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock: a connection that sends nothing is closed as well."""
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hands the parser no more of a head than the limit."""
        while data and not self._deaf and not self.transport.is_closing():
            if self._in_head and self._head_timer is None:
                self._start_head_timer()
            room = MAX_HEAD_BYTES - self._field_bytes
            if room <= 0:
                self._refuse("headers_too_large", f"the limit is {MAX_HEAD_BYTES} bytes")
                return
            piece, data = data[:room], data[room:]
            self._field_bytes += len(piece)
            super().data_received(piece)

    def on_message_begin(self) -> None:
        """Starts the clock for a head that came with the end of another request."""
        super().on_message_begin()
        self._begun = True
        if self._head_timer is None:
            self._start_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Bounds the number of fields and drops trailers."""
        if not self._in_head:
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refusal = ("headers_too_large", f"the limit is {MAX_HEADERS} header fields")
            raise ValueError(self._refusal[1])  # the parser stops and send_400_response follows

    def on_headers_complete(self) -> None:
        """Ends the head."""
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError("HTTP/0.9")
        super().on_headers_complete()
        self._stop_head_timer()
        self._in_head = False
        self._field_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Ends what fields there were between two chunks."""
        self._field_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Whatever comes next is a head again."""
        super().on_message_complete()
        self._stop_head_timer()
        self._in_head = True
        self._begun = False
        self._field_bytes = 0

    def on_response_complete(self) -> None:
        """A body nobody reads, since its request was refused, must end soon or the connection does."""
        super().on_response_complete()
        unread = not self._in_head and self.cycle.response_complete
        if unread and not self.transport.is_closing():
            self._start_head_timer()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words, not ours
        """Answers what the parser refused, in the service's own shape."""
        self._refuse(*self._refusal)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._header_timeout_s, self._head_timed_out)

    def _head_timed_out(self) -> None:
        if self._answering():
            self._start_head_timer()  # reading may have been paused meanwhile: no fault of the peer
        else:
            self._refuse("request_timeout", "the request head did not arrive in time")

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        return cycle is not None and not cycle.response_complete

    def _refuse(self, code: str, detail: str) -> None:
        """Answers a problem and closes; a connection that sent nothing gets no answer."""
        self._stop_head_timer()
        if self.transport.is_closing():
            return
        if not self._answering():
            silent = not self._in_head or (code == "request_timeout" and not self._begun)
        elif self._in_head or self.pipeline or self.cycle.response_started:
            # Requests before this one have been accepted: the last of their answers closes.
            self.cycle.keep_alive = False
            self._deaf = True
            return
        else:  # the body that is being read is the malformed one
            silent = False
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if silent:
            self.transport.close()
            return
        self.transport.write(_problem_bytes(code, detail))
        # Closing now would reset a connection that is still sending, and the reset can overtake the
        # answer.
        self._deaf = True
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(_LINGER_S, self.transport.close)


def _problem_bytes(code: str, detail: str) -> bytes:
    problem = PROBLEMS[code]
    request_id = secrets.token_hex(8)
    body = json.dumps(
        {
            "type": "about:blank",
            "title": problem.title,
            "status": problem.status,
            "code": code,
            "detail": detail,
            "request_id": request_id,
        }
    ).encode()
    head = (
        f"HTTP/1.1 {problem.status} {problem.title}\r\n"
        f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\nx-content-type-options: nosniff\r\n"
        "cache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body

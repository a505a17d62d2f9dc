"""uvicorn's HTTP/1.1 protocol with what it leaves to a proxy: bounds on what a peer may cost.

uvicorn's parser has no limit on the size of a request head and none on the time a connection may
take to send one (measured; docs/decisions/0009). Here a head has a limit in bytes, fields and time,
and what the parser refuses is answered in the service's own error shape. The fields behind a
chunked body (trailers) count against the same limit and are dropped: uvicorn would add them to the
head.

A connection has one request in hand. What a peer sends behind it waits unparsed, with reading
paused, until it is answered. A peer that does not take its answers is cut off (`http_flow`).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.http.flow import BoundedFlowControl, CoalescingTransport
from service.http.heads import MAX_HEADERS, RequestHeadRejected, check_head, refusal_bytes
from service.http.scope import add_peer, peer_of

MAX_HEAD_BYTES: Final = 32_768
_MAX_HEAD_PIECE: Final = 4_096
_MIN_CHUNKED_PIECE: Final = 512  # or a body of empty lines would be fed four bytes at a time
_LINGER_S: Final = 2.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses a request head that is too large, too slow or malformed, and closes the connection."""

    flow: BoundedFlowControl

    def __init__(self, *args: Any, header_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timeout_s = header_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._field_bytes = 0  # received since the last byte of a body or the end of a head
        self._body_left = 0  # of a body with a declared length
        self._waiting = b""  # received and not yet parsed
        self._in_head = True
        self._begun = False  # the head's first byte is there
        self._deaf = False  # what still arrives is dropped, accepted requests are answered
        self._plain_head = b""  # the head in hand without the upgrade it asked for
        # The request being answered: not uvicorn's newest one if there is a pipeline.
        self._active: RequestResponseCycle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock: a connection that sends nothing is closed as well."""
        super().connection_made(transport)
        self.flow = BoundedFlowControl(transport, self._header_timeout_s)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks and tells the request in hand; uvicorn tells the newest one only."""
        self._stop_head_timer()
        self.flow.stop()
        self._unset_keepalive_if_required()
        self._waiting = b""
        self.pipeline.clear()
        if self._active is not None:
            self._active.disconnected = True
            self._active.message_event.set()
            if peer := peer_of(self._active.scope):
                peer.leave()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection, even one whose peer has not taken the last answer."""
        self.flow.close()

    # What is received

    def data_received(self, data: bytes) -> None:
        """Parses what belongs to the request in hand and keeps the rest."""
        self._waiting += data
        self._feed_waiting()

    def _feed_waiting(self) -> None:
        self._unset_keepalive_if_required()
        if not self.transport.is_closing():
            self.flow.release()  # first, since the body fed below may pause reading again
        data, start = self._waiting, 0
        while start < len(data) and not self._must_wait():
            start += self._feed_piece(data, start)
        if self._deaf or self.transport.is_closing():
            self._waiting = b""
            return
        self._waiting = data[start:]
        if self._waiting:
            self.flow.hold()

    def _must_wait(self) -> bool:
        over = self._deaf or self.transport.is_closing()
        return over or (self._in_head and self._answering())

    def _feed_piece(self, data: bytes, start: int) -> int:
        """Feeds the parser little of the next request and no more of a head than the limit."""
        if self._body_left:
            return self._feed(data[start : start + self._body_left])
        if self._in_head and self._head_timer is None:
            self._start_head_timer()
        room = MAX_HEAD_BYTES - self._field_bytes
        if room <= 0:
            self._refuse("headers_too_large", f"the limit is {MAX_HEAD_BYTES} bytes")
            return 0
        piece = data[start : self._likely_end(data, start, room)]
        self._field_bytes += len(piece)
        return self._feed(piece)

    def _likely_end(self, data: bytes, start: int, room: int) -> int:
        # Every head and every chunked body ends with an empty line. What looks like one and is not
        # does no harm: the parser takes a request in any pieces.
        first = start if self._in_head else start + _MIN_CHUNKED_PIECE
        last = start + (min(room, _MAX_HEAD_PIECE) if self._in_head else room)
        found = data.find(b"\r\n\r\n", first, last)
        return last if found < 0 else found + 4

    def _feed(self, piece: bytes) -> int:
        """Feeds the parser and returns how many bytes it took."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed_plain_head()
            return int(upgrade.args[0])
        except httptools.HttpParserError as error:
            self._refuse_unparsed(error)
        return len(piece)

    def _feed_plain_head(self) -> None:
        # The parser takes the body of a request that asks for an upgrade for another protocol and
        # cannot be told otherwise, so a new one gets the same head without it.
        head, self._plain_head = self._plain_head, b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(head)

    # The parser's callbacks

    def on_message_begin(self) -> None:
        """Starts the clock for a head that came with the end of another request."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._begun = True
        if self._head_timer is None:
            self._start_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Bounds the number of fields and drops trailers."""
        if not self._in_head:
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise RequestHeadRejected(
                "headers_too_large", f"the limit is {MAX_HEADERS} header fields"
            )

    def on_headers_complete(self) -> None:
        """Ends the head, or has it parsed again without the upgrade it asks for."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        check_head(method, version, self.headers)
        if self.parser.should_upgrade():
            kept = [(name, value) for name, value in self.headers if name != b"upgrade"]
            lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
            lines += [b"%s: %s" % field for field in kept]
            self._plain_head = b"\r\n".join((*lines, b"", b""))
            return
        add_peer(self.scope)
        super().on_headers_complete()
        self._stop_head_timer()
        self._in_head = False
        self._field_bytes = 0
        lengths = [int(value) for name, value in self.headers if name == b"content-length"]
        self._body_left = lengths[0] if lengths else 0

    def on_body(self, body: bytes) -> None:
        """Ends what fields there were between two chunks."""
        self._field_bytes = 0
        self._body_left = max(0, self._body_left - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Whatever comes next is a head again."""
        if self._plain_head:
            return
        super().on_message_complete()
        self._stop_head_timer()
        self._in_head = True
        self._begun = False
        self._field_bytes = self._body_left = 0
        if not self.cycle.keep_alive:
            self._deaf = True  # the client said itself that this was its last request
        elif self.cycle.response_complete:
            # uvicorn stopped this clock when the rest of the body arrived.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # The answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        cycle.transport = CoalescingTransport(self.transport, self.loop)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Goes on with what waited; a body nobody reads must end soon or the connection does."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.flow.close()
            return
        if self._waiting:
            # Not at once: the application may not have returned, and thousands may be waiting.
            self.loop.call_soon(self._feed_waiting)
        if not self._in_head and not self._answering():
            self._start_head_timer()

    def _answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        return cycle is not None and not cycle.response_complete

    def _refuse_unparsed(self, error: httptools.HttpParserError) -> None:
        reason = error.__context__  # what a callback raised, if it was not the parser itself
        if isinstance(reason, RequestHeadRejected):
            self._refuse(reason.code, reason.detail)
        else:
            self._refuse("malformed_request", "the request is not valid HTTP/1.1")

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
            self.flow.close()
            return
        self.transport.write(refusal_bytes(code, detail, (self.client or ("-",))[0]))
        # Closing now would reset a connection that is still sending, and the reset can overtake the
        # answer.
        self._deaf = True
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(_LINGER_S, self.flow.close)

    # The clocks

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
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

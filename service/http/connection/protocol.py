"""uvicorn's HTTP/1.1 protocol, with limits on what one connection can cost.

uvicorn's parser limits neither the size of a request head nor the time it may take to arrive
(docs/decisions/0035). Here both are limited, and so is the number of fields. Whatever the parser
rejects is answered with a problem document. Trailers after a chunked body count against the head's
limit and are dropped, because uvicorn would add them to the head.

One request is handled at a time. What arrives behind it stays unparsed, with reading paused, until
its response is complete. A peer that does not read its responses is disconnected (`flow`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.connection.cycle import ResponseCycle
from service.http.connection.flow import BoundedFlowControl
from service.http.connection.heads import (
    MAX_HEADERS,
    RequestHeadRejected,
    check_head,
    refusal_bytes,
)
from service.http.scope import add_peer, peer_of
from service.http.shedding import Refusal

MAX_HEAD_BYTES: Final = 32_768
_MAX_HEAD_PIECE: Final = 4_096
_MIN_CHUNKED_PIECE: Final = 512  # or a body of empty lines would be parsed four bytes at a time
_LINGER_S: Final = 2.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """Rejects request heads that are too large, too slow or malformed, and closes the connection."""

    flow: BoundedFlowControl
    cycle: ResponseCycle

    def __init__(
        self,
        *args: Any,
        header_timeout_s: float,
        on_refused: Callable[[str], None] = lambda _: None,
        shed: Callable[[Any], Refusal | None] = lambda _: None,
        **kwargs: Any,
    ) -> None:
        """Creates the protocol of one connection.

        `on_refused` is called with the error code of each head that is refused here. `shed` is called with
        the scope of each request, and returns its refusal if there is no room for it.
        """
        super().__init__(*args, **kwargs)
        self._header_timeout_s = header_timeout_s
        self._on_refused = on_refused
        self._shed = shed
        self._head_timer: asyncio.TimerHandle | None = None

        self._unparsed = b""  # received, but behind the request being handled
        self._field_bytes = 0  # since the last body byte or the end of the last head
        self._body_left = 0  # of a body with Content-Length
        self._chunked = False
        self._in_head = True
        self._head_started = False  # its first byte has arrived
        self._ignore_input = False  # drop what still arrives, but answer accepted requests
        self._head_without_upgrade = b""  # the current head, to be parsed again

        # The request being answered. uvicorn's `cycle` is the newest one of a pipeline.
        self._active: ResponseCycle | None = None
        # In place of a cycle: a request that was shed, until its refusal is sent.
        self._refusal: Refusal | None = None
        self._refusal_waits = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = BoundedFlowControl(transport, self._header_timeout_s)
        self._start_head_timer()  # a connection that sends nothing is closed too

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self.flow.stop()
        self._unset_keepalive_if_required()
        self._unparsed = b""
        self.pipeline.clear()
        if self._refusal is not None:
            self._refusal.abandon()
            self._refusal = None

        # uvicorn would tell only the newest request of a pipeline.
        if self._active is not None:
            self._active.disconnected = True
            self._active.message_event.set()
            if peer := peer_of(self._active.scope):
                peer.disconnect()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        # Not `transport.close()`: the peer might still be reading its last response.
        self.flow.close()

    # Input

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        self._parse()

    def _parse(self) -> None:
        if not self._unparsed:
            return  # an earlier call took it, and may have started the keep-alive timer

        self._unset_keepalive_if_required()
        if not self.transport.is_closing():
            self.flow.release()  # first, because the body parsed below may pause reading again

        data, start = self._unparsed, 0
        while start < len(data) and not self._stopped_reading():
            if self._in_head and self._responding():
                break  # the next request waits for this response
            start += self._parse_piece(data, start)

        self._unparsed = b"" if self._stopped_reading() else data[start:]
        if self._unparsed:
            self.flow.hold()
        if self._refusal is not None and not self._refusal_waits:
            # Not when the head was complete: the body has often arrived with it.
            self._refusal_waits = True
            self._refusal.when_due(self._send_refusal, self.transport.is_closing)

    def _stopped_reading(self) -> bool:
        return self._ignore_input or self.transport.is_closing()

    def _parse_piece(self, data: bytes, start: int) -> int:
        """Parses a piece that ends with the current request, if possible; returns its length."""
        if self._body_left:
            return self._feed(memoryview(data)[start : start + self._body_left])

        room = MAX_HEAD_BYTES - self._field_bytes
        if room <= 0:
            self._refuse("headers_too_large", f"the limit is {MAX_HEAD_BYTES:,} bytes")
            return 0

        # Heads and chunked bodies end with an empty line, so a piece ends at the first one. An empty
        # line elsewhere does no harm: the parser accepts a request in any pieces.
        first = start if self._in_head else start + _MIN_CHUNKED_PIECE
        last = start + (min(room, _MAX_HEAD_PIECE) if self._in_head else room)
        empty_line = data.find(b"\r\n\r\n", first, last)
        piece = data[start : last if empty_line < 0 else empty_line + 4]
        self._field_bytes += len(piece)
        taken = self._feed(piece)
        # After parsing, because most heads arrive in one piece.
        began = self._field_bytes > 0 or self._head_started
        if self._in_head and began and self._head_timer is None:
            self._start_head_timer()
        return taken

    def _feed(self, piece: bytes | memoryview) -> int:
        """Feeds the parser; returns how many bytes it took."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            taken = int(upgrade.args[0])
        except httptools.HttpParserError as error:
            self._refuse_unparsed(error.__context__)  # what one of the callbacks below raised
            return len(piece)
        else:
            return len(piece)

        # The parser takes the body after an upgrade for another protocol and has no option to ignore
        # the upgrade. So a new parser gets the same head without it.
        head, self._head_without_upgrade = self._head_without_upgrade, b""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(head)
        return taken

    def _refuse_unparsed(self, cause: BaseException | None) -> None:
        if isinstance(cause, RequestHeadRejected):
            self._refuse(cause.code, cause.detail)
        elif cause is None or isinstance(cause, httptools.HttpParserError | ValueError):
            self._refuse("malformed_request", "the request is not valid HTTP/1.1")
        else:
            self.logger.error("unhandled error", exc_info=cause)
            self._refuse("internal_error", "the service failed")

    # The parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._head_started = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # a trailer
            return
        # httptools leaves the blanks behind a value, which are no part of it (RFC 9112, 5.1).
        name, value = name.lower(), value.rstrip(b" \t")
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > MAX_HEADERS:
            raise RequestHeadRejected(
                "headers_too_large", f"the limit is {MAX_HEADERS} header fields"
            )

    def on_headers_complete(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version()
        check_head(method, version, self.headers)
        if self.parser.should_upgrade():
            # `_feed` parses this head again without the upgrade, which ends here the next time.
            kept = [(name, value) for name, value in self.headers if name != b"upgrade"]
            lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
            lines += [b"%s: %s" % field for field in kept]
            self._head_without_upgrade = b"\r\n".join((*lines, b"", b""))
            return

        # First: if the length or the path is malformed, this is still a head and can be refused.
        fields = dict(self.headers)
        body_left = int(fields.get(b"content-length", 0))  # ValueError above 4,300 digits
        self._begin_request(method, version)
        self._stop_head_timer()
        self._in_head = False
        self._field_bytes = 0
        self._body_left = body_left
        self._chunked = b"transfer-encoding" in fields

    def _begin_request(self, method: bytes, version: str) -> None:
        url = httptools.parse_url(self.url)
        if url.path is None:
            raise RequestHeadRejected("malformed_request", "the request's target has no path")
        path = url.path.decode("ascii")
        self.scope["method"] = method.decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = self.root_path + (unquote(path) if "%" in path else path)
        self.scope["raw_path"] = self.root_path.encode("ascii") + url.path
        self.scope["query_string"] = url.query or b""

        busy = self._responding()
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        # A peer that does not read its responses has to wait, as it does in a cycle.
        if not (busy or self.expect_100_continue or self.flow.write_paused):
            self._refusal = self._shed(self.scope)
            if self._refusal is not None:
                self._refusal.keep_alive = keep_alive
                self._refusal_waits = False
                self._active = None
                self.cycle = None  # type: ignore[assignment]  # as before the first request
                return

        add_peer(self.scope)
        self.cycle = ResponseCycle(
            close=self._close_after_response,
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        if busy:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self._start_asgi_task(self.cycle, self.app)

    def on_body(self, body: bytes) -> None:
        self._field_bytes = 0  # the limit is for what arrives between two chunks
        self._body_left = max(0, self._body_left - len(body))
        cycle = self._current()
        if cycle is None or cycle.response_complete:
            return

        cycle.add_body(body)
        more = self._body_left or self._chunked
        if more and cycle.n_unread > HIGH_WATER_LIMIT:
            self.flow.pause_reading()  # until the application reads the body

    def on_message_complete(self) -> None:
        if self._head_without_upgrade:
            return
        if (cycle := self._current()) is not None:
            if peer := peer_of(cycle.scope):
                peer.body_complete = True
            super().on_message_complete()
        self._stop_head_timer()
        self._in_head = True
        self._head_started = False
        self._field_bytes = self._body_left = 0

        if not self._keeps_alive():
            self._ignore_input = True  # the client announced that this was its last request
        elif not self._responding():
            # uvicorn stopped its keep-alive timer when the rest of the body arrived.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # Responses

    def _start_asgi_task(self, cycle: ResponseCycle, app: ASGI3Application) -> None:  # type: ignore[override]
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self.flow.close()
            return

        if self._unparsed:
            # Not now: the application might still be running, and recursion would be as deep as the
            # pipeline is long.
            self.loop.call_soon(self._parse)
        if not (self._in_head or self._responding() or self._ignore_input):
            # The application did not read the body to its end. It must end soon, or we close.
            self._start_head_timer()

    def _current(self) -> ResponseCycle | None:
        return self.cycle  # None before the first request, and if the newest was shed

    def _responding(self) -> bool:
        if self._refusal is not None:
            return True
        cycle = self._current()
        return cycle is not None and not cycle.response_complete

    def _keeps_alive(self) -> bool:
        newest = self._current() or self._refusal
        return newest is None or newest.keep_alive

    def _stop_keep_alive(self) -> None:
        """Lets the response to the newest request close the connection."""
        if newest := self._current() or self._refusal:
            newest.keep_alive = False

    def _send_refusal(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is None:
            return
        try:
            response = refusal.response(self.server_state.default_headers)
        except Exception:
            self.transport.abort()  # no timer would
            raise
        self.transport.write(response)
        if refusal.keep_alive:
            self.on_response_complete()
        else:
            self._close_after_response()

    def shutdown(self) -> None:
        if self._responding():
            self._stop_keep_alive()
        else:
            self.transport.close()

    def _refuse(self, code: str, detail: str) -> None:
        """Responds with a problem, if that is still possible, and closes the connection."""
        self._stop_head_timer()
        if self.transport.is_closing():
            return

        if not self._responding():
            # Nothing to respond to: the rest of an answered request, or an idle connection.
            if not self._in_head or (code == "request_timeout" and not self._head_started):
                self.flow.close()
                return
            self._on_refused(code)
        elif self._in_head or self.pipeline or self._refusal or self.cycle.response_started:
            # Earlier requests were accepted. The last response to them closes the connection.
            if self._in_head:
                self._on_refused(code)
            self._stop_keep_alive()
            self._ignore_input = True
            return
        else:  # the malformed body belongs to the request being handled
            self.cycle.disconnected = True
            self.cycle.message_event.set()

        client = (self.client or ("-",))[0]
        to_head = bool(self.url) and self.parser.get_method() == b"HEAD"
        self.transport.write(refusal_bytes(code, detail, client, to_head=to_head))
        self._linger()

    def _close_after_response(self) -> None:
        if self._in_head or self.pipeline:
            self.flow.close()
        else:  # the body is still arriving
            self._linger()

    def _linger(self) -> None:
        # Closing now would reset a connection that is still sending, and the reset can overtake the
        # response.
        self._ignore_input = True
        if self.transport.can_write_eof():  # TLS cannot close one direction
            self.transport.write_eof()
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(_LINGER_S, self.flow.close)

    # The timer of a head, and of an unread body

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(self._header_timeout_s, self._head_timed_out)

    def _head_timed_out(self) -> None:
        if self._responding():
            self._start_head_timer()  # not the peer's fault: reading may have been paused
        else:
            self._refuse("request_timeout", "the request head did not arrive in time")

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

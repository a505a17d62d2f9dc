"""One request and its response on a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle


class ResponseCycle(RequestResponseCycle):
    """uvicorn's cycle, but it copies no body and writes a whole response at once.

    uvicorn writes the head and the body one after the other, which costs two system calls and two
    packets.
    """

    def __init__(self, close: Callable[[], None], **parts: Any) -> None:
        """`close` closes the connection after the last response."""
        super().__init__(**parts)
        self._close = close
        self._pieces: list[bytes] = []  # of the body, received and not read yet
        self.n_unread = 0  # their bytes
        self._start: Any = None  # the head of the response, until its body comes

    def add_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.n_unread += len(piece)
        self.message_event.set()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if message["type"] == "http.request":
            message["body"] = b"".join(self._pieces)  # the same object if there is one piece
            self._pieces.clear()
            self.n_unread = 0
        return message

    async def send_500_response(self) -> None:
        self._start = None  # a head that was held back and never written
        await super().send_500_response()

    async def send(self, message: ASGISendEvent) -> None:
        if self._start is None and not self.response_started:
            self._start = message
            return

        start, self._start = self._start, None
        if start is not None:
            body: Any = message.get("body", b"")
            whole = not message.get("more_body", False) and self._head_of(start, len(body))
            if whole:
                await self._send_whole(whole + body)
                return
            await super().send(start)
        await super().send(message)

    def _head_of(self, start: Any, n_bytes: int) -> bytes | None:
        """Returns the head of a response with a body of this length, None if uvicorn should send it."""
        if start["type"] != "http.response.start" or self.scope["method"] == "HEAD":
            return None

        headers = [*self.default_headers, *start.get("headers", ())]
        fields = dict(headers)
        if fields.get(b"content-length") != b"%d" % n_bytes or b"transfer-encoding" in fields:
            return None
        if b"close" in fields.get(b"connection", b""):
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append((b"connection", b"close"))

        lines = [b"%s: %s\r\n" % field for field in headers]
        head = b"".join((STATUS_LINE[start["status"]], *lines, b"\r\n"))
        # uvicorn refuses header values with line breaks. So does this, by leaving them to uvicorn.
        clean = head.count(b"\n") == head.count(b"\r") == len(headers) + 2
        return head if clean else None

    async def _send_whole(self, response: bytes) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return

        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(response)
        self.message_event.set()
        if not self.keep_alive:
            self._close()
        self.on_response()

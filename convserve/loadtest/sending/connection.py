"""One non-blocking client connection: opens it, with TLS if asked for, sends requests, reads answers."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Final

import httptools

_SEND_BUFFER_BYTES: Final = 1 << 21  # takes a whole request, so that one `send` is usually enough
_RECEIVE_BYTES: Final = 1 << 16
_MAX_ANSWER_BYTES: Final = 16 << 20
_FRAMING: Final = {14: b"content-length", 17: b"transfer-encoding"}
_OPENING: Final = (errno.EINPROGRESS, errno.EWOULDBLOCK)


class AnswerTooLarge(ValueError):
    """The answer has more bytes than any list of classes needs."""


class NotOpened(OSError):
    """The connection was not made: refused, unreachable, or the TLS handshake failed."""


class Answer:
    """An HTTP response as it arrives; httptools calls its methods."""

    __slots__ = (
        "_parts",
        "body",
        "code",
        "done",
        "framed",
        "keep_alive",
        "location",
        "n_bytes",
        "parser",
        "retry_after",
        "status",
        "timing",
    )

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.reset()

    def reset(self) -> None:
        self.status = 0
        self.body = b""
        self._parts: list[bytes] = []
        self.n_bytes = 0
        self.code = self.timing = self.location = b""
        self.retry_after = self.done = self.framed = False
        self.keep_alive = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # Compared by length first: most headers are none of these.
        n = len(name)
        if n == 13 and name.lower() == b"server-timing":
            self.timing = value
        elif n == 12 and name.lower() == b"x-error-code":
            self.code = value
        elif n == 11 and name.lower() == b"retry-after":
            self.retry_after = True
        elif n == 8 and name.lower() == b"location":
            self.location = value
        elif n in _FRAMING and name.lower() == _FRAMING[n]:
            self.framed = True

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self.n_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.status < 200:  # 100 Continue and its like come before the answer
            self.reset()
            return
        self.keep_alive = self.parser.should_keep_alive()
        self.end()

    def end(self) -> None:
        self.body = b"".join(self._parts)
        self.done = True


class Connection:
    """A socket and the answer that is being read from it.

    Methods raise OSError when the connection has failed. `wants_write` says whether to wait for
    that event, besides incoming bytes.
    """

    __slots__ = (
        "_context",
        "_host",
        "_opened",
        "_sock",
        "_tls",
        "_to_send",
        "answer",
        "fd",
        "used",
    )

    def __init__(
        self, family: int, address: tuple[object, ...], context: ssl.SSLContext | None, host: str
    ) -> None:
        self._context, self._host = context, host
        self._sock = socket.socket(family)
        self._tls: ssl.SSLSocket | None = None
        self.fd = self._sock.fileno()
        self._opened = False
        self._to_send = memoryview(b"")
        self.answer = Answer()
        self.used = False  # for a request before this one

        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            self._sock.setblocking(False)
            code = self._sock.connect_ex(address)
            if code not in (0, *_OPENING):
                raise NotOpened(code, os.strerror(code))
        except OSError:
            self._sock.close()
            raise

    @property
    def wants_write(self) -> bool:
        return bool(self._to_send) if self._opened else self._tls is None

    @property
    def sent(self) -> bool:
        return self._opened and not self._to_send

    def send(self, request: memoryview) -> None:
        """Takes the next request, and sends as much of it as the socket takes."""
        self._to_send = request
        self.answer.reset()
        self.write()

    def write(self) -> None:
        """Goes on with opening and sending."""
        if not self._opened and not self._open():
            return
        if self._to_send:
            sock = self._tls or self._sock
            try:
                self._to_send = self._to_send[sock.send(self._to_send) :]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return

    def read(self) -> bool:
        """Reads what is there; returns whether the answer is complete.

        Raises:
            ConnectionError: the server closed the connection before the answer was complete.
            ValueError: what came is not HTTP, or is too large.
        """
        if not self._opened:
            self.write()
            return False

        sock = self._tls or self._sock
        while True:
            try:
                received = sock.recv(_RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            if not received:
                return self._on_end()
            try:
                self.answer.parser.feed_data(received)
            except httptools.HttpParserError as error:
                raise ValueError(f"not HTTP: {received[:80]!r}") from error
            if self.answer.done:
                return True
            if self.answer.n_bytes > _MAX_ANSWER_BYTES:
                raise AnswerTooLarge(f"more than {_MAX_ANSWER_BYTES >> 20} MB")
            # No event comes for bytes that TLS has decrypted already. Otherwise others have their
            # turn: a fast server could send for ever.
            if self._tls is None or not self._tls.pending():
                return False

    def close(self) -> None:
        (self._tls or self._sock).close()

    def _open(self) -> bool:
        if self._tls is None:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise NotOpened(code, os.strerror(code))
            try:
                self._sock.getpeername()
            except OSError:
                return False  # still opening
            if self._context is not None:
                self._tls = self._context.wrap_socket(
                    self._sock, server_hostname=self._host, do_handshake_on_connect=False
                )

        if self._tls is not None:
            try:
                self._tls.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            except ssl.SSLError as error:
                why = (error.reason or str(error)).replace("_", " ").lower()
                raise NotOpened(errno.EPROTO, f"TLS handshake failed: {why}") from error

        self._opened = True
        return True

    def _on_end(self) -> bool:
        # Without a length and without chunks, the end of the connection ends the body.
        answer = self.answer
        if answer.status >= 200 and not answer.framed:
            answer.keep_alive = False
            answer.end()
            return True
        raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")

"""An application behind the HTTP protocol that records its requests, and a client of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from uvicorn.server import ServerState

from service.http.connection.protocol import BoundedHttpProtocol

GET = b"GET /get HTTP/1.1\r\nHost: t\r\n\r\n"
CHUNKED = b"POST /read HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"POST /get HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n"
LONG_CHUNKED = CHUNKED.replace(b"/read", b"/get")
NEVER_S = 600


class Recorder:
    """Reads the body at /read, waits at /wait, sends 10 MB at /big, and records every request."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        self.bodies: list[bytes] = []
        self.disconnects = 0
        self.refused: list[str] = []
        self.go_on = asyncio.Event()
        self.waiting = asyncio.Event()
        self.newest: list[bool] = []
        self.protocol: WatchedProtocol

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        self.paths.append(request.url.path)
        self.newest.append(self.protocol.cycle.scope is scope)
        self.headers |= dict(request.headers.items())

        if request.url.path == "/read":
            try:
                self.bodies.append(await request.body())
            except ClientDisconnect:
                self.disconnects += 1
                return
        if request.url.path == "/wait":
            await receive()
            self.waiting.set()
            await self.go_on.wait()

        if request.url.path == "/big":
            await Response(b"x" * 10_000_000)(scope, receive, send)
        else:
            await PlainTextResponse("done")(scope, receive, send)


class WatchedProtocol(BoundedHttpProtocol):
    """Sets an event when the connection is lost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.send = writer.write

    async def answers(self) -> list[int | str]:
        """Reads to the end; returns the status of every response, or the code of a problem."""
        text = (await self._reader.read()).decode()
        found = re.findall(r"HTTP/1\.1 (\d+).*?\r\n\r\n(done|{.*?}|)", text, re.DOTALL)
        return [json.loads(b)["code"] if b.startswith("{") else int(s) for s, b in found]

    async def until(self, text: bytes) -> None:
        await self._reader.readuntil(text)


@asynccontextmanager
async def connected(
    app: Recorder,
    header_timeout_s: float = NEVER_S,
    keep_alive_s: float = NEVER_S,
    shed: Callable[[Any], Any] = lambda _: None,
) -> AsyncIterator[Client]:
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
    config.timeout_keep_alive = keep_alive_s  # type: ignore[assignment]

    def protocol() -> WatchedProtocol:
        app.protocol = WatchedProtocol(
            config,
            ServerState(),
            {},
            header_timeout_s=header_timeout_s,
            on_refused=app.refused.append,
            shed=shed,
        )
        return app.protocol

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        server.close()
        # Or a transport that is open when the event loop ends would fail a later test with its warning.
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await app.protocol.lost.wait()
        app.protocol.transport.abort()
        await app.protocol.lost.wait()


CLOSE = b"GET /close HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"


def declared(path: bytes, body: bytes, *fields: bytes) -> bytes:
    lines = (b"POST %s HTTP/1.1" % path, b"Host: t", *fields, b"Content-Length: %d" % len(body))
    return b"\r\n".join((*lines, b"", body))

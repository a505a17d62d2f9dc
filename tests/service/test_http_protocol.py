"""The protocol against an application that tells what it was given; see also tests/e2e."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from service import http_protocol
from service.http_protocol import MAX_HEAD_BYTES, MAX_HEADERS, BoundedHttpProtocol

pytestmark = pytest.mark.anyio

GET = b"GET /get HTTP/1.1\r\nHost: t\r\n\r\n"
CHUNKED = b"POST /read HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"POST /get HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n"
NEVER_S = 600


class Recorder:
    """An application that reads bodies under /read, waits under /wait and writes down who asked."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.headers: list[str] = []
        self.bodies: list[bytes] = []
        self.left = 0
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        self.paths.append(request.url.path)
        self.headers += [name for name, _ in request.headers.items()]
        if request.url.path == "/read":
            try:
                self.bodies.append(await request.body())
            except ClientDisconnect:
                self.left += 1
                return
        if request.url.path == "/wait":
            await self.go_on.wait()
        await PlainTextResponse("done")(scope, receive, send)


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.send = writer.write

    async def answers(self) -> list[int | str]:
        """Reads to the end: the status of every answer, for a problem its code instead."""
        text = (await self._reader.read()).decode()
        found = re.findall(r"HTTP/1\.1 (\d+).*?\r\n\r\n(done|{.*?}|)", text, re.DOTALL)
        return [json.loads(b)["code"] if b.startswith("{") else int(s) for s, b in found]

    async def until(self, text: bytes) -> None:
        await self._reader.readuntil(text)


@asynccontextmanager
async def connected(app: Any, header_timeout_s: float = NEVER_S) -> AsyncIterator[Peer]:
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
    protocol: Callable[..., asyncio.Protocol] = partial(
        BoundedHttpProtocol, config, ServerState(), {}, header_timeout_s=header_timeout_s
    )
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        server.close()


CLOSE = b"GET /close HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"


async def test_protocol_requests_answered_in_order():
    app = Recorder()
    async with connected(app) as peer:
        peer.send(GET + CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + CLOSE)
        answers = await peer.answers()

    assert (answers, app.paths) == ([200, 200, 200], ["/get", "/read", "/close"])
    assert app.bodies == [b"abc"]


@pytest.mark.parametrize("extra", [0, 1])
async def test_protocol_field_count_is_limited(extra):
    app = Recorder()
    fields = b"".join(b"x-%d: y\r\n" % number for number in range(MAX_HEADERS - 1 + extra))
    async with connected(app) as peer:
        peer.send(b"GET / HTTP/1.1\r\nConnection: close\r\n" + fields + b"\r\n" + GET)
        answers = await peer.answers()

    assert answers == (["headers_too_large"] if extra else [200, 200][:1])


@pytest.mark.parametrize("excess", [-100, 1])
async def test_protocol_head_size_is_limited(excess):
    app = Recorder()
    head = b"GET / HTTP/1.1\r\nConnection: close\r\nx: "
    async with connected(app) as peer:
        peer.send(head + b"y" * (MAX_HEAD_BYTES - len(head) - 4 + excess) + b"\r\n\r\n")
        answers = await peer.answers()

    assert answers == (["headers_too_large"] if excess > 0 else [200])


async def test_protocol_trailers_are_dropped():
    app = Recorder()
    async with connected(app) as peer:
        peer.send(CHUNKED + b"3\r\nabc\r\n0\r\nx-trailer: y\r\n\r\n" + CLOSE)
        answers = await peer.answers()

    assert (answers, app.bodies) == ([200, 200], [b"abc"])
    assert "x-trailer" not in app.headers


async def test_protocol_trailers_are_limited():
    app = Recorder()
    async with connected(app) as peer:
        peer.send(CHUNKED + b"3\r\nabc\r\n0\r\nx: " + b"y" * 2 * MAX_HEAD_BYTES)
        answers = await peer.answers()

    assert (answers, app.bodies, app.left) == (["headers_too_large"], [], 1)


@pytest.mark.parametrize("body", [b"zz\r\n", b"3\r\nabcd\r\n", b"3\nabc\n"])
async def test_protocol_malformed_body_refused_and_its_reader_told(body):
    app = Recorder()
    async with connected(app) as peer:
        peer.send(CHUNKED + body + GET)
        answers = await peer.answers()

    assert (answers, app.paths, app.left) == (["malformed_request"], ["/read"], 1)


async def test_protocol_malformed_body_behind_others_lets_them_finish():
    app = Recorder()
    async with connected(app) as peer:
        peer.send(
            GET + LONG.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked") + b"zz"
        )
        peer.send(b"\r\n" + GET)
        answers = await peer.answers()

    assert (answers, app.paths) == ([200, 200], ["/get", "/get"])


async def test_protocol_malformed_request_behind_a_good_one_lets_it_finish():
    app = Recorder()
    async with connected(app) as peer:
        peer.send(GET + b"hello there\r\n\r\n" + GET)
        answers = await peer.answers()

    assert (answers, app.paths) == ([200], ["/get"])


async def test_protocol_malformed_rest_of_answered_request_closes_silently():
    app = Recorder()
    async with connected(app) as peer:
        peer.send(CHUNKED.replace(b"/read", b"/get"))
        await peer.until(b"done")
        peer.send(b"zz\r\n" + GET)

        assert (await peer.answers(), app.paths) == ([], ["/get"])


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /get\r\n\r\n",
        b"GET http://t HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01",
        b"CONNECT t:1 HTTP/1.1\r\n\r\n",
    ],
    ids=["http_0.9", "no_path", "tls", "connect"],
)
async def test_protocol_malformed_head_refused(sent):
    app = Recorder()
    async with connected(app) as peer:
        peer.send(sent + GET)

        assert (await peer.answers(), app.paths) == (["malformed_request"], [])


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", []),
        (b"\r\n", []),
        (b"GET /ge", ["request_timeout"]),
        (GET + b"GET /ge", [200, "request_timeout"]),
        (LONG, [200]),
        (LONG + b"x", [200]),
        (LONG + b"x" * 1000 + b"G", [200, "request_timeout"]),
    ],
    ids=["nothing", "line", "half_head", "second_half_head", "no_body", "half_body", "third"],
)
async def test_protocol_peer_that_stops_is_closed(sent, expected):
    async with connected(Recorder(), header_timeout_s=0.05) as peer:
        peer.send(sent)

        assert await peer.answers() == expected


async def test_protocol_peer_that_sends_only_empty_lines_is_closed():
    async with connected(Recorder(), header_timeout_s=0.05) as peer:
        peer.send(GET)
        await peer.until(b"done")
        peer.send(b"\r\n")

        assert await peer.answers() == []


async def test_protocol_half_head_never_cuts_an_answer_short(monkeypatch):
    """The clock runs out while the first request is being answered, and begins again."""
    app = Recorder()
    timed_out = asyncio.Event()
    give_up = BoundedHttpProtocol._head_timed_out

    def announce_and_give_up(protocol: BoundedHttpProtocol) -> None:
        timed_out.set()
        give_up(protocol)

    monkeypatch.setattr(BoundedHttpProtocol, "_head_timed_out", announce_and_give_up)
    async with connected(app, header_timeout_s=0.05) as peer:
        peer.send(GET.replace(b"/get", b"/wait") + b"GET /ge")
        await timed_out.wait()
        app.go_on.set()

        assert await peer.answers() == [200, "request_timeout"]


async def test_protocol_refused_peer_that_goes_on_sending_is_cut_off(monkeypatch):
    monkeypatch.setattr(http_protocol, "_LINGER_S", 0.05)
    app = Recorder()
    async with connected(app) as peer:
        peer.send(b"hello there\r\n\r\n")
        peer.send(GET * 100)

        assert (await peer.answers(), app.paths) == (["malformed_request"], [])

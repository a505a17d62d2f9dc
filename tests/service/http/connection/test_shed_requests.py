"""Requests that the protocol refuses without its application, and what arrives with them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.http.connection import protocol as http_protocol
from tests.service.http.connection.recording import (
    CLOSE,
    GET,
    LONG_CHUNKED,
    NEVER_S,
    Recorder,
    connected,
    declared,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio


class StubRefusal:
    """Sends its response when the test says so."""

    def __init__(self) -> None:
        self.keep_alive = True
        self.abandoned = 0
        self.due: list[Any] = []
        self.waits = asyncio.Event()

    def when_due(self, send: Any, is_gone: Any) -> None:
        self.due.append((send, is_gone))
        self.waits.set()

    def send(self) -> None:
        ((send, is_gone),) = self.due
        assert not is_gone()
        send()

    def abandon(self) -> None:
        self.abandoned += 1

    def response(self, _default_headers: Any) -> bytes:
        closing = b"" if self.keep_alive else b"connection: close\r\n"
        return b"HTTP/1.1 503 Full\r\ncontent-length: 0\r\n" + closing + b"\r\n"


class AtOnce(StubRefusal):
    def when_due(self, send: Any, is_gone: Any) -> None:
        super().when_due(send, is_gone)
        self.send()


class Shedding:
    """Sheds requests to /full."""

    def __init__(self, kind: type[StubRefusal] = AtOnce) -> None:
        self.kind = kind
        self.refusals: list[Any] = []

    def __call__(self, scope: Any) -> Any:
        if scope["path"] != "/full":
            return None
        self.refusals.append(self.kind())
        return self.refusals[-1]

    async def waiting(self) -> Any:
        await until(lambda: bool(self.refusals))
        await self.refusals[0].waits.wait()
        return self.refusals[0]


def full(fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST /full HTTP/" + version + b"\r\nHost: t\r\n" + fields + b"\r\n"


LENGTH = b"Content-Length: 10\r\n"
IN_CHUNKS = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [full()],
        [full(LENGTH) + b"0123456789"],
        [full(LENGTH), b"0123456789"],
        [full(LENGTH) + b"01234", b"56", b"789"],
        [full(LENGTH)[:30], full(LENGTH)[30:] + b"0", b"123456789"],
        [full(IN_CHUNKS) + b"3\r\nabc\r\n0\r\n\r\n"],
        [full(IN_CHUNKS), b"3\r\nab", b"c\r\n0\r\n", b"\r\n"],
    ],
)
async def test_protocol_request_that_is_shed_never_reaches_the_application(pieces):
    app, shed = Recorder(), Shedding()
    async with connected(app, shed=shed) as client:
        for piece in pieces:
            client.send(piece)
            await asyncio.sleep(0.01)
        await client.until(b"\r\n\r\n")
        client.send(GET + full(LENGTH) + b"0123456789" + CLOSE)
        answers = await client.answers()

    assert (answers, len(shed.refusals)) == ([200, 503, 200], 2)
    assert app.paths == ["/get", "/close"]


@pytest.mark.parametrize("behind", [b"", GET, full()], ids=["nothing", "request", "shed"])
async def test_protocol_requests_behind_a_refusal_wait_for_it(behind):
    app, shed = Recorder(), Shedding(StubRefusal)
    async with connected(app, shed=shed) as client:
        client.send(full(LENGTH) + b"0123456789" + behind)
        refusal = await shed.waiting()
        await asyncio.sleep(0.02)
        before = list(app.paths), len(shed.refusals)
        shed.kind = AtOnce
        refusal.send()
        client.send(CLOSE)
        answers = await client.answers()

    assert before == ([], 1)
    assert answers == [503, *{b"": [], GET: [200]}.get(behind, [503]), 200]


@pytest.mark.parametrize("kind", [AtOnce, StubRefusal])
@pytest.mark.parametrize(
    "request_",
    [full(b"Connection: close\r\n"), full(version=b"1.0"), full(b"Connection: close\r\n" + LENGTH)],
)
async def test_protocol_connection_closes_after_the_refusal_of_its_last_request(kind, request_):
    app, shed = Recorder(), Shedding(kind)
    async with connected(app, shed=shed) as client:
        client.send(request_)
        refusal = await shed.waiting()
        if kind is StubRefusal:
            refusal.send()
        answers = await client.answers()

    assert answers == [503]


async def test_protocol_refusal_of_a_complete_last_request_closes_at_once(monkeypatch):
    """A client that reads to the end would wait, and over TLS the end comes with the close."""
    monkeypatch.setattr(http_protocol, "_LINGER_S", NEVER_S)
    app, shed = Recorder(), Shedding()
    async with connected(app, shed=shed) as client:
        client.send(full(b"Connection: close\r\n" + LENGTH) + b"0123456789")
        await shed.waiting()
        await app.protocol.lost.wait()

        assert await client.answers() == [503]


async def test_protocol_client_that_waits_for_100_is_not_shed():
    app, shed = Recorder(), Shedding()
    async with connected(app, shed=shed) as client:
        client.send(full(b"Expect: 100-continue\r\n" + LENGTH))
        await client.until(b"done")

    assert (app.paths, shed.refusals) == (["/full"], [])


async def test_protocol_client_that_leaves_abandons_its_refusal():
    app, shed = Recorder(), Shedding(StubRefusal)
    async with connected(app, shed=shed) as client:
        client.send(full())
        refusal = await shed.waiting()
    await app.protocol.lost.wait()

    ((send, is_gone),) = refusal.due
    assert (refusal.abandoned, is_gone()) == (1, True)
    send()  # does nothing


async def test_protocol_shutdown_sends_the_refusal_and_closes():
    app, shed = Recorder(), Shedding(StubRefusal)
    async with connected(app, shed=shed) as client:
        client.send(full())
        refusal = await shed.waiting()
        app.protocol.shutdown()
        refusal.send()
        answers = await client.answers()

    assert answers == [503]


async def test_protocol_malformed_rest_of_a_shed_request_closes_after_the_refusal():
    app, shed = Recorder(), Shedding(StubRefusal)
    async with connected(app, shed=shed) as client:
        client.send(full(IN_CHUNKS) + b"x\r\n" + GET)
        refusal = await shed.waiting()
        refusal.send()
        answers = await client.answers()

    assert (answers, app.paths, app.refused) == ([503], [], [])


@pytest.mark.parametrize(
    ("sent", "timeouts"),
    [(b"0", {"header_timeout_s": 0.1}), (b"0123456789", {"keep_alive_s": 0.1})],
    ids=["slow", "idle"],
)
async def test_protocol_connection_that_sends_nothing_after_a_refusal_is_closed(sent, timeouts):
    app, shed = Recorder(), Shedding()
    async with connected(app, shed=shed, **timeouts) as client:
        client.send(full(LENGTH) + sent)
        answers = await client.answers()

    assert answers == [503]


async def test_protocol_client_that_does_not_read_is_not_shed():
    app, shed = Recorder(), Shedding()
    async with connected(app, shed=shed) as client:
        app.protocol.flow.pause_writing()
        client.send(full())
        await until(lambda: app.paths == ["/full"])
        app.protocol.flow.resume_writing()
        await client.until(b"done")

    assert shed.refusals == []


# Requests that the parser takes in one piece with a shed one, like those of a pipeline behind short chunks

LAST_CHUNK = b"0\r\n\r\n"


@pytest.mark.parametrize("kind", [AtOnce, StubRefusal])
async def test_protocol_requests_in_one_piece_with_a_shed_one_are_answered(kind):
    app, shed = Recorder(), Shedding(kind)
    async with connected(app, shed=shed) as client:
        client.send(full(IN_CHUNKS) + LAST_CHUNK + declared(b"/read", b"abc") + GET + CLOSE + GET)
        refusal = await shed.waiting()
        if kind is StubRefusal:
            refusal.send()
        answers = await client.answers()

    assert (answers, app.paths) == ([503, 200, 200, 200], ["/read", "/get", "/close"])
    assert app.bodies == [b"abc"]


async def test_protocol_body_that_arrives_while_a_refusal_waits_before_it_is_kept():
    app, shed = Recorder(), Shedding(StubRefusal)
    async with connected(app, shed=shed) as client:
        client.send(full(IN_CHUNKS) + LAST_CHUNK + declared(b"/read", b"abc")[:-2])
        (await shed.waiting()).send()
        await client.until(b"\r\n\r\n")
        client.send(b"bc" + CLOSE)
        answers = await client.answers()

    assert (answers, app.bodies) == ([200, 200], [b"abc"])


async def test_protocol_malformed_head_in_one_piece_with_a_shed_request_is_counted():
    app, shed = Recorder(), Shedding(StubRefusal)
    async with connected(app, shed=shed) as client:
        client.send(full(IN_CHUNKS) + LAST_CHUNK + GET + b"hello there\r\n\r\n")
        (await shed.waiting()).send()
        answers = await client.answers()

    assert (answers, app.refused) == ([503, 200], ["malformed_request"])


async def test_protocol_shutdown_lets_requests_behind_a_refusal_finish():
    app, shed = Recorder(), Shedding(StubRefusal)
    async with connected(app, shed=shed) as client:
        client.send(full(IN_CHUNKS) + LAST_CHUNK + GET)
        refusal = await shed.waiting()
        app.protocol.shutdown()
        refusal.send()
        answers = await client.answers()

    assert answers == [503, 200]


async def test_protocol_refusal_that_closes_leaves_no_timer_behind():
    app, shed = Recorder(), Shedding(StubRefusal)
    async with connected(app, shed=shed) as client:
        client.send(full(IN_CHUNKS) + LAST_CHUNK + b"GET /half")
        refusal = await shed.waiting()
        head_timer = app.protocol._head_timer
        app.protocol.shutdown()
        refusal.send()

        assert await client.answers() == [503]
    assert head_timer is not None
    assert head_timer.cancelled()


async def test_protocol_idle_connection_after_a_pipeline_that_ends_with_a_refusal_is_closed():
    """Each answer of the pipeline has the rest parsed, and the second time there is none."""
    app, shed = Recorder(), Shedding()
    long = GET.replace(b"Host: t", b"Host: t\r\nx: " + b"y" * 600)
    async with connected(app, keep_alive_s=0.1, shed=shed) as client:
        client.send(LONG_CHUNKED + LAST_CHUNK + GET + long + full())

        assert await client.answers() == [200, 200, 200, 503]


@pytest.mark.parametrize("shed", [lambda _: None, Shedding()], ids=["no", "yes"])
async def test_protocol_length_with_too_many_digits_for_a_number_is_malformed(shed):
    app = Recorder()
    async with connected(app, shed=shed) as client:
        client.send(full(b"Content-Length: " + b"0" * 5000 + b"\r\n"))

        assert await client.answers() == ["malformed_request"]
    assert (app.paths, app.refused) == ([], ["malformed_request"])


class Broken(StubRefusal):
    """A refusal whose response fails."""

    def response(self, _default_headers: Any) -> bytes:
        raise MemoryError


async def test_protocol_refusal_that_fails_closes_the_connection():
    app, shed = Recorder(), Shedding(Broken)
    async with connected(app, shed=shed) as client:
        client.send(full())
        refusal = await shed.waiting()
        with pytest.raises(MemoryError):
            refusal.send()

        assert await client.answers() == []


async def test_protocol_request_that_cannot_be_shed_or_not_is_an_internal_error(caplog):
    def fails(_: Any) -> None:
        raise KeyError("x")

    app = Recorder()
    async with connected(app, shed=fails) as client:
        client.send(full())

        assert await client.answers() == ["internal_error"]
    assert app.refused == ["internal_error"]
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]


@pytest.mark.parametrize("shed", [Shedding(), lambda _: None], ids=["shed", "ordinary"])
async def test_protocol_last_response_is_not_lost_while_the_body_arrives(shed, monkeypatch):
    monkeypatch.setattr(http_protocol, "_LINGER_S", NEVER_S)
    app = Recorder()
    async with connected(app, shed=shed) as client:
        client.send(full(b"Connection: close\r\nContent-Length: 3000000\r\n") + b"x" * 1000)
        await client.until(b"\r\n\r\n")
        for _ in range(30):  # a closed connection would be reset by this
            client.send(b"x" * 100_000)
            await asyncio.sleep(0.001)
        rest = await client.answers()

    assert rest == []
    assert app.paths == ([] if isinstance(shed, Shedding) else ["/full"])


async def test_protocol_last_response_closes_soon_if_the_body_never_ends(monkeypatch):
    monkeypatch.setattr(http_protocol, "_LINGER_S", 0.05)
    app = Recorder()
    async with connected(app) as client:
        client.send(full(b"Connection: close\r\n" + LENGTH) + b"0")
        answers = await client.answers()
        client.send(b"1")
        await app.protocol.lost.wait()

    assert answers == [200]

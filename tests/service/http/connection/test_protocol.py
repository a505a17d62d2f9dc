"""The HTTP protocol with an application that records its requests. See also tests/e2e."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.http.connection import protocol as http_protocol
from service.http.connection.flow import BoundedFlowControl
from service.http.connection.heads import MAX_HEADERS
from service.http.connection.protocol import MAX_HEAD_BYTES
from service.http.peer import while_connected
from service.http.scope import Peer, peer_of
from tests.service.http.connection.recording import (
    CHUNKED,
    CLOSE,
    GET,
    LONG,
    LONG_CHUNKED,
    NEVER_S,
    Recorder,
    connected,
    declared,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def test_protocol_requests_answered_in_order():
    app = Recorder()
    async with connected(app) as client:
        client.send(GET + CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + CLOSE)
        answers = await client.answers()

    assert (answers, app.paths) == ([200, 200, 200], ["/get", "/read", "/close"])
    assert app.bodies == [b"abc"]


@pytest.mark.parametrize("extra", [0, 1])
async def test_protocol_field_count_is_limited(extra):
    app = Recorder()
    fields = b"".join(b"x-%d: y\r\n" % number for number in range(MAX_HEADERS - 2 + extra))
    async with connected(app) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n" + fields + b"\r\n" + GET)
        answers = await client.answers()

    assert answers == (["headers_too_large"] if extra else [200])


@pytest.mark.parametrize("excess", [-100, 1])
async def test_protocol_head_size_is_limited(excess):
    app = Recorder()
    head = b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\nx: "
    async with connected(app) as client:
        client.send(head + b"y" * (MAX_HEAD_BYTES - len(head) - 4 + excess) + b"\r\n\r\n")
        answers = await client.answers()

    assert answers == (["headers_too_large"] if excess > 0 else [200])


@pytest.mark.parametrize("field", ["x:y", "x: y", "x: y ", "x:\ty \t"])
async def test_protocol_blanks_around_a_value_are_no_part_of_it(field):
    app = Recorder()
    async with connected(app) as client:
        client.send(
            b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n%b\r\n\r\n" % field.encode()
        )
        await client.answers()

    assert app.headers["x"] == "y"


async def test_protocol_trailers_are_dropped():
    app = Recorder()
    async with connected(app) as client:
        client.send(CHUNKED + b"3\r\nabc\r\n0\r\nx-trailer: y\r\n\r\n" + CLOSE)
        answers = await client.answers()

    assert (answers, app.bodies) == ([200, 200], [b"abc"])
    assert "x-trailer" not in app.headers


async def test_protocol_trailers_are_limited():
    app = Recorder()
    async with connected(app) as client:
        client.send(CHUNKED + b"3\r\nabc\r\n0\r\nx: " + b"y" * 2 * MAX_HEAD_BYTES)
        answers = await client.answers()

    assert (answers, app.bodies, app.disconnects) == (["headers_too_large"], [], 1)


@pytest.mark.parametrize("body", [b"zz\r\n", b"3\r\nabcd\r\n", b"3\nabc\n"])
async def test_protocol_malformed_body_refused_and_its_reader_disconnected(body):
    app = Recorder()
    async with connected(app) as client:
        client.send(CHUNKED + body + GET)
        answers = await client.answers()

    assert (answers, app.paths, app.disconnects) == (["malformed_request"], ["/read"], 1)


async def test_protocol_malformed_body_lets_earlier_requests_finish():
    app = Recorder()
    async with connected(app) as client:
        client.send(
            GET + LONG.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked") + b"zz"
        )
        client.send(b"\r\n" + GET)
        answers = await client.answers()

    assert (answers, app.paths) == ([200, "malformed_request"], ["/get", "/get"])


async def test_protocol_malformed_request_lets_earlier_requests_finish():
    app = Recorder()
    async with connected(app) as client:
        client.send(GET + b"hello there\r\n\r\n" + GET)
        answers = await client.answers()

    assert (answers, app.paths) == ([200, "malformed_request"], ["/get"])


async def test_protocol_malformed_rest_of_answered_request_closes_silently():
    app = Recorder()
    async with connected(app) as client:
        client.send(CHUNKED.replace(b"/read", b"/get"))
        await client.until(b"done")
        client.send(b"zz\r\n" + GET)

        assert (await client.answers(), app.paths) == ([], ["/get"])


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /get\r\n\r\n",
        b"GET http://t HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET http://t HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "GET /\u00e9 HTTP/1.1\r\nHost: t\r\n\r\n".encode(),
        b"\x16\x03\x01",
        b"CONNECT t:1 HTTP/1.1\r\n\r\n",
    ],
    ids=["http_0.9", "no_path", "no_path_upgrade", "not_ascii", "tls", "connect"],
)
async def test_protocol_malformed_head_refused(sent, caplog):
    app = Recorder()
    async with connected(app) as client:
        client.send(sent + GET)

        assert (await client.answers(), app.paths) == (["malformed_request"], [])
    assert app.refused == ["malformed_request"]
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (GET + b"hello there\r\n\r\n", [200, "malformed_request"]),
        (CHUNKED + b"0\r\nx: y\r\n\r\n" + b"hello there\r\n\r\n", [200]),
    ],
    ids=["behind_an_answer", "while_answering"],
)
async def test_protocol_malformed_head_behind_a_request_is_counted(sent, answers):
    app = Recorder()
    async with connected(app) as client:
        client.send(sent)

        assert await client.answers() == answers
    assert app.refused == ["malformed_request"]


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
async def test_protocol_client_that_stops_sending_is_closed(sent, expected):
    async with connected(Recorder(), header_timeout_s=0.05) as client:
        client.send(sent)

        assert await client.answers() == expected


async def test_protocol_client_that_sends_only_empty_lines_is_closed():
    async with connected(Recorder(), header_timeout_s=0.05) as client:
        client.send(GET)
        await client.until(b"done")
        client.send(b"\r\n")

        assert await client.answers() == []


async def test_protocol_half_head_never_ends_the_response_before_it():
    """The timer of a pipelined head starts after the response to the request before it."""
    app = Recorder()
    async with connected(app, header_timeout_s=0.05) as client:
        client.send(GET.replace(b"/get", b"/wait") + b"GET /ge")
        await app.waiting.wait()
        assert app.protocol._head_timer is None
        app.go_on.set()

        assert await client.answers() == [200, "request_timeout"]


async def test_protocol_refused_client_that_keeps_sending_is_disconnected(monkeypatch):
    monkeypatch.setattr(http_protocol, "_LINGER_S", 0.05)
    app = Recorder()
    async with connected(app) as client:
        client.send(b"hello there\r\n\r\n")
        client.send(GET * 100)

        assert (await client.answers(), app.paths) == (["malformed_request"], [])


# Pipelined requests


async def test_protocol_pipelined_requests_are_parsed_one_at_a_time():
    app = Recorder()
    async with connected(app) as client:
        client.send((GET + declared(b"/get", b"abc")) * 1000 + CLOSE)
        answers = await client.answers()

    assert answers == [200] * 2001
    assert all(app.newest)


async def test_protocol_pipelines_of_two_connections_take_turns():
    app = Recorder()
    wait = GET.replace(b"/get", b"/wait")
    async with connected(app) as one, connected(app) as other:
        one.send(wait + GET.replace(b"/get", b"/one") * 20 + CLOSE)
        other.send(wait + GET.replace(b"/get", b"/other") * 20 + CLOSE)
        await until(lambda: len(app.paths) == 2)
        app.go_on.set()
        await asyncio.gather(one.answers(), other.answers())

    turns = [sorted(app.paths[start : start + 2]) for start in range(2, 42, 2)]
    assert turns == [["/one", "/other"]] * 20


async def test_protocol_active_request_pauses_reading():
    app = Recorder()
    async with connected(app) as client:
        client.send(GET.replace(b"/get", b"/wait") + GET + CLOSE)
        await app.waiting.wait()
        paused_during_request = app.protocol.flow.read_paused
        app.go_on.set()

        assert await client.answers() == [200, 200, 200]
    assert paused_during_request


async def test_protocol_bodies_and_heads_mixed_are_answered_in_order():
    app = Recorder()
    bodies = [b"%d\r\n\r\n" % number * 20_000 for number in range(20)]
    async with connected(app) as client:
        client.send(b"".join(declared(b"/read", body) + GET for body in bodies) + CLOSE)
        answers = await client.answers()

    assert answers == [200] * 41
    assert app.paths == ["/read", "/get"] * 20 + ["/close"]
    assert app.bodies == bodies


async def test_protocol_requests_behind_a_chunked_one_are_answered():
    """The only case in which uvicorn's pipeline holds several requests at once."""
    app = Recorder()
    async with connected(app) as client:
        client.send(CHUNKED + b"3\r\nabc\r\n0\r\nx: y\r\n\r\n" + GET * 500 + CLOSE)
        answers = await client.answers()

    assert (answers, app.bodies) == ([200] * 502, [b"abc"])


async def test_protocol_disconnect_with_a_pipeline_reaches_the_active_request():
    app = Recorder()
    async with connected(app) as client:
        client.send(CHUNKED.replace(b"/read", b"/wait") + b"0\r\nx: y\r\n\r\n" + GET * 5)
        await app.waiting.wait()

        protocol = app.protocol
        cycle = protocol._active
        protocol.connection_lost(ConnectionResetError())
        app.go_on.set()

    assert cycle is not None
    assert cycle is not protocol.cycle
    assert (cycle.disconnected, len(protocol.pipeline)) == (True, 0)


async def test_protocol_requests_behind_the_last_one_are_ignored():
    app = Recorder()
    async with connected(app) as client:
        client.send(CLOSE + GET * 100)
        answers = await client.answers()

    assert (answers, app.paths) == ([200], ["/close"])


# Clients that disconnect


class PeerRecorder(Recorder):
    """Records each request's peer and the calls of its callback."""

    def __init__(self) -> None:
        super().__init__()
        self.peers: list[Peer] = []
        self.calls: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        peer = peer_of(scope)
        assert peer is not None
        self.peers.append(peer)
        peer.on_disconnect = lambda: self.calls.append(scope["path"])
        try:
            await super().__call__(scope, receive, send)
        finally:
            peer.on_disconnect = None


async def test_protocol_connection_lost_during_a_request_calls_its_peer_once():
    app = PeerRecorder()
    async with connected(app) as client:
        client.send(GET.replace(b"/get", b"/wait"))
        await app.waiting.wait()
        before = app.peers[0].disconnected
        app.protocol.connection_lost(ConnectionResetError())
        app.go_on.set()

    assert (before, app.peers[0].disconnected, app.calls) == (False, True, ["/wait"])


async def test_protocol_each_request_of_a_connection_has_its_own_peer():
    app = PeerRecorder()
    async with connected(app) as client:
        client.send(GET)
        await client.until(b"done")
        client.send(CLOSE)
        await client.answers()

    first, second = app.peers
    assert first is not second
    assert app.calls == []


async def test_protocol_pipelined_requests_have_their_own_peers():
    app = PeerRecorder()
    async with connected(app) as client:
        client.send(CHUNKED + b"3\r\nabc\r\n0\r\nx: y\r\n\r\n" + GET * 3 + CLOSE)
        await client.answers()

    assert len({id(one) for one in app.peers}) == 5
    assert app.calls == []


async def test_protocol_connection_lost_with_a_pipeline_calls_the_active_peer():
    app = PeerRecorder()
    async with connected(app) as client:
        client.send(CHUNKED.replace(b"/read", b"/wait") + b"0\r\nx: y\r\n\r\n" + GET * 5)
        await app.waiting.wait()
        app.protocol.connection_lost(ConnectionResetError())
        app.go_on.set()

    assert (len(app.peers), app.peers[0].disconnected, app.calls) == (1, True, ["/wait"])


async def test_protocol_connection_lost_between_requests_calls_no_peer():
    app = PeerRecorder()
    async with connected(app) as client:
        client.send(GET)
        await client.until(b"done")
        app.protocol.connection_lost(None)

    assert app.calls == []


async def test_protocol_connection_lost_before_any_request_is_no_error():
    app = PeerRecorder()
    async with connected(app) as client:
        client.send(b"GET /ge")
    await app.protocol.lost.wait()

    assert app.peers == []


async def test_protocol_disconnect_cancels_the_work():
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> Any:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    class Working(Recorder):
        async def __call__(self, scope: Any, receive: Any, _send: Any) -> None:
            try:
                await while_connected(Request(scope, receive), work())
            except ClientDisconnect:
                self.disconnects += 1

    app = Working()
    async with connected(app) as client:
        client.send(GET)
        await started.wait()
    await ended.wait()

    assert app.disconnects == 1


# Slow clients


async def test_protocol_answered_request_whose_body_ends_later_is_closed_when_idle():
    async with connected(Recorder(), keep_alive_s=0.05) as client:
        client.send(LONG)
        await client.until(b"done")
        client.send(b"x" * 1000)

        assert await client.answers() == []


@pytest.mark.parametrize(
    ("sent", "piece"),
    [
        (LONG.replace(b"1000", b"100000000"), b"x"),
        (LONG_CHUNKED, b"1\r\nx\r\n"),
        (LONG_CHUNKED + b"0\r\n", b"x: y\r\n"),
    ],
    ids=["declared", "chunked", "trailers"],
)
async def test_protocol_slow_rest_of_an_answered_request_is_closed(sent, piece):
    async with connected(Recorder(), header_timeout_s=0.05) as client:
        client.send(sent)
        await client.until(b"done")
        end = asyncio.ensure_future(client.answers())
        while not end.done():
            client.send(piece)
            await asyncio.wait([end], timeout=0.001)

        with suppress(ConnectionResetError):  # for data sent after the close
            assert await end == []


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"], ids=["open", "close"])
async def test_protocol_client_that_does_not_read_is_disconnected(last):
    app = Recorder()
    async with connected(app, header_timeout_s=0.05) as client:
        client.send(b"GET /big HTTP/1.1\r\nHost: t\r\n" + last + b"\r\n")
        await client.until(b"\r\n\r\n")
        await app.protocol.lost.wait()

    assert app.protocol.transport.is_closing()


class SlowTransport(asyncio.Transport):
    """A transport that reports these buffer sizes, one per call."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted.set()


async def test_flow_slow_reader_is_kept_while_it_makes_progress():
    transport = SlowTransport([3000, 2000, 2000, 1000, 1000, 1000])
    flow = BoundedFlowControl(transport, timeout_s=0.01)
    flow.pause_writing()
    await transport.aborted.wait()

    assert transport.sizes == [1000]


async def test_flow_timer_stops_once_the_buffer_is_read():
    flow = BoundedFlowControl(SlowTransport([1000]), timeout_s=NEVER_S)
    flow.pause_writing()
    flow.resume_writing()

    assert flow._timer is None


# Upgrades, Host fields and transfer codings


UPGRADES = {
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    "websocket": (
        b"upgrade:WebSocket",
        b"connection: keep-alive, Upgrade",
        b"Sec-WebSocket-Key: x",
    ),
}
UPGRADE_LIKE_BODY = b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" * 100


@pytest.mark.parametrize("step", [1, 7, 10**6], ids=["bytes", "sevens", "at_once"])
@pytest.mark.parametrize("fields", UPGRADES.values(), ids=UPGRADES.keys())
async def test_protocol_upgrade_is_ignored_without_losing_data(fields, step, caplog):
    app = Recorder()
    chunked = CHUNKED.replace(b"Host: t", b"\r\n".join((b"Host: t", *fields)))
    sent = (
        declared(b"/read", UPGRADE_LIKE_BODY, *fields)
        + chunked
        + b"3\r\nabc\r\n0\r\n\r\n"
        + GET
        + CLOSE
    )

    async with connected(app) as client:
        for start in range(0, len(sent), step):
            client.send(sent[start : start + step])
        answers = await client.answers()

    assert answers == [200] * 4
    assert app.bodies == [UPGRADE_LIKE_BODY, b"abc"]
    assert "upgrade" not in app.headers
    assert not caplog.records


async def test_protocol_upgrade_of_the_last_request_still_closes():
    app = Recorder()
    async with connected(app) as client:
        client.send(CLOSE.replace(b": close", b": close, Upgrade\r\nUpgrade: h2c") + GET)

        assert (await client.answers(), app.paths) == ([200], ["/close"])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET / HTTP/1.1", "malformed_request"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a", "malformed_request"),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b", "malformed_request"),
        (b"GET / HTTP/1.0", 200),
        (b"GET / HTTP/1.1\r\nHost:\r\nConnection: close", 200),
        (b"CONNECT /get HTTP/1.1\r\nHost: t", "malformed_request"),
    ],
    ids=["none", "two", "two_1.0", "none_1.0", "empty", "connect"],
)
async def test_protocol_host_field_is_required_exactly_once(head, expected):
    async with connected(Recorder()) as client:
        client.send(head + b"\r\n\r\n")

        assert await client.answers() == [expected]


@pytest.mark.parametrize(
    ("coding", "expected"),
    [
        (b"gzip, chunked", ["malformed_request"]),
        (b"gzip\r\nTransfer-Encoding: chunked", ["malformed_request"]),
        (b"chunked, chunked", ["malformed_request"]),
        (b"identity", ["malformed_request"]),
        (b"", ["malformed_request"]),
        (b"CHUNKED ", [200, 200]),
    ],
    ids=["gzip", "gzip_line", "twice", "identity", "empty", "upper_case"],
)
async def test_protocol_only_chunked_transfer_coding_accepted(coding, expected):
    async with connected(Recorder()) as client:
        head = CHUNKED.replace(b"Encoding: chunked", b"Encoding: " + coding)
        client.send(head + b"3\r\nabc\r\n0\r\n\r\n" + CLOSE)

        assert await client.answers() == expected


@pytest.mark.parametrize(
    "flood",
    [
        b"0\r\nx: " + b"y" * 10**6,
        b"0\r\n" + b"x: y\r\n" * 10**5,
        b"1;" + b"x" * 10**6,
        b"0" * 10**6,
    ],
    ids=["trailer", "trailers", "extension", "zeros"],
)
async def test_protocol_flood_between_chunks_is_refused(flood):
    async with connected(Recorder()) as client:
        client.send(CHUNKED + flood)

        assert await client.answers() == ["headers_too_large"]


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"HEAD /get HTTP/1.1\r\n\r\n", [400]),
        (b"HEAD /get HTTP/1.1\r\nHost: t\r\n" + b"x: y\r\n" * (MAX_HEADERS + 1), [431]),
        (b"HEAD /get HTTP/1.1\r\nHost: t\r\n\r\nGET /\x01", [200, "malformed_request"]),
        (b"HEAD", ["request_timeout"]),
    ],
    ids=["no-host", "many-fields", "then-another", "no-path"],
)
async def test_protocol_refused_head_request_is_answered_without_a_body(sent, answered):
    async with connected(Recorder(), header_timeout_s=0.05) as client:
        client.send(sent)

        assert await client.answers() == answered


# Access log


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"hello there\r\n\r\n", 400, "malformed_request"),
        (CHUNKED + b"zz\r\n", 400, "malformed_request"),
        (b"GET /get", 408, "request_timeout"),
        (b"GET /" + b"x" * MAX_HEAD_BYTES, 431, "headers_too_large"),
    ],
    ids=["head", "body", "slow", "large"],
)
async def test_protocol_refusal_is_logged_once(caplog, sent, status, code):
    with caplog.at_level(logging.INFO):
        async with connected(Recorder(), header_timeout_s=0.05) as client:
            client.send(sent)
            await client.answers()

    (record,) = [record for record in caplog.records if record.name != "asyncio"]
    logged: Any = record
    assert (record.name, record.levelname, record.exc_info) == ("service.access", "INFO", None)
    assert (logged.status, logged.code, logged.client) == (status, code, "127.0.0.1")
    assert re.fullmatch("[0-9a-f]{16}", logged.request_id)

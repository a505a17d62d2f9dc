"""HTTP/1.1 on raw connections: good, malformed, slow and disappearing clients."""

from __future__ import annotations

import pytest

from tests import tinymodel
from tests.e2e.server import post
from tests.problems import MARKER, assert_problem

RED = tinymodel.picture("red")
GET = b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n"
MARKED = f"GET /{MARKER} HTTP/1.1\r\nHost: test\r\nX-Request-Id: smuggled\r\n\r\n".encode()
CHUNKED = "Transfer-Encoding: chunked"


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


# Valid requests


def test_protocol_picture_answered_with_its_label(server):
    with server.connect() as connection:
        response = connection.send(post(RED)).response()

    assert response.json()["predictions"][0]["label"] == "red"
    assert "server" not in response.headers


@pytest.mark.parametrize("step", [1, 7, 100], ids=["bytes", "sevens", "hundreds"])
def test_protocol_request_in_pieces_is_read(server, step):
    request = post(chunked(RED), CHUNKED)

    with server.connect() as connection:
        connection.send(*(request[start : start + step] for start in range(0, len(request), step)))

        assert connection.response().status_code == 200


def test_protocol_pipelined_requests_answered_in_order(server):
    with server.connect() as connection:
        connection.send(
            post(RED) + GET + post(b"x") + GET + post(RED, f"Content-Length: {len(RED)}")
        )
        statuses = [connection.response().status_code for _ in range(5)]

    assert statuses == [200, 200, 415, 200, 200]


def test_protocol_hundreds_of_pipelined_requests_all_answered(server):
    with server.connect() as connection:
        connection.send(GET * 1000)
        statuses = {connection.response().status_code for _ in range(1000)}

    assert statuses == {200}


def test_protocol_continue_sent_before_the_body(server):
    with server.connect() as connection:
        connection.send(post(b"", f"Content-Length: {len(RED)}", "Expect: 100-continue"))
        interim = [connection.line(), connection.line()]
        response = connection.send(RED).response()

    assert interim == ["HTTP/1.1 100 Continue\r\n", "\r\n"]
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        (("Content-Length: 10000000000",), 413, "body_too_large"),
        (("Content-Length: 9", "Content-Type: text/plain"), 415, "unsupported_media_type"),
    ],
    ids=["too_large", "wrong_type"],
)
def test_protocol_no_continue_for_a_refused_body(server, headers, status, code):
    with server.connect() as connection:
        response = connection.send(post(b"", *headers, "Expect: 100-continue")).response()

    assert_problem(response, status, code)


def test_protocol_hundred_headers_are_read(server):
    lines = [f"X-{number}: y" for number in range(99)]
    request = "\r\n".join(("GET /livez HTTP/1.1", "Host: test", *lines, "", ""))

    with server.connect() as connection:
        assert connection.send(request).response().status_code == 200


def test_protocol_trailers_are_no_headers(server):
    body = chunked(RED)[:-2] + b"X-Request-Id: trailed\r\nContent-Type: text/plain\r\n\r\n"

    with server.connect() as connection:
        response = connection.send(post(body, CHUNKED) + GET).response()

        assert response.status_code == 200
        assert response.headers["x-request-id"] != "trailed"
        assert connection.response().status_code == 200


# Heads that are too large, too slow or malformed


@pytest.mark.parametrize("piece", [10**6, 1000], ids=["at_once", "dribbled"])
@pytest.mark.parametrize(
    "flood",
    [b"X: " + b"y" * 40_000, b"".join(b"X-%d: %s\r\n" % (n, b"y" * 900) for n in range(50))],
    ids=["one_field", "many_fields"],
)
def test_protocol_head_over_the_limit_refused_and_closed(server, flood, piece):
    request = b"GET /livez HTTP/1.1\r\nHost: test\r\n" + flood

    with server.connect() as connection:
        for start in range(0, len(request), piece):
            connection.send(request[start : start + piece])
        assert_problem(connection.response(), 431, "headers_too_large")
        assert connection.closed()


def test_protocol_long_request_line_refused_and_closed(server):
    with server.connect() as connection:
        connection.send(b"GET /" + b"x" * 40_000)

        assert_problem(connection.response(), 431, "headers_too_large")
        assert connection.closed()


def test_protocol_many_headers_refused_and_closed(server):
    lines = "".join(f"X-{number}: y\r\n" for number in range(101))

    with server.connect() as connection:
        connection.send(f"GET /livez HTTP/1.1\r\n{lines}\r\n", MARKED)

        assert_problem(connection.response(), 431, "headers_too_large")
        assert connection.closed()


def test_protocol_head_that_stops_timed_out_and_closed(server):
    with server.connect() as connection:
        connection.send("GET /livez HT")

        assert_problem(connection.response(), 408, "request_timeout")
        assert connection.closed()


def test_protocol_second_head_that_stops_timed_out_and_closed(server):
    with server.connect() as connection:
        connection.send(GET + b"GET /livez HT")
        first, second = connection.response(), connection.response()

        assert first.status_code == 200
        assert_problem(second, 408, "request_timeout")
        assert connection.closed()


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "empty_line"])
def test_protocol_idle_connection_is_closed(server, sent):
    with server.connect() as connection:
        connection.send(sent)
        connection.response()

        assert connection.closed()


MALFORMED = {
    "noise": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "text": b"hello there\r\n\r\n",
    "no_path": b"GET http://test HTTP/1.1\r\nHost: test\r\n\r\n",
    "connect": b"CONNECT test:443 HTTP/1.1\r\nHost: test\r\n\r\n",
    "no_version": b"GET /livez\r\n\r\n",
    "http_2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown_method": b"HACK /livez HTTP/1.1\r\nHost: test\r\n\r\n",
    "lower_case_method": b"get /livez HTTP/1.1\r\nHost: test\r\n\r\n",
    "space_in_name": b"GET /livez HTTP/1.1\r\nHost : test\r\n\r\n",
    "nul_in_value": b"GET /livez HTTP/1.1\r\nHost: te\0st\r\n\r\n",
    "folded_value": b"GET /livez HTTP/1.1\r\nHost: test\r\n folded\r\n\r\n",
    "bare_cr": b"GET /livez HTTP/1.1\r\nHost: test\rX: y\r\n\r\n",
    "not_ascii_path": "GET /\N{SNOWMAN} HTTP/1.1\r\nHost: test\r\n\r\n".encode(),
    "length_and_chunked": post(b"0\r\n\r\n", "Content-Length: 5", CHUNKED),
    "chunked_and_length": post(b"0\r\n\r\n", CHUNKED, "Content-Length: 5"),
    "two_lengths": post(b"x" * 5, "Content-Length: 5", "Content-Length: 6"),
    "list_of_lengths": post(b"x" * 5, "Content-Length: 5, 6"),
    "negative_length": post(b"x", "Content-Length: -1"),
    "plus_length": post(b"x", "Content-Length: +1"),
    "huge_length": post(b"x", f"Content-Length: {'9' * 40}"),
    "length_no_number": post(b"x", "Content-Length: one"),
    "chunked_not_last": post(b"0\r\n\r\n", "Transfer-Encoding: chunked, identity"),
    "odd_encoding": post(b"0\r\n\r\n", "Transfer-Encoding: xchunked"),
    "no_host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two_hosts": b"GET /livez HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n",
    "gzip_chunked": post(b"0\r\n\r\n", "Transfer-Encoding: gzip, chunked"),
    "chunked_twice": post(b"0\r\n\r\n", CHUNKED, CHUNKED),
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
def test_protocol_malformed_head_refused_and_nothing_after_it_runs(server, request_bytes):
    with server.connect() as connection:
        response = connection.send(request_bytes + MARKED).response()

        assert_problem(response, 400, "malformed_request")
        assert connection.closed()
    assert nothing_smuggled(server)


def test_protocol_good_request_before_a_malformed_one_is_answered(server):
    with server.connect() as connection:
        response = connection.send(post(RED) + b"hello there\r\n\r\n" + MARKED).response()

        assert response.json()["predictions"][0]["label"] == "red"
        assert_problem(connection.response(), 400, "malformed_request")
        assert connection.closed()
    assert nothing_smuggled(server)


BAD_CHUNKS = {
    "size_no_number": b"zz\r\nx\r\n0\r\n\r\n",
    "negative_size": b"-1\r\nx\r\n0\r\n\r\n",
    "huge_size": b"f" * 20 + b"\r\nx",
    "no_end_of_chunk": b"1\r\nxx\r\n0\r\n\r\n",
    "size_0x": b"0x1\r\nx\r\n0\r\n\r\n",
    "bare_lf": b"1\nx\n0\n\n",
    "space_before_size": b" 1\r\nx\r\n0\r\n\r\n",
    "no_size": b"\r\nx\r\n0\r\n\r\n",
    "bad_end_of_body": b"1\r\nx\r\n0\r\nxx",
    "bad_trailer": b"1\r\nx\r\n0\r\nno colon\r\n\r\n",
}


@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_protocol_malformed_chunk_refused_and_nothing_after_it_runs(server, body):
    with server.connect() as connection:
        response = connection.send(post(body, CHUNKED) + MARKED).response()

        assert_problem(response, 400, "malformed_request")
        assert connection.closed()
    assert nothing_smuggled(server)


def nothing_smuggled(server) -> bool:
    """True if the log up to a new request shows no request with the id "smuggled"."""
    with server.client() as client:
        client.get("/v1/models", headers={"x-request-id": "barrier"})
    ids = []
    while "barrier" not in ids:
        ids.append(server.wait_for_log("request")["request_id"])
    return "smuggled" not in ids


# Bodies


def test_protocol_declared_ten_gigabytes_refused_at_once(server):
    with server.connect() as connection:
        response = connection.send(post(b"x", "Content-Length: 10000000000")).response()

    assert_problem(response, 413, "body_too_large")
    assert response.headers["connection"] == "close"


def test_protocol_chunked_past_the_limit_refused_while_still_sending(server):
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"

    with server.connect() as connection:
        connection.send(post(b"", CHUNKED), *[chunk] * 100)
        response = connection.response()

    assert_problem(response, 413, "body_too_large")


def test_protocol_refused_client_may_finish_sending(server):
    with server.connect() as connection:
        connection.send(post(b"", "Content-Length: 3000000"), *[b"x" * 100_000] * 30)

        assert_problem(connection.response(), 413, "body_too_large")
        assert connection.closed()


@pytest.mark.parametrize(
    "request_bytes",
    [post(b"half", "Content-Length: 100"), post(b"4\r\nhalf\r\n", CHUNKED)],
    ids=["declared", "chunked"],
)
def test_protocol_body_that_stops_timed_out(server, request_bytes):
    with server.connect() as connection:
        response = connection.send(request_bytes).response()

    assert_problem(response, 408, "request_timeout")
    assert response.headers["connection"] == "close"


def test_protocol_refused_body_that_stops_is_not_waited_for(server):
    kind = "Content-Type: text/plain"

    with server.connect() as connection:
        response = connection.send(post(b"", "Content-Length: 1000", kind)).response()
        connection.send("x")

        assert_problem(response, 415, "unsupported_media_type")
        assert connection.closed()


def test_protocol_refused_body_that_ends_leaves_the_connection_usable(server):
    kind = "Content-Type: text/plain"

    with server.connect() as connection:
        refused = connection.send(post(b"", "Content-Length: 1000", kind)).response()
        answered = connection.send(b"x" * 1000, post(RED)).response()

    assert (refused.status_code, answered.status_code) == (415, 200)


def test_protocol_endless_trailer_refused(server):
    with server.connect() as connection:
        connection.send(post(chunked(RED)[:-2] + b"X: ", CHUNKED))
        for _ in range(10):
            connection.send(b"y" * 10_000)
        response = connection.response()

        assert_problem(response, 431, "headers_too_large")
        assert connection.closed()


def test_protocol_million_byte_body_of_one_byte_chunks_is_bounded(server):
    with server.connect() as connection:
        connection.send(post(b"", CHUNKED), b"1\r\nx\r\n" * 50_000, b"0\r\n\r\n")
        response = connection.response()

    assert response.status_code in (408, 415)


# Clients that disconnect


@pytest.mark.parametrize(
    "request_bytes",
    [post(b"half", "Content-Length: 100"), post(b"4\r\nhalf\r\n", CHUNKED), b"GET /liv", post(RED)],
    ids=["declared", "chunked", "head", "whole"],
)
def test_protocol_client_that_leaves_frees_everything(server, request_bytes):
    for _ in range(5):
        server.connect().send(request_bytes).reset()
    with server.connect() as connection:
        connection.send(request_bytes).finish()
        connection.response()

    server.wait_for_metric("convserve_upload_bytes_in_flight", lambda value: value == 0)
    server.wait_for_metric("convserve_images_in_flight", lambda value: value == 0)
    assert nothing_smuggled(server)
    assert not [line for line in server.log if "traceback" in line]


def test_protocol_client_that_leaves_amid_large_answers_leaves_no_traceback(server):
    asset = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: test\r\n\r\n"

    for _ in range(5):
        connection = server.connect().send(asset * 8)
        assert connection.line() == "HTTP/1.1 200 OK\r\n"
        connection.reset()

    assert nothing_smuggled(server)
    assert not [line for line in server.log if "traceback" in line]


def test_protocol_client_that_reads_no_answer_is_cut_off(server):
    asset = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: test\r\n\r\n"

    with server.connect() as connection, pytest.raises(ConnectionError):
        connection.send(*[asset * 100] * 10_000)


@pytest.mark.parametrize("path", ["/readyz", "/docs", "/v1/models", "/v1/classify", "/nothing"])
def test_protocol_head_has_no_body_and_keeps_the_connection(server, path):
    with server.client() as client:
        length = client.get(path).headers["content-length"]

    with server.connect() as connection:
        connection.send(f"HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n")
        while (line := connection.line()) != "\r\n":
            if line.lower().startswith("content-length:"):
                assert line.split()[1] == length
        response = connection.send(GET).response()  # a body would be in its way

    assert response.status_code == 200


def test_protocol_upgrade_is_ignored(server):
    upgrade = ("Connection: Upgrade", "Upgrade: h2c", f"Content-Length: {len(RED)}")

    with server.connect() as connection:
        connection.send(post(RED, *upgrade) + GET)
        responses = [connection.response(), connection.response()]

    assert responses[0].json()["predictions"][0]["label"] == "red"
    assert responses[1].status_code == 200


@pytest.mark.parametrize(
    ("target", "host"),
    [("/v1/models", "a@b/.."), ("//evil/v1/models", "test"), ("/v1/models@evil", "test")],
)
def test_protocol_host_and_path_tricks_change_nothing(server, target, host):
    with server.connect() as connection:
        response = connection.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").response()

    if target == "/v1/models":
        assert response.json()["default"] == "tiny"
    else:
        assert_problem(response, 404, "not_found")

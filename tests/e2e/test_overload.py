"""Requests that an overloaded service refuses, and those it still answers."""

from __future__ import annotations

import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests import tinymodel
from tests.e2e.server import post
from tests.problems import assert_problem

RED = tinymodel.picture("red")
HELD_BYTES = 1_000_000


def test_overload_full_upload_budget_refuses_more_but_health_answers(start_server):
    server = start_server(max_in_flight_bytes=HELD_BYTES + 1)
    with server.connect() as held, server.client() as client:
        held.send(post(b"x" * HELD_BYTES, f"Content-Length: {HELD_BYTES + 1}"))
        server.wait_for_metric("convserve_upload_bytes_in_flight", lambda v: v == HELD_BYTES)

        refused, live = client.post("/v1/classify", content=RED), client.get("/livez")

    assert_problem(refused, 503, "overloaded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert live.status_code == 200


def test_reset_upload_frees_its_bytes(start_server):
    server = start_server(max_in_flight_bytes=HELD_BYTES + 1)
    with server.connect() as held:
        held.send(post(b"x" * HELD_BYTES, f"Content-Length: {HELD_BYTES + 1}"))
        server.wait_for_metric("convserve_upload_bytes_in_flight", lambda v: v == HELD_BYTES)
        held.reset()

    server.wait_for_metric("convserve_upload_bytes_in_flight", lambda value: value == 0)
    with server.client() as client:
        assert client.post("/v1/classify", content=RED).status_code == 200


def test_overload_more_pictures_than_fit_refused_and_connection_kept(start_server):
    server = start_server(max_in_flight=1)
    with server.connect() as connection:
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        two = head + b"1\r\n" + head + b"2\r\n--b--\r\n"
        kind = "Content-Type: multipart/form-data; boundary=b"
        refused = connection.send(post(two, f"Content-Length: {len(two)}", kind)).response()
        answered = connection.send(post(RED)).response()

    assert_problem(refused, 422, "invalid_parameter")
    assert answered.status_code == 200


def test_overload_open_connections_take_no_capacity(start_server):
    server = start_server(max_in_flight=1)
    idle = [server.connect().send("POST /v1/classify HTTP/1.1\r\n") for _ in range(50)]

    with server.client() as client:
        answered, live = client.post("/v1/classify", content=RED), client.get("/livez")

    assert (answered.status_code, live.status_code) == (200, 200)
    for connection in idle:
        connection.reset()


def test_overload_flood_is_answered_counted_and_logged(start_server):
    server = start_server(max_in_flight=2)

    def send(_: int) -> list[int]:
        with server.client() as client:
            return [client.post("/v1/classify", content=RED).status_code for _ in range(40)]

    with ThreadPoolExecutor(16) as pool:
        answers = Counter(status for sent in pool.map(send, range(16)) for status in sent)

    assert answers.total() == 16 * 40
    assert set(answers) == {200, 503}
    server.wait_for_metric(
        'convserve_refused_total{code="overloaded",reason="images"}', lambda n: n == answers[503]
    )
    server.send_signal(signal.SIGINT)
    assert server.exit_code() == 0
    log = server.log
    in_full = sum(line["message"] == "request" and line["status"] == 503 for line in log)
    summed = sum(line["count"] for line in log if line["message"] == "requests refused")
    assert in_full + summed == answers[503]
    assert summed > 0 < in_full

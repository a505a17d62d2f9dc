from __future__ import annotations

import json
import math
import socket
import ssl
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import trustme

from convserve.loadtest.sending import sender as sender_module
from convserve.loadtest.sending.plan import Plan, Target, write_requests
from convserve.loadtest.sending.rows import (
    BROKEN,
    NONE,
    RETRY_AFTER,
    UNANSWERED,
    WITH_BROKEN_PICTURE,
    Rows,
    latencies_s,
    read_rows,
)
from convserve.loadtest.sending.sender import Sender
from tests.convserve.loadtest.sending.scripted import answering, read_request, response, serving

REQUEST = b"POST /v1/classify HTTP/1.1\r\nHost: test\r\nContent-Length: 7\r\n\r\npicture"
PREDICTIONS = {"predictions": [{"label": "cheetah", "index": 293, "probability": 0.9}]}
ANSWER = json.dumps(PREDICTIONS).encode()
PROBLEM = b'{"status": 503, "code": "overloaded", "detail": "too much"}'


def plan_for(folder: Path, port: int, **changes: object) -> Plan:
    values: dict[str, object] = {
        "good": [REQUEST],
        "broken": [],
        "seconds": 20.0,
        "n_requests": 3,
        "timeout_s": 20.0,
        "body": "raw",
    } | changes
    good, broken = values.pop("good"), values.pop("broken")
    assert isinstance(good, list)
    assert isinstance(broken, list)
    file = folder / "requests"
    places = write_requests(file, [*good, *broken])
    target = values.pop("target", Target("127.0.0.1", port))
    n = len(good)
    return Plan(target, str(file), places[:n], places[n:], **values)  # type: ignore[arg-type]


def run(plan: Plan) -> tuple[Rows, Sender]:
    sender = Sender(plan)
    sender.run(time.monotonic())
    return read_rows(sender.buffer), sender


def ends(rows: Rows, sender: Sender) -> list[str]:
    codes = [code for code, _, _ in sender.ends.take_new()]
    return [codes[number] for number in rows["end"] if number != NONE]


@pytest.mark.parametrize(
    "answer",
    [
        response(ANSWER),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (ANSWER[:9], ANSWER[9:]))
        + b"0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + response(ANSWER),
    ],
    ids=["length", "chunked-with-trailer", "interim"],
)
def test_sender_reads_every_form_of_answer_on_a_kept_connection(tmp_path, answer):
    connections = []

    def script(sock: socket.socket) -> None:
        connections.append(sock)
        answering(answer)(sock)

    with serving(script) as port:
        rows, sender = run(plan_for(tmp_path, port))

    assert rows["status"].tolist() == [200, 200, 200]
    assert sender.answers.take_new() == [("cheetah",)]
    assert rows["answer"].tolist() == [0, 0, 0]
    assert len(connections) == 1


@pytest.mark.parametrize(
    "answer",
    [response(ANSWER, "Connection: close"), b"HTTP/1.0 200 OK\r\n\r\n" + ANSWER],
    ids=["told", "until-the-end"],
)
def test_sender_opens_a_new_connection_where_the_server_closes(tmp_path, answer):
    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer)

    with serving(script) as port:
        rows, sender = run(plan_for(tmp_path, port))

    assert rows["status"].tolist() == [200, 200, 200]
    assert sender.counts.n_reconnects == 0


def test_sender_kept_connection_that_was_closed_is_tried_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(sender_module, "_STALE_S", math.inf)

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(response(ANSWER))
        read_request(sock)  # and goes away

    with serving(script) as port:
        rows, sender = run(plan_for(tmp_path, port))

    assert rows["status"].tolist() == [200, 200, 200]
    assert sender.counts.n_reconnects == 2


@pytest.mark.parametrize(
    ("first_bytes", "code"),
    [
        (b"", "connection_lost"),
        (response(ANSWER)[:-5], "connection_lost"),
        (b"220 mail.example.org ESMTP\r\n", "not_http"),
    ],
    ids=["nothing", "half-an-answer", "another-protocol"],
)
def test_sender_connection_that_ends_without_an_answer_is_a_failure(tmp_path, first_bytes, code):
    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(first_bytes)

    with serving(script) as port:
        rows, sender = run(plan_for(tmp_path, port))

    assert rows["status"].tolist() == [BROKEN] * 3
    assert ends(rows, sender) == [code] * 3
    assert np.isinf(latencies_s(rows)).all()


def test_sender_nothing_listens_is_told_apart(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    rows, sender = run(plan_for(tmp_path, port))

    assert ends(rows, sender) == ["connection_refused"] * 3


def test_sender_kept_connection_that_ends_in_work_has_lost_its_request(tmp_path, monkeypatch):
    """Only a connection that was closed while it was idle may be replaced in silence."""
    monkeypatch.setattr(sender_module, "_STALE_S", 0.0)  # every end is one in work

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(response(ANSWER))
        read_request(sock)

    with serving(script) as port:
        rows, sender = run(plan_for(tmp_path, port, n_requests=2))

    assert rows["status"].tolist() == [200, BROKEN]
    assert sender.counts.n_reconnects == 0


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_sender_answer_without_end_is_given_up(tmp_path, chunked):
    head = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000000000"
    part = (b"10000\r\n%s\r\n" if chunked else b"%s") % bytes(65536)

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        while True:
            sock.sendall(part)

    with serving(script) as port:
        rows, sender = run(plan_for(tmp_path, port, n_requests=1))

    assert rows["status"].tolist() == [BROKEN]
    assert ends(rows, sender) == ["answer_too_large"]


def test_sender_requests_beyond_its_connections_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("convserve.loadtest.sending.sender.MAX_CONNECTIONS", 2)
    due = threading.Event()

    def script(sock: socket.socket) -> None:
        while read_request(sock):
            due.wait(10)
            sock.sendall(response(ANSWER))

    load = {"phases": [(0.2, 50.0)], "poisson": False, "seconds": 0.2, "n_requests": None}
    with serving(script) as port:
        sender = Sender(plan_for(tmp_path, port, **load))
        timer = threading.Timer(0.4, due.set)
        timer.start()
        sender.run(time.monotonic())
        timer.join()

    assert sender.counts.n_held == 8
    assert read_rows(sender.buffer)["status"].tolist() == [200] * 10


def test_sender_request_without_an_answer_times_out(tmp_path):
    def script(sock: socket.socket) -> None:
        while read_request(sock):
            pass

    with serving(script) as port:
        rows, sender = run(plan_for(tmp_path, port, timeout_s=0.2, n_requests=2))

    assert rows["status"].tolist() == [UNANSWERED] * 2
    assert ends(rows, sender) == ["timeout"] * 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (response(PROBLEM, "Retry-After: 1", status="503 Busy"), "overloaded"),
        (response(b"no", "Retry-After: 1", status="503 Busy"), "http_503"),
        (response(b"", "X-Error-Code: own", "Retry-After: 1", status="503 Busy"), "own"),
    ],
    ids=["problem", "plain", "header"],
)
def test_sender_error_answer_keeps_status_and_code(tmp_path, answer, code):
    with serving(answering(answer)) as port:
        rows, sender = run(plan_for(tmp_path, port))

    assert rows["status"].tolist() == [503] * 3
    assert rows["flags"].tolist() == [RETRY_AFTER] * 3
    assert ends(rows, sender) == [code] * 3


@pytest.mark.parametrize(
    "content",
    [b"<html>hello</html>", b'{"outputs": 5}', b""],
    ids=["html", "another-document", "empty"],
)
def test_sender_200_that_is_no_answer_is_a_failure(tmp_path, content):
    with serving(answering(response(content))) as port:
        rows, sender = run(plan_for(tmp_path, port))

    assert rows["status"].tolist() == [200] * 3
    assert ends(rows, sender) == ["bad_answer"] * 3


def test_sender_open_loop_counts_latency_from_the_intended_time(tmp_path):
    """Answers are held back until all requests have arrived."""
    arrived = threading.Barrier(20)

    def script(sock: socket.socket) -> None:
        read_request(sock)
        arrived.wait(10)
        sock.sendall(response(ANSWER))

    load = {"phases": [(0.4, 50.0)], "poisson": False, "seconds": 0.4, "n_requests": None}
    with serving(script) as port:
        sender = Sender(plan_for(tmp_path, port, **load))
        sender.run(time.monotonic())
    rows = read_rows(sender.buffer)

    assert len(rows) == 20
    assert sorted(rows["intended_s"]) == pytest.approx([n / 50 for n in range(20)], abs=1e-6)
    # Nothing held back the sending, although nothing was answered.
    assert (rows["status"] == 200).all()
    assert rows["sent_s"].max() < rows["done_s"].min()
    assert latencies_s(rows) == pytest.approx(rows["done_s"] - rows["intended_s"])


def test_sender_broken_share_comes_from_the_broken_pool(tmp_path):
    broken = REQUEST.replace(b"picture", b"garbage")

    def script(sock: socket.socket) -> None:
        while request := read_request(sock):
            bad = request.endswith(b"garbage")
            sock.sendall(response(PROBLEM if bad else ANSWER, status="422 No" if bad else "200 OK"))

    with serving(script) as port:
        plan = plan_for(tmp_path, port, broken=[broken], broken_share=0.3, n_requests=300)
        rows, _ = run(plan)

    of_broken = (rows["flags"] & WITH_BROKEN_PICTURE) != 0
    assert of_broken.mean() == pytest.approx(0.3, abs=0.1)
    assert (rows["status"] == np.where(of_broken, 422, 200)).all()


def test_sender_reads_server_timing_into_stages(tmp_path):
    timing = 'Server-Timing: queue;dur=1.5, infer;desc="a run";dur=20, nothing'

    with serving(answering(response(ANSWER, timing))) as port:
        rows, sender = run(plan_for(tmp_path, port, n_requests=1))

    assert sender.stages.take_new() == ["queue", "infer"]
    assert rows["stages"][0][:2].tolist() == [1.5, 20]
    assert np.isnan(rows["stages"][0][2:]).all()


def test_sender_large_request_and_early_refusal_do_not_mix_up_answers(tmp_path):
    """A server may refuse a body before it has read it; the connection is then of no more use."""
    large = b"POST / HTTP/1.1\r\nContent-Length: 30000000\r\n\r\n" + bytes(30_000_000)
    ended = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(response(PROBLEM, status="413 Too Large"))
        ended.wait(20)  # and reads no more

    with serving(script) as port:
        rows, _ = run(plan_for(tmp_path, port, good=[large], n_requests=2))
        ended.set()

    assert rows["status"].tolist() == [413, 413]


def test_sender_stop_ends_the_run_and_says_what_was_open(tmp_path):
    def script(sock: socket.socket) -> None:
        while read_request(sock):
            pass

    with serving(script) as port:
        sender = Sender(plan_for(tmp_path, port, n_requests=None, drain_s=0.1))
        timer = threading.Timer(0.2, sender.stop)
        timer.start()
        sender.run(time.monotonic())
        timer.join()
    rows = read_rows(sender.buffer)

    assert ends(rows, sender) == ["interrupted"]


@pytest.fixture
def certificate() -> ssl.SSLContext:
    """A server's context with a certificate that nobody has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "insecure"])
def test_sender_tls_verifies_unless_told_otherwise(tmp_path, certificate, verify):
    with serving(answering(response(ANSWER)), certificate) as port:
        target = Target("127.0.0.1", port, tls=True, verify=verify)
        rows, sender = run(plan_for(tmp_path, port, target=target, n_requests=2))

    assert rows["status"].tolist() == ([BROKEN] * 2 if verify else [200, 200])
    assert ends(rows, sender) == (["not_connected"] * 2 if verify else [])

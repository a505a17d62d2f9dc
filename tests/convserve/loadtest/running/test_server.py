from __future__ import annotations

import socket
import threading

from convserve.loadtest.running.server import Observer, Scrape, changes
from convserve.loadtest.sending.plan import Target
from tests.convserve.loadtest.sending.scripted import response, serving

METRICS = b"""\
# TYPE things_total counter
things_total{code="a\\"b"} 3
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 1.5e+08
"""
MODELS = b'{"models": [{"name": "cats", "version": 2}, {"name": "dogs"}]}'


def paths(answers: dict[bytes, bytes]):
    def script(sock: socket.socket) -> None:
        head = sock.recv(65536)
        content = answers.get(head.split(b" ")[1])
        status = "200 OK" if content is not None else "404 Not Found"
        sock.sendall(response(content or b"", "Connection: close", status=status))

    return script


def test_observer_reads_metrics_and_models():
    with serving(paths({b"/metrics": METRICS, b"/v1/models": MODELS})) as port:
        observer = Observer(Target("127.0.0.1", port), [])
        observer.begin()
        found = observer.end([])

    assert found.models == ["cats/2", "dogs"]
    assert [(one.name, one.kind, one.before, one.after) for one in found.metrics] == [
        ('things_total{code="a"b"}', "counter", 3, 3),
        ("process_resident_memory_bytes", "gauge", 1.5e8, 1.5e8),
    ]
    assert found.metrics_seconds is not None


def test_observer_server_without_such_routes_is_none_the_worse():
    with serving(paths({b"/metrics": b"<html>", b"/v1/models": b"[1, 2]"})) as port:
        observer = Observer(Target("127.0.0.1", port), [])
        observer.begin()
        found = observer.end([])

    assert (found.software, found.models, found.metrics) == (None, [], [])


def test_observer_names_the_software_from_its_protocol():
    with serving(paths({b"/v2": b'{"name": "mlserver", "version": "1.7"}'})) as port:
        observer = Observer(Target("127.0.0.1", port), [])
        observer.begin()

        assert observer.end([]).software == "mlserver 1.7"


def test_changes_leaves_out_what_was_zero_all_the_time():
    before = Scrape({"a": ("counter", 0.0), "b": ("counter", 1.0), "c": ("gauge", 5.0)})
    after = Scrape(
        {"a": ("counter", 0.0), "b": ("counter", 1.0), "c": ("gauge", 0.0), "d": ("counter", 2.0)}
    )

    found = {one.name: (one.before, one.after) for one in changes(before, after)}

    assert found == {"b": (1, 1), "c": (5, 0), "d": (0, 2)}


def test_observer_answer_that_drips_for_ever_is_given_up(monkeypatch):
    monkeypatch.setattr("convserve.loadtest.running.server._WHOLE_TIMEOUT_S", 0.3)
    ended = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not ended.wait(0.05):
            sock.sendall(b"x")

    with serving(script) as port:
        observer = Observer(Target("127.0.0.1", port), [])
        scrape = observer.scrape()
        ended.set()

    assert not scrape.series

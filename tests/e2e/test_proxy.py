"""HAProxy with the file of deploy/proxy, in front of two real servers. Needs HAProxy on this machine."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from httpx2 import Client, HTTPError, HTTPTransport, Response

from service.http.problems import PROBLEMS
from tests import tinymodel
from tests.e2e.server import PATIENCE_S, Server, free_port, post
from tests.problems import assert_problem
from tests.waiting import wait_until

HAPROXY = shutil.which("haproxy")
CONFIG = Path(__file__).parents[2] / "deploy" / "proxy" / "haproxy.cfg"
TEXT = CONFIG.read_text(encoding="utf-8")
RED = tinymodel.picture("red")
PHOTOGRAPH = RED + bytes(900_000)  # a PNG may have anything after its end
IN_FLIGHT = 8
HELD_BYTES = 1_000_000
MAX_IN_FLIGHT = 300
REPLICAS = '{proxy="replicas"}'
REPLICA_1 = '{proxy="replicas",server="replica1"}'

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed")


class Proxy:
    """The proxy's public address and its status page."""

    def __init__(self, public_port: int, status_port: int) -> None:
        self.port = public_port
        self.url = f"http://127.0.0.1:{public_port}"
        self._status_url = f"http://127.0.0.1:{status_port}"

    def post(self, content: bytes = RED, **headers: str) -> Response:
        with Client(base_url=self.url, timeout=PATIENCE_S) as client:
            return client.post("/v1/classify", content=content, headers=headers)

    def get(self, path: str) -> Response:
        with Client(base_url=self.url, timeout=PATIENCE_S) as client:
            return client.get(path)

    def metric(self, name: str, labels: str) -> float:
        """The value of one of HAProxy's own metrics; -1 before the proxy answers."""
        try:
            with Client(base_url=self._status_url, timeout=PATIENCE_S) as client:
                lines = client.get("/metrics").text.splitlines()
        except HTTPError:
            return -1
        return next(float(line.split()[-1]) for line in lines if line.startswith(name + labels))

    def wait_for_servers(self, count: int) -> None:
        """Polls until this many servers are up."""
        wait_until(lambda: self.metric("haproxy_backend_active_servers", REPLICAS) == count)


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Starts HAProxy with the committed file; only ports and the servers' addresses differ."""
    with ExitStack() as stack:

        def start(*servers: Server) -> Proxy:
            public, status = free_port(), free_port()
            lines = [
                f"    server replica{index} 127.0.0.1:{server.port}"
                for index, server in enumerate(servers, 1)
            ]
            text, replaced = re.subn(
                r"^    server-template .*$",
                "\n".join(lines),
                TEXT,
                flags=re.MULTILINE,
            )
            assert replaced == 1
            text = text.replace("bind :8080", f"bind 127.0.0.1:{public}")
            text = text.replace("bind :8404", f"bind 127.0.0.1:{status}")
            file = tmp_path / "haproxy.cfg"
            file.write_text(text, encoding="utf-8")

            command = [str(HAPROXY), "-db", "-q", "-f", str(file)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
            stack.callback(process.wait, PATIENCE_S)
            stack.callback(process.kill)
            proxy = Proxy(public, status)
            proxy.wait_for_servers(len(servers))
            return proxy

        yield start


def test_proxy_hands_on_ids_and_the_services_own_errors(start_server, start_proxy):
    proxy = start_proxy(start_server(max_body_bytes=1_000))

    named, unnamed = proxy.post(**{"X-Request-Id": "mine.1"}), proxy.post()
    too_large = proxy.post(bytes(1_001))

    assert (named.status_code, named.headers["x-request-id"]) == (200, "mine.1")
    assert re.fullmatch("[0-9A-F]{16}", unnamed.headers["x-request-id"])
    assert_problem(too_large, 413, "body_too_large")


@pytest.mark.parametrize(
    "forged",
    [{}, {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}],
    ids=["nothing", "forged"],
)
def test_proxy_names_the_client_and_drops_what_it_says_about_itself(
    start_server, start_proxy, forged
):
    replica = start_server(forwarded_allow_ips="127.0.0.0/8")
    proxy = start_proxy(replica)
    client = Client(base_url=proxy.url, transport=HTTPTransport(local_address="127.0.0.2"))

    with client:
        client.get("/v1/models", headers=forged)

    assert replica.wait_for_log("request")["client"] == "127.0.0.2"


def test_proxy_does_not_show_one_replicas_metrics(start_server, start_proxy):
    proxy = start_proxy(start_server())

    assert_problem(proxy.get("/metrics"), 404, "not_found")


def test_proxy_without_replicas_answers_503(start_proxy):
    proxy = start_proxy()

    refused = proxy.post(**{"X-Request-Id": "mine.2"})

    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"] == "1"
    assert (refused.json()["code"], refused.json()["request_id"]) == ("no_replica", "mine.2")


def test_proxy_repeats_requests_that_a_replica_refuses(start_server, start_proxy):
    full, other = start_server(max_in_flight_bytes=HELD_BYTES + 1), start_server()
    proxy = start_proxy(full, other)

    with full.connect() as held:
        held.send(post(b"x" * HELD_BYTES, f"Content-Length: {HELD_BYTES + 1}"))
        full.wait_for_metric("convserve_upload_bytes_in_flight", lambda v: v == HELD_BYTES)
        statuses = [proxy.post().status_code for _ in range(6)]

    assert statuses == [200] * 6
    assert proxy.metric("haproxy_server_retry_warnings_total", REPLICA_1) > 0


def test_proxy_full_of_requests_refuses_more(start_server, start_proxy):
    proxy = start_proxy(start_server())

    with ExitStack() as stack:
        for _ in range(MAX_IN_FLIGHT):
            upload = socket.create_connection(("127.0.0.1", proxy.port))
            stack.enter_context(upload).sendall(post(b"x", "Content-Length: 2"))
        sessions = "haproxy_backend_current_sessions"
        wait_until(lambda: proxy.metric(sessions, REPLICAS) >= MAX_IN_FLIGHT)
        refused = proxy.post()

    assert_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "1"


def test_proxys_errors_have_the_codes_and_titles_of_the_services():
    pattern = r'"title": "([^"]+)", "status": (\d+), "code": "(\w+)"'
    found = {code: (int(status), title) for title, status, code in re.findall(pattern, TEXT)}

    own = {code for code in found if code not in PROBLEMS}

    assert own == {"no_replica", "replica_lost"}
    for code in found.keys() - own:
        assert found[code] == (PROBLEMS[code].status, PROBLEMS[code].title)


@pytest.mark.faults
def test_proxy_repeats_the_requests_of_a_killed_replica(start_server, start_proxy):
    lost, other = start_server(), start_server()
    proxy = start_proxy(lost, other)
    lost.send_signal(signal.SIGSTOP)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        answers = [pool.submit(proxy.post, PHOTOGRAPH) for _ in range(IN_FLIGHT)]
        while proxy.metric("haproxy_server_current_sessions", REPLICA_1) == 0:
            pass
        lost.send_signal(signal.SIGKILL)
        statuses = [answer.result().status_code for answer in answers]

    assert statuses == [200] * IN_FLIGHT


@pytest.mark.faults
def test_proxy_answers_after_the_requests_deadline_when_a_replica_hangs(start_server, start_proxy):
    hanging = start_server()
    proxy = start_proxy(hanging)

    hanging.send_signal(signal.SIGSTOP)
    answer = proxy.post(**{"X-Request-Timeout-Ms": "1"})

    assert_problem(answer, 504, "deadline_exceeded")


@pytest.mark.faults
def test_proxy_leaves_a_stopping_replica_while_it_still_answers(start_server, start_proxy):
    stopping, other = start_server(drain_s=600), start_server()
    proxy = start_proxy(stopping, other)

    stopping.send_signal(signal.SIGTERM)
    statuses = []
    while proxy.metric("haproxy_backend_active_servers", REPLICAS) == 2:
        statuses.append(proxy.post().status_code)
    statuses.append(proxy.post().status_code)

    assert set(statuses) == {200}
    with stopping.client() as client:
        assert client.post("/v1/classify", content=RED).status_code == 200


@pytest.mark.faults
def test_proxy_loses_no_request_to_a_replica_that_stops_at_once(start_server, start_proxy):
    stopping, other = start_server(drain_s=0), start_server()
    proxy = start_proxy(stopping, other)

    stopping.send_signal(signal.SIGTERM)
    statuses = []
    while proxy.metric("haproxy_backend_active_servers", REPLICAS) == 2:
        statuses.append(proxy.post().status_code)
    code = stopping.exit_code()

    assert set(statuses) == {200}
    assert code == 0

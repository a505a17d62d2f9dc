"""Startup, drain and shutdown of a real server process."""

from __future__ import annotations

import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from httpx2 import Client, HTTPTransport

from tests import tinymodel
from tests.e2e.server import PATIENCE_S, ROOT, Server, post
from tests.problems import MARKER, assert_problem

RED = tinymodel.picture("red")
LINES_THAT_FILL_A_PIPE = 500


def test_lifecycle_server_that_serves_is_ready(start_server):
    server = start_server()

    with server.client() as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.post("/v1/classify", content=RED).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_lifecycle_signal_to_an_idle_server_exits_with_zero(start_server, number):
    server = start_server(drain_s=0)

    server.send_signal(number)

    assert (server.exit_code(), server.stderr()) == (0, "")
    assert [line["signal"] for line in server.log if line["message"] == "stopping"] == [number.name]


def test_lifecycle_interrupt_skips_the_drain(start_server):
    server = start_server(drain_s=600)

    server.send_signal(signal.SIGINT)

    assert server.exit_code() == 0


def test_lifecycle_second_signal_ends_at_once(start_server):
    server = start_server(drain_s=600, grace_s=600)
    with server.connect() as open_connection:
        open_connection.send(post(b"half", "Content-Length: 100"))
        server.wait_for_metric("convserve_upload_bytes_in_flight", lambda value: value == 4)

        server.send_signal(signal.SIGTERM)
        server.wait_for_log("stopping")
        server.send_signal(signal.SIGTERM)

        assert (server.exit_code(), server.stderr()) == (0, "")


def test_lifecycle_second_signal_during_runs_answers_and_does_not_abort(start_server):
    # Native threads that still run when the interpreter is finalised would abort the process.
    server = start_server(models_dir=ROOT / "models", drain_s=600)
    picture = (ROOT / "examples" / "cat.jpg").read_bytes()
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(24)]
        for connection in connections:
            connection.send(post(picture))
        server.wait_for_metric("convserve_images_in_flight", lambda value: value > 0)

        server.send_signal(signal.SIGTERM)
        server.wait_for_log("stopping")
        server.send_signal(signal.SIGTERM)
        answers = [connection.response() for connection in connections]

    assert (server.exit_code(), server.stderr()) == (0, "")
    for answer in answers:
        if answer is not None and answer.status_code != 200:
            assert_problem(answer, 503, "draining")


def post_until_closed(server: Server) -> list[int]:
    """Posts until a response has `Connection: close`, as a load balancer does. Returns the statuses."""
    statuses = []
    with server.client() as client:
        while True:
            response = client.post("/v1/classify", content=RED)
            statuses.append(response.status_code)
            if response.headers.get("connection") == "close":
                return statuses


def test_lifecycle_terminated_under_load_answers_everything(start_server):
    server = start_server(drain_s=1, lanes=2)

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(post_until_closed, server) for _ in range(4)]
        server.wait_for_log("request")
        server.send_signal(signal.SIGTERM)
        statuses = [status for client in clients for status in client.result()]

    assert set(statuses) == {200}
    assert (server.exit_code(), server.stderr()) == (0, "")
    assert not [line for line in server.log if line["level"] in ("warning", "error", "critical")]


def test_lifecycle_draining_not_ready_but_still_serving_new_connections(start_server):
    server = start_server(drain_s=600)

    server.send_signal(signal.SIGTERM)
    server.wait_for_log("stopping")

    with server.client() as client:
        ready = client.get("/readyz")
        answer = client.post("/v1/classify", content=RED)
    assert_problem(ready, 503, "draining")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def test_lifecycle_shutdown_waits_for_a_body_still_arriving(start_server):
    server = start_server(drain_s=0)
    request = post(RED)
    with server.connect() as connection:
        connection.send(request[:-20])
        server.wait_for_metric("convserve_upload_bytes_in_flight", lambda value: value > 0)
        server.send_signal(signal.SIGTERM)
        server.wait_for_log("stopping")
        response = connection.send(request[-20:]).response()

    assert response.json()["predictions"][0]["label"] == "red"
    assert server.exit_code() == 0


def test_lifecycle_shutdown_waits_no_longer_than_the_grace_period(start_server):
    server = start_server(drain_s=0, grace_s=1, receive_timeout_s=600)
    with server.connect() as connection:
        connection.send(post(b"half", "Content-Length: 100"))
        server.wait_for_metric("convserve_upload_bytes_in_flight", lambda value: value == 4)

        server.send_signal(signal.SIGTERM)
        response = connection.response()

        assert server.exit_code() == 0
    assert_problem(response, 503, "draining")


def test_lifecycle_kubernetes_variables_are_ignored_with_one_line(start_server):
    links = {"service_host": "10.0.0.5", "service_port": "8000", "admin_port": "tcp://10.0.0.6:1"}
    server = start_server(port_8000_tcp="tcp://10.0.0.5:8000", **links)

    (line,) = [line for line in server.log if "Kubernetes" in line["message"]]
    assert line["variables"] == [
        "CONVSERVE_ADMIN_PORT",
        "CONVSERVE_PORT_8000_TCP",
        "CONVSERVE_SERVICE_HOST",
        "CONVSERVE_SERVICE_PORT",
    ]


@pytest.mark.parametrize(
    ("allowed", "client"), [("127.0.0.0/8", "203.0.113.7"), ("10.0.0.1", "127.0.0.1")]
)
def test_lifecycle_only_a_trusted_proxy_sets_the_client(start_server, allowed, client):
    server = start_server(forwarded_allow_ips=allowed)

    with server.client() as http:
        http.get("/v1/models", headers={"X-Forwarded-For": "1.1.1.1, 203.0.113.7"})

    assert server.wait_for_log("request")["client"] == client


def test_lifecycle_unix_socket_is_served_and_removed(start_server, tmp_path):
    path = tmp_path / "convserve.sock"
    server = start_server(uds=path, forwarded_allow_ips="unix", drain_s=0)
    transport = HTTPTransport(uds=str(path))

    with Client(transport=transport, base_url="http://test", timeout=PATIENCE_S) as client:
        client.get("/v1/models")
        forwarded = {"X-Forwarded-For": "203.0.113.7"}
        answer = client.post("/v1/classify", content=RED, headers=forwarded).json()
    server.send_signal(signal.SIGTERM)

    assert answer["predictions"][0]["label"] == "red"
    assert server.url == f"unix:{path}"
    assert (server.exit_code(), path.exists()) == (0, False)
    clients = [line["client"] for line in server.log if line["message"] == "request"]
    assert clients == ["-", "203.0.113.7"]


def test_lifecycle_port_in_use_exits_with_three(launch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = launch(port=taken.getsockname()[1])

        assert server.exit_code() == 3
    (line,) = server.stderr().splitlines()
    assert line.startswith("convserve: cannot listen on 127.0.0.1:")
    assert "in use" in line


def test_lifecycle_corrupt_model_exits_with_three_and_one_line(launch, tmp_path):
    tinymodel.write_version(tmp_path / "models")
    (tmp_path / "models" / "tiny" / "1" / "model.onnx").write_bytes(b"x")

    server = launch(models_dir=tmp_path / "models")

    assert server.exit_code() == 3
    (line,) = server.stderr().splitlines()
    assert line.startswith("convserve: cannot serve: ")
    assert "tiny/1: model.onnx" in line


def test_lifecycle_unknown_setting_exits_with_two(launch):
    server = launch(max_wait=5)

    assert server.exit_code() == 2
    assert "CONVSERVE_MAX_WAIT: no such setting" in server.stderr()


def test_lifecycle_ipv6_address_is_logged_as_a_url(start_server):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = start_server(host="::1")

    assert server.url == f"http://[::1]:{server.port}"
    with server.client() as client:
        assert client.get("/livez").status_code == 200


def test_lifecycle_log_is_json_and_repeats_nothing_of_the_upload(start_server):
    server = start_server(drain_s=0, log_level="debug")
    with server.client() as client:
        client.post(f"/v1/classify?{MARKER}=1", content=MARKER, headers={MARKER: MARKER})
        client.post("/v1/classify", files={MARKER: (MARKER, RED + MARKER.encode())})
        client.get(f"/{MARKER}")

    server.send_signal(signal.SIGTERM)
    server.exit_code()

    requests = [line for line in server.log if line["message"] == "request"]
    assert [line["status"] for line in requests] == [422, 200, 404]
    assert all({"time", "level", "logger", "request_id", "duration_ms"} <= set(r) for r in requests)
    assert MARKER not in str(server.log)


def test_lifecycle_server_writes_no_file(start_server):
    server = start_server(drain_s=0)
    with server.client() as client:
        for _ in range(20):
            client.post("/v1/classify", files=[("a", RED), ("b", RED * 1000)])

    server.send_signal(signal.SIGTERM)
    server.exit_code()

    assert list(server.home.rglob("*")) == []


def test_lifecycle_unread_log_blocks_neither_requests_nor_exit(launch):
    server = launch(drain_s=0).start_unread()
    with server.connect() as connection:
        connection.send(b"GET /v1/models HTTP/1.1\r\nHost: test\r\n\r\n" * LINES_THAT_FILL_A_PIPE)
        statuses = {connection.response().status_code for _ in range(LINES_THAT_FILL_A_PIPE)}

    assert statuses == {200}
    server.send_signal(signal.SIGTERM)

    assert server.exit_code_unread() == 0
    assert server.stderr() == ""

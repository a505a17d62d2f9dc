"""The image's health check asks where the settings say that the service listens."""

from __future__ import annotations

import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme

SCRIPT = Path(__file__).parents[2] / "deploy/docker/health.py"


def handler(status: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return ""

    return Handler


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def check(**environment: str) -> int:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CONVSERVE_")}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-I", "-S", str(SCRIPT)],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "Traceback" not in done.stderr
    return done.returncode


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_health_follows_the_readiness(status, expected):
    server = socketserver.TCPServer(("127.0.0.1", 0), handler(status))
    with serving(server):
        assert check(CONVSERVE_PORT=str(server.server_address[1])) == expected


def test_health_asks_a_service_with_tls():
    server = socketserver.TCPServer(("127.0.0.1", 0), handler(200))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("vision.example.org").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        port = str(server.server_address[1])
        assert check(CONVSERVE_PORT=port, CONVSERVE_SSL_CERTFILE="cert.pem") == 0


def test_health_asks_a_unix_socket(tmp_path):
    path = str(tmp_path / "s")
    with serving(socketserver.UnixStreamServer(path, handler(200))):
        assert check(CONVSERVE_UDS=path) == 0


@pytest.mark.parametrize("port", ["tcp://10.0.0.5:8000", ""])
def test_health_with_a_link_of_kubernetes_asks_the_default_port(port):
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("something listens on port 8000")

    assert check(CONVSERVE_PORT=port) == 1

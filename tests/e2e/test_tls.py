"""HTTPS: a real server with a certificate of its own."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from httpx2 import Client

from tests import tinymodel
from tests.e2e.server import PATIENCE_S, Server, running_server

RED = tinymodel.picture("red")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server(models_dir: Path, authority: trustme.CA, tmp_path_factory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
        file
    )
    with running_server(models_dir=models_dir, lanes=1, ssl_certfile=file) as running:
        yield running


@pytest.fixture
def context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def exchange(server: Server, context: ssl.SSLContext, request: bytes) -> bytes:
    """Sends the request and reads to the end of the connection."""
    with (
        socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_tls_picture_is_classified(server, context):
    assert server.url.startswith("https://")
    with Client(verify=context, base_url=server.url, timeout=PATIENCE_S) as client:
        for _ in range(2):
            answer = client.post("/v1/classify", content=RED).json()
            assert answer["predictions"][0]["label"] == "red"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 101, b"431"),
        (b"POST /v1/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n", b"413"),
    ],
)
def test_tls_refusal_is_answered_and_closes_the_connection(server, context, request_bytes, status):
    answer = exchange(server, context, request_bytes)

    assert answer.split(b" ")[1] == status
    assert answer.endswith(b"}")


def test_tls_large_answer_arrives_whole(server, context):
    path = b"/docs/assets/swagger-ui-bundle.js"

    answer = exchange(
        server, context, b"GET " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )

    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head
    assert len(body) > 1_000_000


def test_tls_plain_http_is_not_answered(server):
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert b"HTTP" not in answer


def test_tls_certificate_that_is_none_ends_the_start(tmp_path, models_dir):
    file = tmp_path / "cert.pem"
    file.write_text("not a certificate", encoding="ascii")
    server = Server(tmp_path, models_dir=models_dir, ssl_certfile=file)
    try:
        assert server.exit_code() == 3
        assert "are not a PEM certificate and its key" in server.stderr()
    finally:
        server.stop()

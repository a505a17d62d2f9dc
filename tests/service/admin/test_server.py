"""The admin port beside the public one, with both servers on the test's event loop."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from service.admin import server as server_module
from service.admin.server import AdminServer
from service.admin.token import AdminToken
from service.app import create_app
from service.http.server import DrainingServer
from service.settings import Settings
from service.system.process import bind_socket
from service.system.signals import SignalHandlers
from tests import tinymodel

pytestmark = pytest.mark.anyio

TOKEN = "a-token-for-these-tests"  # noqa: S105


class Running:
    """A server with an admin port."""

    def __init__(self, models_dir, host: str = "127.0.0.1") -> None:
        settings = Settings(models_dir=models_dir, lanes=1, port=0)
        app = create_app(settings)
        self.service = app.state.service
        listener = bind_socket(host, 0, listen=True)
        self.address = ("127.0.0.1", listener.getsockname()[1])
        port = self.service.admin_port(AdminToken(SecretStr(TOKEN), None))
        self.admin = AdminServer(port, listener)
        self.server = DrainingServer(app, settings, SignalHandlers(), self.admin)

    async def request(
        self, method: str, path: str, body: str = ""
    ) -> tuple[int, dict[str, object]]:
        reader, writer = await asyncio.open_connection(*self.address)
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        writer.write(
            f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        head, _, content = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(content)


@asynccontextmanager
async def running(models_dir, **options) -> AsyncIterator[Running]:
    one = Running(models_dir, **options)
    task = asyncio.create_task(one.server.serve())
    while not one.admin.started:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0)
    try:
        yield one
    finally:
        one.server.handle_exit(signal.SIGINT, None)
        await task


@pytest.fixture
def models(tmp_path):
    for version in (1, 2):
        tinymodel.write_version(tmp_path, version=version)
    return tmp_path


async def test_admin_server_changes_what_is_served(models):
    async with running(models) as one:
        status, answer = await one.request("POST", "/v1/admin/models/tiny/pin", '{"version": 1}')
        answering = one.service.repository.get("tiny").key

    assert (status, answering) == (200, ("tiny", 1))
    assert answer["change"] in one.service.changes.entries()


async def test_admin_server_refuses_a_version_that_fails(models):
    async with running(models) as one:
        (models / "tiny" / "1" / "model.onnx").write_bytes(b"broken")
        status, answer = await one.request("POST", "/v1/admin/models/tiny/pin", '{"version": 1}')

    assert (status, answer["code"]) == (409, "change_refused")


async def test_admin_server_records_what_others_change(models):
    async with running(models) as one:
        (models / "repository.toml").write_text("[models.tiny]\nanswer = 1\n")
        status, _ = await one.request("POST", "/v1/admin/reload")

    (entry,) = one.service.changes.entries()
    assert (status, entry["who"], entry["version_after"]) == (200, "repository.toml", "1")


async def test_admin_server_counts_heads_that_its_application_does_not_see(models_dir):
    async with running(models_dir) as one:
        reader, writer = await asyncio.open_connection(*one.address)
        writer.write(b"GET / HTTP/1.1\r\nx: " + b"y" * 40_000 + b"\r\n\r\n")
        answer = await reader.readline()
        writer.close()

    registry = one.service.metrics._registry
    refused = registry.get_sample_value("convserve_admin_requests_total", {"outcome": "refused"})
    assert (b" 431 " in answer, refused) == (True, 1)


async def test_admin_server_closes_connections_above_its_limit(models_dir, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    async with running(models_dir) as one:
        _, first = await asyncio.open_connection(*one.address)
        reader, second = await asyncio.open_connection(*one.address)
        answer = await reader.read()
        first.close()
        second.close()

    assert answer == b""


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])  # noqa: S104
async def test_admin_server_warns_if_other_machines_reach_it(models_dir, caplog, host, warned):
    async with running(models_dir, host=host):
        pass

    lines = [line.message for line in caplog.records if line.levelname == "WARNING"]
    assert ("other machines can reach the admin port, which has no TLS" in lines) == warned


async def test_admin_server_second_signal_is_passed_on(models_dir):
    async with running(models_dir) as one:
        one.server.handle_exit(signal.SIGTERM, None)

    assert one.admin.force_exit

"""The stages of a shutdown, with the server on the test's event loop. See also tests/e2e."""

from __future__ import annotations

import asyncio
import signal
import socket

import pytest

from service.app import create_app
from service.http.server import DrainingServer
from service.settings import Settings
from service.system.signals import SignalHandlers
from tests.waiting import until

pytestmark = pytest.mark.anyio


class RunningServer:
    """A server and the task that runs it."""

    def __init__(self, models_dir, listener: socket.socket | None = None, **settings) -> None:
        values = {"models_dir": models_dir, "lanes": 1, "port": 0, **settings}
        parsed = Settings.model_validate(values)
        self.app = create_app(parsed)
        self.server = DrainingServer(self.app, parsed, SignalHandlers())
        self.serving = asyncio.create_task(self.server.serve([listener] if listener else None))

    async def started(self) -> RunningServer:
        await until(lambda: self.server.started)
        return self

    def signal(self, number: signal.Signals) -> None:
        self.server.handle_exit(number, None)


async def test_server_counts_heads_that_the_application_does_not_see(models_dir):
    running = await RunningServer(models_dir).started()
    (listener,) = running.server.servers[0].sockets
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nx: " + b"y" * 40_000 + b"\r\n\r\n")
    answer = await reader.readline()
    writer.close()
    running.signal(signal.SIGINT)
    await running.serving

    registry = running.app.state.service.metrics._registry
    requests = {"route": "unmatched", "status": "431"}
    errors = {"code": "headers_too_large"}
    assert b" 431 " in answer
    assert registry.get_sample_value("convserve_requests_total", requests) == 1
    assert registry.get_sample_value("convserve_request_errors_total", errors) == 1


async def test_server_logs_its_address(models_dir, caplog):
    with caplog.at_level("INFO"):
        running = await RunningServer(models_dir).started()
        running.signal(signal.SIGINT)
        await running.serving

    (line,) = [record for record in caplog.records if record.message == "serving"]
    assert line.url.startswith("http://127.0.0.1:")


async def test_server_listens_on_copies_of_its_socket_and_closes_them(models_dir, caplog):
    with caplog.at_level("INFO"), socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        running = await RunningServer(models_dir, listener).started()
        listeners = [one for server in running.server.servers for one in server.sockets]
        addresses = {one.getsockname() for one in listeners}
        _, writer = await asyncio.open_connection(*address)
        writer.close()
        running.signal(signal.SIGINT)
        await running.serving

    assert (len(listeners), addresses) == (32, {address})
    assert [record.message for record in caplog.records].count("serving") == 1
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)


@pytest.mark.parametrize(
    ("number", "drain_s"),
    [(signal.SIGINT, 600), (signal.SIGTERM, 0)],
    ids=["interrupt", "no_drain_time"],
)
async def test_server_without_drain_stops_at_once(models_dir, number, drain_s):
    running = await RunningServer(models_dir, drain_s=drain_s).started()

    running.signal(number)
    await running.serving

    assert running.app.state.service.draining
    assert not running.server.force_exit


async def test_server_terminated_drains_first(models_dir):
    running = await RunningServer(models_dir, drain_s=0.05).started()

    running.signal(signal.SIGTERM)

    assert running.app.state.service.draining
    assert not running.server.should_exit
    await running.serving
    assert running.server.should_exit


async def test_server_second_signal_ends_the_drain(models_dir):
    running = await RunningServer(models_dir, drain_s=600).started()

    running.signal(signal.SIGTERM)
    running.signal(signal.SIGTERM)
    await running.serving

    assert running.server.force_exit


@pytest.mark.parametrize("draining", [False, True], ids=["serving", "draining"])
async def test_server_hangup_polls_the_repository_unless_draining(
    models_dir, monkeypatch, draining
):
    running, polls = await RunningServer(models_dir).started(), []
    monkeypatch.setattr(running.app.state.service.watcher, "poll_soon", lambda: polls.append(1))
    if draining:
        running.app.state.service.begin_drain()

    running.server.handle_hangup()
    running.signal(signal.SIGINT)
    await running.serving

    assert polls == ([] if draining else [1])

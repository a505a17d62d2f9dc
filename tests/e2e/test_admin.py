"""The admin port of a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from httpx2 import Client

from contract.repository.file import read_repository_file
from service.admin.server import MAX_CONNECTIONS
from tests import tinymodel
from tests.e2e.server import PATIENCE_S, ROOT, Server
from tests.problems import MARKER, assert_problem
from tests.service.admin.test_admin import ROUTES

TOKEN = f"{MARKER}-admin-token"
RED = tinymodel.picture("red")
PIN = "/v1/admin/models/tiny/pin"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for version in (1, 2, 3):
        tinymodel.write_version(folder, version=version)
    return folder


@pytest.fixture
def start(start_server, models) -> Callable[..., Server]:
    def with_admin_port(**settings):
        values = {"models_dir": models, "models_poll_s": 0, "drain_s": 0, "admin_port": 0}
        return start_server(**{**values, "admin_token": TOKEN, **settings})

    return with_admin_port


def admin(server: Server, token: str = TOKEN) -> Client:
    seen = [line["url"] for line in server.log if line["message"] == "serving the admin port"]
    url = seen[0] if seen else server.wait_for_log("serving the admin port")["url"]
    header = {"Authorization": f"Bearer {token}"}
    return Client(base_url=url, headers=header, timeout=PATIENCE_S)


def answering(server: Server) -> str:
    with server.client() as client:
        version: str = client.post("/v1/classify", content=RED).json()["version"]
        return version


def listening_sockets(pid: int) -> int:
    own = {str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(line[3] == "0A" and f"socket:[{line[9]}]" in own for line in lines)


def test_admin_port_is_closed_unless_it_is_asked_for(start_server, start):
    assert listening_sockets(start_server().pid) == 1
    assert listening_sockets(start().pid) == 2


def test_admin_port_needs_the_token_for_every_route(start, models):
    server = start()

    with admin(server, token="wrong" * 5) as client:
        for method, path in ROUTES:
            assert_problem(client.request(method, path), 401, "unauthorized")

    assert not (models / "repository.toml").exists()
    assert answering(server) == "3"


def test_admin_pin_changes_the_file_and_the_version_that_answers(start, models):
    server = start()
    with admin(server) as client:
        pinned = client.post(PIN, json={"version": 1}, headers={"X-Admin-User": "ann"})
        after_pin = answering(server)
        client.post("/v1/admin/models/tiny/rollback")
        after_rollback = answering(server)

    change = pinned.json()["change"]
    assert (pinned.status_code, change["who"]) == (200, "127.0.0.1 (ann)")
    assert (after_pin, after_rollback) == ("1", "3")
    assert read_repository_file(models / "repository.toml").parsed.policy("tiny").answer == 3
    line = server.wait_for_log("changed the model repository")
    assert (line["verb"], line["who"], line["version_after"]) == ("pin", "127.0.0.1 (ann)", "1")


def test_admin_version_that_cannot_be_served_is_not_pinned(start, models):
    server = start()
    (models / "tiny" / "2" / "model.onnx").write_bytes(b"broken")

    with admin(server) as client:
        refused = client.post(PIN, json={"version": 2})

    assert_problem(refused, 409, "change_refused")
    assert not (models / "repository.toml").exists()


def test_admin_file_that_cannot_be_written_is_named_with_its_lines(start, tmp_path):
    file = tmp_path / "elsewhere" / "repository.toml"
    file.parent.mkdir()
    file.touch()
    server = start(repository_file=file)
    shutil.rmtree(file.parent)  # not even root can write there

    with admin(server) as client:
        refused = client.post(PIN, json={"version": 1})

    assert_problem(refused, 409, "repository_file_unwritable")
    assert str(file) in refused.json()["detail"]
    assert "answer = 1" in refused.json()["detail"]
    assert answering(server) == "3"


def test_admin_reload_applies_an_edit_and_records_it(start, models):
    server = start()
    (models / "repository.toml").write_text("[models.tiny]\nanswer = 2\n")

    with admin(server) as client:
        before = answering(server)
        reloaded = client.post("/v1/admin/reload").json()
        (change,) = client.get("/v1/admin/changes").json()["changes"]

    (tiny,) = reloaded["served"]["models"]
    assert (before, answering(server), tiny["answers"]) == ("3", "2", "2")
    assert (change["who"], change["version_before"], change["version_after"]) == (
        "repository.toml",
        "3",
        "2",
    )


def test_admin_reload_adopts_a_published_version_and_records_it(start, models):
    server = start()
    tinymodel.write_version(models, version=4)

    with admin(server) as client:
        client.post("/v1/admin/reload")
        (change,) = client.get("/v1/admin/changes").json()["changes"]

    assert (change["who"], change["version_after"], answering(server)) == ("published", "4", "4")


def test_admin_port_answers_while_the_service_drains(start):
    server = start(drain_s=600)
    with admin(server) as client:
        client.get("/v1/admin/models")

        server.send_signal(signal.SIGTERM)
        server.wait_for_log("stopping")
        response = client.get("/v1/admin/models")
        server.send_signal(signal.SIGTERM)

    assert (response.status_code, response.headers["connection"]) == (200, "close")
    assert (server.exit_code(), server.stderr()) == (0, "")


def test_admin_port_does_not_delay_the_end(start):
    server = start()
    with admin(server) as client:
        client.get("/v1/admin/models")  # and keeps its connection

        server.send_signal(signal.SIGTERM)

        assert (server.exit_code(), server.stderr()) == (0, "")


def test_admin_connections_are_limited_and_the_public_port_goes_on(start):
    server = start()
    url = server.wait_for_log("serving the admin port")["url"]
    port = int(url.rpartition(":")[2])

    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_CONNECTIONS)]
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as refused:
        assert refused.recv(1) == b""
    assert answering(server) == "3"

    for connection in held:
        connection.close()
    with admin(server) as client:
        assert client.get("/v1/admin/models").status_code == 200


def test_admin_many_changes_at_once_end_as_the_file_says(start, models):
    server = start()

    def change(number: int) -> int:
        verb = ("pin", "promote", "rollback", "unpin")[number % 4]
        body = {"version": number % 3 + 1} if number % 4 < 2 else {}
        with admin(server) as client:
            response = client.post(f"/v1/admin/models/tiny/{verb}?wait=false", json=body)
            return response.status_code

    admin(server).close()  # its address is read from the log once
    with ThreadPoolExecutor(64) as pool:
        statuses = set(pool.map(change, range(64)))
    with admin(server) as client:
        served = client.post("/v1/admin/reload").json()["served"]

    (tiny,) = served["models"]
    policy = read_repository_file(models / "repository.toml").parsed.policy("tiny")
    assert statuses <= {200, 202, 409}
    assert tiny["answers"] == answering(server) == str(policy.pinned() or 3)


# Secrets


def test_admin_token_is_nowhere_to_be_seen(start):
    server = start(workers=1, log_level="debug")
    with admin(server) as client:
        client.post(PIN, json={"version": 1})
        client.get("/v1/admin/models", headers={"Authorization": f"Bearer {TOKEN}-wrong"})
        shown = client.get("/v1/admin/changes").text
        with server.client() as public:
            shown += public.get("/metrics").text + public.get("/v1/models").text
    files = [f"{server.pid}/cmdline", *(f"{pid}/environ" for pid in server.workers())]
    for file in files:
        with suppress(FileNotFoundError, ProcessLookupError):  # a worker that was replaced
            shown += Path("/proc", file).read_text()
    assert "CONVSERVE_ADMIN_PORT" in shown  # of a worker's environment

    server.send_signal(signal.SIGTERM)
    server.exit_code()

    assert TOKEN not in shown + json.dumps(server.log) + server.stderr()


def test_admin_token_is_not_printed_with_the_settings():
    printed = subprocess.run(
        [sys.executable, "-m", "convserve", "serve", "--print-settings"],
        cwd=ROOT,
        env={**os.environ, "CONVSERVE_ADMIN_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=True,
    )

    assert TOKEN not in printed.stdout + printed.stderr
    assert json.loads(printed.stdout)["admin_token"]


# Starts that fail


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "the admin port needs a token"),
        ({"admin_token": "short"}, "CONVSERVE_ADMIN_TOKEN has 5 characters; at least 16"),
        ({"admin_token_file": "/nowhere"}, "/nowhere, cannot be read: No such file"),
    ],
    ids=["no_token", "short_token", "no_file"],
)
def test_admin_port_without_a_usable_token_does_not_start(launch, settings, reason):
    server = launch(admin_port=0, **settings)

    assert server.exit_code() == 3
    (line,) = server.stderr().splitlines()
    assert line.startswith("convserve: ")
    assert reason in line


def test_admin_port_that_is_taken_does_not_start(launch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = launch(admin_port=port, admin_token=TOKEN)

        assert server.exit_code() == 3
    assert server.stderr() == (
        f"convserve: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


def test_admin_port_that_others_can_reach_is_warned_about(start):
    server = start(admin_host="0.0.0.0")  # noqa: S104

    assert server.wait_for_log("other machines can reach the admin port, which has no TLS")
